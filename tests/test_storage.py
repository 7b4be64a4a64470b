"""Directories on a local disk and in an object store: the same promises on both."""

import errno
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import xxhash

from charactertrain import artifacts
from charactertrain.artifacts import Identity
from charactertrain.exceptions import ArtifactError, ConfigError, UnavailableError
from charactertrain.storage import Directory, open_directory, without_keys

# More than one part of a multi-part upload.
LARGE = bytes(range(256)) * 4 * 2**12 * 3


def everything(directory: Directory) -> list[str]:
    """All files that lie there, hidden ones too."""
    selector = pafs.FileSelector(directory.root, recursive=True, allow_not_found=True)
    infos = directory.filesystem.get_file_info(selector)
    return sorted(
        info.path.removeprefix(f"{directory.root}/")
        for info in infos
        if info.type is pafs.FileType.File
    )


def fail_to_write(directory: Directory, name: str, data: bytes) -> None:
    with pytest.raises(RuntimeError, match="no power"), directory.replacing(name) as stream:
        stream.write(data)
        raise RuntimeError("no power")


def test_what_is_written_is_read_back(directory: Directory) -> None:
    directory.write_bytes("deep/down/file.bin", LARGE)
    assert directory.exists("deep/down/file.bin")
    assert directory.size("deep/down/file.bin") == len(LARGE)
    assert directory.read_bytes("deep/down/file.bin") == LARGE
    assert directory.checksum("deep/down/file.bin") == xxhash.xxh3_128_hexdigest(LARGE)
    assert everything(directory) == ["deep/down/file.bin"]


def test_a_directory_that_is_opened_is_not_made(directory: Directory) -> None:
    assert not directory.exists("")
    assert not directory.exists("file.bin")
    assert directory.files() == []


@pytest.mark.parametrize("data", [b"half", LARGE], ids=["small", "large"])
def test_a_writer_that_raises_leaves_nothing(directory: Directory, data: bytes) -> None:
    fail_to_write(directory, "table/file.bin", data)
    assert not directory.exists("table/file.bin")
    assert everything(directory) == []


def test_a_writer_that_raises_leaves_the_earlier_file(directory: Directory) -> None:
    directory.write_bytes("file.bin", b"whole")
    fail_to_write(directory, "file.bin", b"half")
    assert directory.read_bytes("file.bin") == b"whole"
    assert everything(directory) == ["file.bin"]


def test_a_reader_sees_the_earlier_file_until_the_new_one_is_complete(directory: Directory) -> None:
    directory.write_bytes("file.bin", b"first")
    with directory.replacing("file.bin") as stream:
        stream.write(b"second")
        stream.flush()
        assert directory.read_bytes("file.bin") == b"first"
        assert directory.files() == ["file.bin"]
    assert directory.read_bytes("file.bin") == b"second"


def test_files_are_sorted_names_below_the_directory(directory: Directory) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", "b/c/3.txt"):
        directory.write_bytes(name, b"x")
    assert directory.files() == ["a.txt", "b/1.txt", "b/2.txt", "b/c/3.txt"]
    assert directory.files("b") == ["b/1.txt", "b/2.txt", "b/c/3.txt"]
    assert directory.child("b").files() == ["1.txt", "2.txt", "c/3.txt"]
    assert directory.files("nothing") == []


def test_files_leave_out_what_is_hidden(directory: Directory) -> None:
    directory.write_bytes("table/part.parquet", b"x")
    directory.write_bytes("table/.part.parquet.0a1b2c3d.partial", b"x")
    assert len(everything(directory)) == 2
    assert directory.files() == ["table/part.parquet"]


def test_checksum_is_that_of_the_bytes(directory: Directory) -> None:
    directory.write_bytes("file.bin", b"some bytes")
    directory.write_bytes("empty.bin", b"")
    assert directory.checksum("file.bin") == xxhash.xxh3_128_hexdigest(b"some bytes")
    assert directory.checksum("empty.bin") == xxhash.xxh3_128_hexdigest(b"")


def test_tables_are_read_whole_or_by_column(directory: Directory) -> None:
    table = pa.table({"name": ["a", "b"], "count": [1, 2]})
    directory.write_table("t/part.parquet", table)
    assert directory.read_table("t/part.parquet").equals(table)
    assert directory.read_table("t/part.parquet", columns=["count"]).equals(table.select(["count"]))


def test_upload_copies_every_file_below_the_name(directory: Directory, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_bytes(b"{}")
    (source / "sub" / "weights.bin").write_bytes(b"weights")
    (source / "empty").write_bytes(b"")
    directory.upload(source, "model")
    assert everything(directory) == ["model/config.json", "model/empty", "model/sub/weights.bin"]
    assert directory.read_bytes("model/sub/weights.bin") == b"weights"
    assert directory.size("model/empty") == 0


def test_on_local_disk_shows_the_same_files(directory: Directory) -> None:
    directory.write_bytes("config.json", b"{}")
    directory.write_bytes("sub/weights.bin", b"weights")
    with directory.on_local_disk() as path:
        assert (path / "config.json").read_bytes() == b"{}"
        assert (path / "sub" / "weights.bin").read_bytes() == b"weights"
    assert path.exists() == directory.is_local
    assert directory.files() == ["config.json", "sub/weights.bin"]


def test_a_local_directory_is_not_copied_to_local_disk(tmp_path: Path) -> None:
    with open_directory(str(tmp_path)).on_local_disk() as path:
        assert path == tmp_path


def test_delete_removes_files_and_directories(directory: Directory) -> None:
    for name in ("a.txt", "b/1.txt", "b/c/2.txt"):
        directory.write_bytes(name, b"x")
    directory.delete("a.txt")
    assert directory.files() == ["b/1.txt", "b/c/2.txt"]
    directory.delete("b")
    assert everything(directory) == []
    directory.delete("nothing")


def test_a_directory_travels_to_another_process(directory: Directory) -> None:
    directory.write_bytes("file.bin", b"x")
    other = pickle.loads(pickle.dumps(directory))
    assert other.child("sub").uri == f"{directory.uri}/sub"
    assert other.read_bytes("file.bin") == b"x"


def test_local_path_of_a_store_is_refused(open_s3: Callable[[str], Directory]) -> None:
    with pytest.raises(ArtifactError, match="s3://bucket/run is not on a local disk"):
        _ = open_s3("run").local_path


def test_a_uri_is_shown_without_its_options(open_s3: Callable[[str], Directory]) -> None:
    directory = open_s3("run/")
    assert directory.uri == "s3://bucket/run"
    assert directory.root == "bucket/run"
    assert directory.child("traits").path("manifest.json") == "bucket/run/traits/manifest.json"


def test_a_uri_is_shown_without_keys() -> None:
    options = "?endpoint_override=http://127.0.0.1:9&scheme=http"
    directory = open_directory(f"s3://name:secret@bucket/me@home{options}")
    assert directory.uri == "s3://bucket/me@home"


def test_local_paths_and_file_uris_are_the_same_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for location in ("run", "run/", "~/run", str(tmp_path / "run"), f"file://{tmp_path}/run/"):
        directory = open_directory(location)
        assert directory.local_path == tmp_path / "run"
        assert directory.path("a") == str(tmp_path / "run" / "a")


@pytest.mark.parametrize("location", ["ftp://host/run", "nonsense://x"])
def test_a_location_that_cannot_be_opened_names_run_dir(location: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.dir: cannot open '" + location):
        open_directory(location)


def test_a_damaged_table_is_named_with_what_to_do(directory: Directory) -> None:
    directory.write_table("rows/part.parquet", pa.table({"a": [1, 2, 3]}))
    data = bytearray(directory.read_bytes("rows/part.parquet"))
    directory.write_bytes("rows/part.parquet", bytes(data[:-8]) + b"damaged!")
    with pytest.raises(ArtifactError, match=r"rows/part\.parquet: .* The file was damaged"):
        directory.read_table("rows/part.parquet")


def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    directory = open_directory(str(tmp_path / "file" / "run"))
    with pytest.raises(ArtifactError, match=r"file/run/a\.json: .* Check that run\.dir"):
        directory.write_bytes("a.json", b"{}")


def test_what_does_not_pass_by_itself_is_told_from_what_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for location in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ArtifactError) as lasting:
            open_directory(str(location)).write_bytes("a.json", b"{}")
        assert not isinstance(lasting.value, UnavailableError)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UnavailableError, match=r"a\.json: .*Input/output error"):
        open_directory(str(tmp_path)).write_bytes("a.json", b"{}")


def test_a_full_disk_is_said_to_be_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill)
    directory = open_directory(str(tmp_path))
    with pytest.raises(ArtifactError, match=r"a\.json: .* The disk is full: free some space"):
        directory.write_bytes("a.json", b"{}")
    assert everything(directory) == []


def test_keys_are_taken_out_of_every_uri_of_a_text() -> None:
    text = "run --to s3://KEY:SECRET@bucket/run me@home s3://plain/x@y"
    assert without_keys(text) == "run --to s3://bucket/run me@home s3://plain/x@y"


@pytest.mark.parametrize("start", [4, -200, -12])
def test_a_table_damaged_anywhere_is_named(directory: Directory, start: int) -> None:
    directory.write_table("rows/part.parquet", pa.table({"a": list(range(1000))}))
    data = bytearray(directory.read_bytes("rows/part.parquet"))
    data[start : start + 8] = b"damaged!"
    directory.write_bytes("rows/part.parquet", bytes(data))
    with pytest.raises(
        ArtifactError, match=r"(?s)rows/part\.parquet: .* The file was damaged"
    ) as damaged:
        directory.read_table("rows/part.parquet")
    # Of a local file there is no doubt that it is.
    assert type(damaged.value) is ArtifactError or not directory.is_local


def test_a_file_that_is_not_there_is_named(directory: Directory) -> None:
    for read in (directory.read_bytes, directory.read_table, directory.checksum):
        with pytest.raises(ArtifactError, match=r"a/none\.bin: .* Check that run\.dir"):
            read("a/none.bin")


def test_a_store_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    # Nobody answers there, and it is asked once.
    store = pafs.S3FileSystem(
        access_key="KEY",
        secret_key="SECRET",
        endpoint_override="http://127.0.0.1:9",
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=1),
    )
    directory = Directory(store, "bucket/run", "s3://bucket/run")
    (tmp_path / "a.bin").write_bytes(b"a")
    asked: list[Callable[[], object]] = [
        lambda: directory.exists("a"),
        directory.files,
        lambda: directory.size("a"),
        lambda: directory.checksum("a"),
        lambda: directory.delete("a"),
        lambda: directory.write_bytes("a", b"a"),
        lambda: directory.upload(tmp_path, "a"),
    ]
    for ask in asked:
        with pytest.raises(ArtifactError, match=r"(?s)^s3://bucket/run.* your credentials"):
            ask()


@pytest.fixture(name="busy_store")
def store_that_is_often_busy(
    open_s3: Callable[[str], Directory], s3_port: int
) -> Iterator[Directory]:
    """A directory of a store that refuses every third request."""
    there = open_s3("run")
    script = Path(__file__).parent / "support" / "flaky_store.py"
    with subprocess.Popen(
        [sys.executable, str(script), str(s3_port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        address = f"endpoint_override=http://127.0.0.1:{port}&scheme=http"
        yield open_directory(f"s3://{there.root}?{address}")
        process.terminate()


@pytest.mark.slow
def test_a_store_that_is_often_busy_loses_nothing(busy_store: Directory) -> None:
    identity = Identity("prompts", {"seed": 1}, {})
    artifacts.begin(busy_store, identity)
    tables = {f"rows/part-{place}.parquet": pa.table({"n": [place] * 9}) for place in range(3)}
    for name, table in tables.items():
        busy_store.write_table(name, table)
    busy_store.write_bytes("model/weights.bin", LARGE)
    outcome = artifacts.Outcome(files=(*tables, "model/weights.bin"), summary={})
    artifacts.commit(
        busy_store, identity, outcome, resolved_config={}, code_version="0", wall_seconds=1.0
    )
    manifest = artifacts.require(busy_store, "prompts")
    artifacts.verify_checksums(busy_store, manifest)
    assert all(busy_store.read_table(name) == table for name, table in tables.items())
    assert busy_store.read_bytes("model/weights.bin") == LARGE


def test_a_file_of_another_file_system_appears_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither local nor an object store to this module, such as HDFS.
    other = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    directory = Directory(other, "run", "hdfs://host/run")
    (tmp_path / "run").mkdir()
    for data in (b"first", LARGE):
        directory.write_bytes("table/file.bin", data)
        assert everything(directory) == ["table/file.bin"]
        assert directory.read_bytes("table/file.bin") == data

    def stop(source: str, target: str, *systems: object, **options: object) -> None:
        (tmp_path / target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pafs, "copy_files", stop)
    for name in ("table/file.bin", "table/new.bin"):
        with pytest.raises(KeyboardInterrupt):
            directory.write_bytes(name, b"third")
    assert directory.files() == ["table/file.bin"]
    assert directory.read_bytes("table/file.bin") == LARGE


def test_a_location_that_cannot_be_opened_is_shown_without_keys() -> None:
    with pytest.raises(ConfigError, match=r"cannot open 'ftp://host/run'") as caught:
        open_directory("ftp://KEY:SECRET@host/run")
    assert "SECRET" not in str(caught.value)
    # A slash in a key is why most such URIs cannot be parsed.
    with pytest.raises(ConfigError, match=r"cannot open 's3://bucket/run'") as caught:
        open_directory("s3://KEY:abc/SECRET@bucket/run")
    assert "SECRET" not in str(caught.value)


def test_a_table_in_a_store_that_went_away_is_not_called_damaged_alone(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write_table("part.parquet", pa.table({"count": [1]}))

    def time_out(*_: object, **__: object) -> None:
        raise OSError(errno.ETIMEDOUT, "timed out")

    monkeypatch.setattr("charactertrain.storage.pq.read_table", time_out)
    with pytest.raises(UnavailableError, match=r"timed out\. If the store was not reached"):
        directory.read_table("part.parquet")


def test_a_file_is_created_once(tmp_path: Path) -> None:
    directory = open_directory(str(tmp_path / "run"))
    assert directory.create("deep/one.txt", b"first")
    assert not directory.create("deep/one.txt", b"second")
    assert directory.read_bytes("deep/one.txt") == b"first"


def test_a_store_creates_nothing_exclusively(open_s3: Callable[[str], Directory]) -> None:
    with pytest.raises(ArtifactError, match="not on a local disk"):
        open_s3("run").create("one.txt", b"")


def test_a_file_that_is_taken_shares_its_bytes(tmp_path: Path) -> None:
    source, target = (open_directory(str(tmp_path / name)) for name in ("source", "target"))
    source.write_bytes("model/weights.bin", LARGE)
    target.write_bytes("model/weights.bin", b"half of an earlier try")
    target.take(source, "model/weights.bin")
    paths = [directory.local_path / "model/weights.bin" for directory in (source, target)]
    assert paths[0].samefile(paths[1])
    source.write_bytes("model/weights.bin", b"replaced")
    assert target.read_bytes("model/weights.bin") == LARGE


def test_a_file_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    source, target = (open_directory(str(tmp_path / name)) for name in ("source", "target"))
    source.write_bytes("weights.bin", LARGE)
    monkeypatch.setattr(Path, "hardlink_to", refuse)
    target.take(source, "weights.bin")
    assert target.read_bytes("weights.bin") == LARGE
    assert everything(target) == ["weights.bin"]
