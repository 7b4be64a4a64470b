"""Manifests and fingerprints: what is an artifact, what is the same one, what is damaged."""

import json
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pytest

from charactertrain import artifacts
from charactertrain.artifacts import (
    MANIFEST_NAME,
    UNFINISHED_NAME,
    Identity,
    Manifest,
    Outcome,
    canonical_json,
)
from charactertrain.exceptions import ArtifactError
from charactertrain.records import Reject, Trait, to_table
from charactertrain.storage import Directory

IDENTITY = Identity(
    "traits", {"seed": 1, "model": {"path": "tiny", "size": 2.5}}, {"prompts": "0" * 32}
)
FILES = ("traits/part-000000.parquet", "traits/part-000001.parquet")


def commit(
    directory: Directory, identity: Identity = IDENTITY, outcome: Outcome | None = None
) -> Manifest:
    return artifacts.commit(
        directory,
        identity,
        outcome or Outcome(FILES, {"empty": 2, "broken": 1}, {"mean": 0.5}),
        resolved_config={"seed": 1, "resources": {"gpus": 8}},
        code_version="0.1.0",
        wall_seconds=1.23456,
    )


@pytest.fixture(name="artifact")
def committed_artifact(directory: Directory, traits: list[Trait]) -> Directory:
    """An artifact of two files with a trait each."""
    for name, trait in zip(FILES, traits, strict=True):
        directory.write_table(name, to_table([trait], Trait))
    commit(directory)
    return directory


def changed_manifest(directory: Directory, **changes: Any) -> None:
    values = json.loads(directory.read_bytes(MANIFEST_NAME)) | changes
    directory.write_bytes(MANIFEST_NAME, json.dumps(values).encode())


def test_fingerprint_does_not_depend_on_the_order_of_keys() -> None:
    reordered = Identity(
        "traits", {"model": {"size": 2.5, "path": "tiny"}, "seed": 1}, {"prompts": "0" * 32}
    )
    assert reordered.fingerprint == IDENTITY.fingerprint
    assert len(IDENTITY.fingerprint) == 32


def test_fingerprint_is_the_same_in_every_process_and_version() -> None:
    # A change here makes every artifact that anybody has look like another run's.
    assert IDENTITY.fingerprint == "2a8a16310557f804176aef549d5ef1c8"


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, stage="prompts"),
        replace(IDENTITY, config={"seed": 2, "model": {"path": "tiny", "size": 2.5}}),
        replace(IDENTITY, config={"seed": 1, "model": {"path": "tiny", "size": 2.25}}),
        replace(IDENTITY, config={"seed": 1}),
        replace(IDENTITY, inputs={"prompts": "0" * 31 + "1"}),
        replace(IDENTITY, inputs={"traits": "0" * 32}),
        replace(IDENTITY, inputs={}),
    ],
)
def test_fingerprint_depends_on_every_part(other: Identity) -> None:
    assert other.fingerprint != IDENTITY.fingerprint


def test_a_tuple_and_a_list_of_the_same_values_are_the_same() -> None:
    assert canonical_json({"a": (1, 2)}) == canonical_json({"a": [1, 2]})


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), object(), {1, 2}, {1: "one"}, b"bytes", len],
    ids=["nan", "inf", "object", "set", "int_key", "bytes", "function"],
)
def test_what_has_no_stable_identity_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no stable identity"):
        canonical_json({"nested": [value]})
    with pytest.raises(TypeError, match="no stable identity"):
        _ = Identity("traits", {"nested": [value]}, {}).fingerprint


def test_what_is_committed_is_read_back(artifact: Directory) -> None:
    manifest = artifacts.read_manifest(artifact)
    assert manifest is not None
    assert manifest == artifacts.require(artifact, "traits")
    assert manifest.identity == IDENTITY
    assert manifest.fingerprint == IDENTITY.fingerprint
    assert manifest.rows == {"traits": 2}
    assert manifest.rejects == {"broken": 1, "empty": 2}
    assert manifest.summary == {"mean": 0.5}
    assert manifest.resolved_config == {"seed": 1, "resources": {"gpus": 8}}
    assert (manifest.code_version, manifest.wall_seconds) == ("0.1.0", 1.235)
    assert manifest.created_at.endswith("+00:00")


def test_manifest_lists_each_file_with_size_checksum_and_rows(artifact: Directory) -> None:
    manifest = artifacts.require(artifact, "traits")
    assert [entry.name for entry in manifest.files] == list(FILES)
    for entry in manifest.files:
        assert entry.size_bytes == artifact.size(entry.name) > 0
        assert entry.checksum == artifact.checksum(entry.name)
        assert entry.num_rows == 1


def test_files_that_are_no_tables_have_no_rows(directory: Directory) -> None:
    directory.write_bytes("model/config.json", b"{}")
    manifest = commit(directory, outcome=Outcome(("model/config.json",)))
    assert [entry.num_rows for entry in manifest.files] == [None]
    assert manifest.rows == {}


def test_rows_are_counted_by_table(directory: Directory, traits: list[Trait]) -> None:
    rejects = [Reject(str(index), "honest", "traits", "empty", "") for index in range(3)]
    directory.write_table("traits/part-000000.parquet", to_table(traits, Trait))
    directory.write_table("rejects/traits/part-000000.parquet", to_table(rejects, Reject))
    names = ("traits/part-000000.parquet", "rejects/traits/part-000000.parquet")
    manifest = commit(directory, outcome=Outcome(names))
    assert manifest.rows == {"traits": 2, "rejects/traits": 3}
    assert [entry.name for entry in manifest.table("traits")] == [names[0]]


def test_a_directory_without_a_manifest_is_no_artifact(
    directory: Directory, traits: list[Trait]
) -> None:
    directory.write_table(FILES[0], to_table(traits, Trait))
    assert artifacts.read_manifest(directory) is None
    with pytest.raises(ArtifactError) as caught:
        artifacts.require(directory, "traits")
    said = str(caught.value)
    assert said.startswith(f"no traits artifact in {directory.uri}: manifest.json is missing.")
    assert "Run the traits stage first" in said


def test_an_artifact_of_another_stage_is_refused(artifact: Directory) -> None:
    with pytest.raises(ArtifactError, match="holds a traits artifact, expected prompts"):
        artifacts.require(artifact, "prompts")


def test_a_file_that_is_missing_is_named(artifact: Directory) -> None:
    artifact.delete(FILES[1])
    with pytest.raises(ArtifactError, match=f"{artifact.uri}/{FILES[1]} is missing"):
        artifacts.require(artifact, "traits")


def test_a_file_of_another_size_is_named_with_both_sizes(artifact: Directory) -> None:
    size = artifact.size(FILES[0])
    artifact.write_bytes(FILES[0], b"short")
    with pytest.raises(ArtifactError, match=f"{FILES[0]} has 5 bytes, the manifest says {size}"):
        artifacts.require(artifact, "traits")


def test_a_file_of_the_same_size_is_told_by_its_checksum(artifact: Directory) -> None:
    manifest = artifacts.require(artifact, "traits")
    artifacts.verify_checksums(artifact, manifest)
    data = bytearray(artifact.read_bytes(FILES[1]))
    data[len(data) // 2] ^= 1
    artifact.write_bytes(FILES[1], bytes(data))
    artifacts.require(artifact, "traits")
    with pytest.raises(ArtifactError, match=f"{FILES[1]}: checksum [0-9a-f]{{32}}, the manifest"):
        artifacts.verify_checksums(artifact, manifest)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'"text"', b"{}", b"\xff\xfe"], ids=repr)
def test_a_manifest_that_cannot_be_read_is_named(artifact: Directory, data: bytes) -> None:
    artifact.write_bytes(MANIFEST_NAME, data)
    with pytest.raises(ArtifactError) as caught:
        artifacts.read_manifest(artifact)
    said = str(caught.value)
    assert said.startswith(f"{artifact.uri}/manifest.json cannot be read: ")
    assert "move the directory away and run again" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": {**asdict(IDENTITY), "config": {"seed": 2}}},
        {"fingerprint": "0" * 32},
        {"files": [{"name": "x"}]},
        {"unknown": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_manifest_that_was_changed_by_hand_is_refused(
    artifact: Directory, changes: dict[str, Any]
) -> None:
    changed_manifest(artifact, **changes)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read: "):
        artifacts.read_manifest(artifact)


def test_readers_ignore_what_a_killed_attempt_left(artifact: Directory) -> None:
    stray = Trait("stray", "I was never finished.", (), None, 1.0, "small")
    artifact.write_table("traits/part-000002.parquet", to_table([stray], Trait))
    artifact.write_bytes("traits/.part-000000.parquet.0a1b2c3d.partial", b"half")
    manifest = artifacts.require(artifact, "traits")
    rows = artifacts.read_rows(artifact, manifest, "traits", Trait)
    assert [row.trait_id for row in rows] == ["honest", "curious"]


def test_rows_are_read_file_by_file(artifact: Directory, traits: list[Trait]) -> None:
    manifest = artifacts.require(artifact, "traits")
    assert list(artifacts.iter_rows(artifact, manifest, "traits", Trait)) == [
        [traits[0]],
        [traits[1]],
    ]
    assert artifacts.read_rows(artifact, manifest, "trait", Trait) == []


def test_columns_that_a_reader_does_not_know_are_left_out(
    directory: Directory, traits: list[Trait]
) -> None:
    table = to_table(traits, Trait).append_column("extra", pa.array([1, 2]))
    directory.write_table(FILES[0], table)
    manifest = commit(directory, outcome=Outcome(FILES[:1]))
    assert artifacts.read_rows(directory, manifest, "traits", Trait) == traits


@pytest.mark.parametrize("column", ["statement", "weight"])
def test_a_table_without_a_column_or_with_another_type_is_named(
    directory: Directory, traits: list[Trait], column: str
) -> None:
    table = to_table(traits, Trait).drop_columns(["statement"])
    message = "column 'statement' is missing"
    if column == "weight":
        whole = to_table(traits, Trait)
        index = whole.column_names.index("weight")
        table = whole.set_column(index, "weight", pa.array(["heavy", "light"]))
        message = "column 'weight' is string, expected double"
    directory.write_table(FILES[0], table)
    manifest = commit(directory, outcome=Outcome(FILES[:1]))
    with pytest.raises(ArtifactError, match=f"{directory.uri}/{FILES[0]}: {message}"):
        artifacts.read_rows(directory, manifest, "traits", Trait)


def test_work_in_progress_is_marked_until_it_is_committed(
    directory: Directory, traits: list[Trait]
) -> None:
    assert artifacts.unfinished(directory) is None
    artifacts.begin(directory, IDENTITY)
    assert artifacts.unfinished(directory) == IDENTITY
    assert artifacts.read_manifest(directory) is None
    directory.write_table(FILES[0], to_table(traits, Trait))
    commit(directory, outcome=Outcome(FILES[:1]))
    assert artifacts.unfinished(directory) is None


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"identity": {"name": 1}}'], ids=repr)
def test_a_damaged_mark_of_work_in_progress_is_named(directory: Directory, data: bytes) -> None:
    directory.write_bytes(UNFINISHED_NAME, data)
    with pytest.raises(ArtifactError, match=rf"{directory.uri}/unfinished\.json cannot be read"):
        artifacts.unfinished(directory)


def test_a_result_that_is_not_a_number_is_not_committed(directory: Directory) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        commit(directory, outcome=Outcome((), {}, {"loss": float("nan")}))
    assert artifacts.read_manifest(directory) is None


def test_a_file_that_was_not_written_is_not_committed(directory: Directory) -> None:
    with pytest.raises(ArtifactError, match=r"part-000000\.parquet"):
        commit(directory)
    assert artifacts.read_manifest(directory) is None


def test_differences_name_each_setting_with_both_values() -> None:
    theirs = replace(
        IDENTITY,
        config={"seed": 1, "model": {"path": "large", "size": 2.5}, "steps": 3},
        inputs={"prompts": "1" * 32},
    )
    assert artifacts.differences(IDENTITY, theirs) == [
        "config.model.path: this run asks for 'tiny', there is 'large'",
        "config.steps: this run asks for '(absent)', there is 3",
        f"inputs.prompts: this run asks for '{'0' * 32}', there is '{'1' * 32}'",
    ]
    assert artifacts.differences(IDENTITY, IDENTITY) == []


def test_differences_of_long_values_are_shown_where_they_begin() -> None:
    long = [f"facet {index}" for index in range(100)]
    ours = Identity("traits", {"facets": long, "short": 1}, {})
    theirs = Identity("traits", {"facets": [*long[:60], "another", *long[61:]], "short": 2}, {})
    facets, short = artifacts.differences(ours, theirs)
    asked, found = facets.removeprefix("config.facets: this run asks for ").split(", there is ")
    for shown, item in ((asked, "'facet 60'"), (found, "'another'")):
        assert shown.startswith("...")
        assert shown.endswith("...")
        assert f"'facet 59', {item}, 'facet 61'" in shown
        assert len(shown) <= 106
    assert short == "config.short: this run asks for 1, there is 2"


def test_differences_point_into_lists_of_mappings() -> None:
    ours = Identity("traits", {"traits": [{"id": "a", "weight": 1.0}, {"id": "b"}]}, {})
    theirs = Identity("traits", {"traits": [{"id": "a", "weight": 2.0}]}, {})
    assert artifacts.differences(ours, theirs) == [
        "config.traits[0].weight: this run asks for 1.0, there is 2.0",
        "config.traits[1].id: this run asks for 'b', there is '(absent)'",
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"x": 1}, {"x": 1.0}),
        ({"x": True}, {"x": 1}),
        ({"x": {}}, {}),
        ({"x": {}}, {"x": {"a": 1}}),
        ({"x": []}, {"x": [{"a": 1}]}),
        ({"x": None}, {}),
    ],
    ids=repr,
)
def test_identities_with_other_fingerprints_always_differ(
    ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    left, right = Identity("traits", ours, {}), Identity("traits", theirs, {})
    assert left.fingerprint != right.fingerprint
    assert artifacts.differences(left, right)


def test_differences_see_through_what_json_changes(directory: Directory) -> None:
    identity = Identity("traits", {"range": (1, 2), "variants": {"none": 1}}, {})
    manifest = commit(directory, identity, Outcome(()))
    assert artifacts.differences(identity, manifest.identity) == []
    again = artifacts.read_manifest(directory)
    assert again is not None
    assert artifacts.differences(identity, again.identity) == []
