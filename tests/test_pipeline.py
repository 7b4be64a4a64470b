"""Plans: which stages run, go on, are skipped or refused, and what running them leaves."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from charactertrain import artifacts, pipeline
from charactertrain.artifacts import Outcome
from charactertrain.config import RunConfig, validate
from charactertrain.constitution import Constitution, Trait
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.pipeline import Action, Stage, Step, Work
from charactertrain.stages.definitions import NAMES, define
from charactertrain.storage import Directory, open_directory


def stage(name: str, *inputs: str, **config: Any) -> Stage:
    return Stage(name, inputs, config, {**config, "resources": {"gpus": 8}}, f"some {name}")


VERSION = "0.1.0"
STAGES = (
    stage("traits", names=["a", "b"]),
    stage("prompts", "traits", seed=1, model={"path": "tiny"}),
    stage("pairs", "prompts", "traits"),
)
CHANGED = (STAGES[0], stage("prompts", "traits", seed=2, model={"path": "tiny"}), STAGES[2])


@pytest.fixture(name="run_directory")
def run_directory_on_disk(tmp_path: Path) -> Directory:
    """A run directory that nothing was written to."""
    return open_directory(str(tmp_path / "run"))


def make_plan(
    directory: Directory,
    stages: Sequence[Stage] = STAGES,
    *,
    only: str | None = None,
    until: str | None = None,
) -> list[Step]:
    return pipeline.make_plan(stages, directory, only=only, until=until)


def actions(steps: Sequence[Step]) -> dict[str, Action]:
    return {step.stage.name: step.action for step in steps}


def write_name(work: Work) -> Outcome:
    work.directory.write_bytes("name.txt", work.stage.name.encode())
    return Outcome(("name.txt",), summary={"inputs": sorted(work.inputs)})


def fail(work: Work) -> Outcome:
    work.directory.write_bytes("shard.txt", b"done before it failed")
    raise RuntimeError(f"{work.stage.name} broke")


def run(
    directory: Directory,
    stages: Sequence[Stage] = STAGES,
    implementation: Callable[[Work], Outcome] = write_name,
    **choice: str,
) -> list[Step]:
    steps = make_plan(directory, stages, **choice)
    pipeline.check_plan(steps, directory, code_version=VERSION)
    pipeline.check_inputs(steps, directory)
    for step in steps:
        pipeline.execute(step, directory, implementation, code_version=VERSION)
    return steps


def snapshot(path: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    }


def test_a_plan_writes_nothing(run_directory: Directory) -> None:
    assert actions(make_plan(run_directory)) == dict.fromkeys(
        ("traits", "prompts", "pairs"), Action.RUN
    )
    assert not run_directory.local_path.exists()


def test_what_was_made_is_skipped_and_the_rest_is_run(run_directory: Directory) -> None:
    run(run_directory, until="prompts")
    assert actions(make_plan(run_directory)) == {
        "traits": Action.SKIP,
        "prompts": Action.SKIP,
        "pairs": Action.RUN,
    }


def test_a_stage_that_is_gone_refuses_those_that_were_made_of_it(
    run_directory: Directory,
) -> None:
    stages = (*STAGES, stage("report", "pairs"))
    run(run_directory, stages)
    run_directory.delete("prompts")
    steps = make_plan(run_directory, stages)
    assert actions(steps) == {
        "traits": Action.SKIP,
        "prompts": Action.RUN,
        "pairs": Action.REFUSE,
        "report": Action.REFUSE,
    }
    before = snapshot(run_directory.local_path)
    with pytest.raises(ArtifactError) as caught:
        pipeline.check_plan(steps, run_directory, code_version=VERSION)
    said = str(caught.value)
    assert "inputs.prompts: it is to be made again, and may differ" in said
    assert "Stages that would not match: pairs, report." in said
    assert "move those directories away" in said
    assert snapshot(run_directory.local_path) == before
    # As it advises.
    for name in ("pairs", "report"):
        run_directory.delete(name)
    run(run_directory, stages)
    assert set(actions(make_plan(run_directory, stages)).values()) == {Action.SKIP}


def test_a_stage_whose_input_is_to_be_resumed_is_refused(run_directory: Directory) -> None:
    run(run_directory)
    run_directory.delete("prompts/manifest.json")
    (identity,) = [
        step.identity for step in make_plan(run_directory) if step.stage.name == "prompts"
    ]
    artifacts.begin(run_directory.child("prompts"), identity)
    assert actions(make_plan(run_directory)) == {
        "traits": Action.SKIP,
        "prompts": Action.RESUME,
        "pairs": Action.REFUSE,
    }
    # Alone it is not made again.
    assert actions(make_plan(run_directory, only="pairs")) == {"pairs": Action.SKIP}


def test_a_change_refuses_the_stage_and_all_below_it(run_directory: Directory) -> None:
    run(run_directory)
    steps = make_plan(run_directory, CHANGED)
    assert actions(steps) == {
        "traits": Action.SKIP,
        "prompts": Action.REFUSE,
        "pairs": Action.REFUSE,
    }
    assert steps[1].reasons == ("config.seed: this run asks for 2, there is 1",)
    assert [reason.split(":")[0] for reason in steps[2].reasons] == ["inputs.prompts"]


def test_how_a_stage_runs_does_not_count(run_directory: Directory) -> None:
    run(run_directory)
    elsewhere = [replace(each, resolved_config={"resources": {"gpus": 0}}) for each in STAGES]
    assert set(actions(make_plan(run_directory, elsewhere)).values()) == {Action.SKIP}


def test_a_refusal_names_stage_setting_values_and_ways_out(run_directory: Directory) -> None:
    run(run_directory)
    before = snapshot(run_directory.local_path)
    with pytest.raises(ArtifactError) as caught:
        run(run_directory, CHANGED, fail)
    said = str(caught.value)
    assert f"{run_directory.uri}/prompts was made with other settings" in said
    assert "config.seed: this run asks for 2, there is 1" in said
    assert "Stages that would not match: prompts, pairs." in said
    assert "Nothing was changed. Stages" in said
    for way_out in ("that it was made with", "another run.dir", "move those directories"):
        assert way_out in said
    assert snapshot(run_directory.local_path) == before


def test_a_refusal_names_the_code_that_made_the_artifact_where_it_is_another(
    run_directory: Directory,
) -> None:
    run(run_directory)
    steps = make_plan(run_directory, CHANGED)
    with pytest.raises(ArtifactError, match=f"made by version {VERSION} and this is 0.2.0"):
        pipeline.check_plan(steps, run_directory, code_version="0.2.0")


def test_a_plan_without_refusals_passes(run_directory: Directory) -> None:
    pipeline.check_plan(make_plan(run_directory), run_directory, code_version=VERSION)


def test_a_stage_that_raises_is_no_artifact_and_is_resumed(run_directory: Directory) -> None:
    with pytest.raises(RuntimeError, match="traits broke"):
        run(run_directory, implementation=fail)
    traits = run_directory.child("traits")
    assert artifacts.read_manifest(traits) is None
    assert actions(make_plan(run_directory))["traits"] is Action.RESUME
    run(run_directory)
    assert traits.files() == ["manifest.json", "name.txt", "shard.txt"]
    assert set(actions(make_plan(run_directory)).values()) == {Action.SKIP}


def test_unfinished_work_of_other_settings_is_refused(run_directory: Directory) -> None:
    run(run_directory, until="traits")
    with pytest.raises(RuntimeError, match="prompts broke"):
        run(run_directory, implementation=fail)
    steps = make_plan(run_directory, CHANGED)
    assert actions(steps)["prompts"] is Action.REFUSE
    assert steps[1].reasons == ("config.seed: this run asks for 2, there is 1",)


def test_a_skipped_stage_is_not_run_again(run_directory: Directory) -> None:
    run(run_directory)
    before = snapshot(run_directory.local_path)
    steps = run(run_directory, implementation=fail)
    assert set(actions(steps).values()) == {Action.SKIP}
    assert snapshot(run_directory.local_path) == before


def test_an_artifact_that_appeared_since_the_plan_is_not_made_again(
    run_directory: Directory,
) -> None:
    steps = make_plan(run_directory)
    run(run_directory)
    before = snapshot(run_directory.local_path)
    for step in steps:
        assert step.action is Action.RUN
        manifest = pipeline.execute(step, run_directory, fail, code_version=VERSION)
        assert manifest.fingerprint == step.identity.fingerprint
    assert snapshot(run_directory.local_path) == before


def test_an_artifact_of_another_run_that_appeared_since_the_plan_is_not_overwritten(
    run_directory: Directory,
) -> None:
    steps = make_plan(run_directory, CHANGED)
    run(run_directory)
    before = snapshot(run_directory.local_path)
    pipeline.execute(steps[0], run_directory, fail, code_version=VERSION)
    with pytest.raises(ArtifactError) as caught:
        pipeline.execute(steps[1], run_directory, fail, code_version=VERSION)
    said = str(caught.value)
    assert f"{run_directory.uri}/prompts: expected no artifact or the one of this run" in said
    assert "config.seed: this run asks for 2, there is 1" in said
    assert "another run.dir" in said
    assert snapshot(run_directory.local_path) == before


def test_a_skipped_stage_with_a_lost_file_is_named(run_directory: Directory) -> None:
    run(run_directory)
    run_directory.delete("prompts/name.txt")
    with pytest.raises(ArtifactError, match=r"prompts/name\.txt is missing"):
        run(run_directory)


def test_an_artifact_says_what_it_was_made_of_and_with(run_directory: Directory) -> None:
    run(run_directory)
    manifests = {
        each.name: artifacts.require(run_directory.child(each.name), each.name) for each in STAGES
    }
    prompts, pairs = manifests["prompts"], manifests["pairs"]
    assert pairs.identity.inputs == {
        "prompts": prompts.fingerprint,
        "traits": manifests["traits"].fingerprint,
    }
    assert pairs.summary == {"inputs": ["prompts", "traits"]}
    assert prompts.identity.config == {"seed": 1, "model": {"path": "tiny"}}
    assert prompts.resolved_config["resources"] == {"gpus": 8}
    assert prompts.code_version == VERSION
    assert prompts.wall_seconds >= 0


def test_an_implementation_reads_its_inputs_where_they_are(run_directory: Directory) -> None:
    seen = {}

    def read_inputs(work: Work) -> Outcome:
        for name, (directory, manifest) in work.inputs.items():
            seen[work.stage.name, name] = directory.read_bytes(manifest.files[0].name)
        return write_name(work)

    run(run_directory, implementation=read_inputs)
    assert seen == {
        ("prompts", "traits"): b"traits",
        ("pairs", "prompts"): b"prompts",
        ("pairs", "traits"): b"traits",
    }


def test_only_runs_one_stage_on_what_is_there(run_directory: Directory) -> None:
    run(run_directory, until="prompts")
    assert actions(run(run_directory, only="pairs")) == {"pairs": Action.RUN}
    assert set(actions(make_plan(run_directory)).values()) == {Action.SKIP}


def test_only_with_an_input_that_is_missing_names_it(run_directory: Directory) -> None:
    run(run_directory, until="traits")
    with pytest.raises(ArtifactError, match=r"no prompts artifact in .*/run/prompts: manifest"):
        run(run_directory, only="pairs")
    assert not run_directory.exists("pairs")


def test_only_with_an_input_of_other_settings_names_it(run_directory: Directory) -> None:
    run(run_directory, until="prompts")
    with pytest.raises(ArtifactError) as caught:
        run(run_directory, CHANGED, only="pairs")
    said = str(caught.value)
    assert f"{run_directory.uri}/prompts was made with other settings than this run asks" in said
    assert "'seed': 1" in said
    assert not run_directory.exists("pairs")


@pytest.mark.parametrize(
    ("only", "until", "expected"),
    [
        (None, None, ["traits", "prompts", "pairs"]),
        ("prompts", None, ["prompts"]),
        (None, "traits", ["traits"]),
        (None, "pairs", ["traits", "prompts", "pairs"]),
    ],
)
def test_select(only: str | None, until: str | None, expected: list[str]) -> None:
    assert pipeline.select(STAGES, only=only, until=until) == expected


def test_until_leaves_out_what_its_stage_is_not_made_of() -> None:
    stages = (
        stage("traits"),
        stage("prompts", "traits"),
        stage("pairs", "traits"),
        stage("models", "pairs"),
        stage("report", "prompts", "models"),
    )
    assert pipeline.select(stages, only=None, until="models") == ["traits", "pairs", "models"]
    assert pipeline.select(stages, only=None, until="pairs") == ["traits", "pairs"]
    assert pipeline.select(stages, only=None, until="report") == [each.name for each in stages]


Define = Callable[..., list[Stage]]


@pytest.fixture(name="defined")
def stages_of_a_run(smoke_config: RunConfig) -> Define:
    """The stages of the smoke experiment with other settings of pairs."""

    def defined(**changes: Any) -> list[Stage]:
        section = smoke_config.pairs.model_copy(update=changes)
        config = smoke_config.model_copy(update={"pairs": section})
        trait = Trait(id="honest", statement="I tell the truth.")
        constitution = Constitution(name="small", description="One trait.", traits=(trait,))
        return define(config, constitution, lambda path: {"name": path})

    return defined


def test_until_a_stage_is_all_before_it_where_pairs_are_of_rankings(
    defined: Define, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("{}\n")
    for stages in (defined(), defined(file=str(path))):
        for index, name in enumerate(NAMES):
            chosen = pipeline.select(stages, only=None, until=name)
            assert chosen == list(NAMES[: index + 1])


def test_until_the_preference_model_of_the_researchers_own_pairs_is_three_stages(
    defined: Define, tmp_path: Path
) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text("{}\n")
    stages = defined(file=str(path), file_use="replace")
    chosen = pipeline.select(stages, only=None, until="preference_model")
    assert chosen == ["traits", "pairs", "preference_model"]
    # What comes after needs prompts all the same.
    assert pipeline.select(stages, only=None, until="policy") == list(NAMES[:7])
    sizes = {each.name: each.size for each in stages}
    assert sizes["pairs"] == "as many pairs as pairs.file has"
    assert sizes["preference_model"].endswith(" over as many pairs as pairs.file has")
    assert sizes["preference_model"].startswith("1 model")
    assert "of warm start, " in sizes["policy"]
    joined = {each.name: each.size for each in defined(file=str(path))}
    assert joined["pairs"].endswith(" pairs and those of pairs.file")


def test_size_of_the_evaluation_counts_all_its_replies(defined: Define) -> None:
    size = next(each.size for each in defined() if each.name == "evaluation")
    total, *parts = (int(number) for number in re.findall(r"(\d+) (?!arms)", size))
    assert total == sum(parts)
    for words in ("of 3 arms: ", " on held-out prompts, ", " in probes, ", " to free choices"):
        assert words in size, size


def test_evaluation_is_of_the_contents_of_its_probes(
    smoke_config: RunConfig, tmp_path: Path
) -> None:
    def identity(text: str, directory: str = "here") -> Any:
        path = tmp_path / directory / "own.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        evaluation = smoke_config.evaluation
        probes = evaluation.probes.model_copy(update={"files": (str(path),)})
        evaluation = evaluation.model_copy(update={"probes": probes})
        config = smoke_config.model_copy(update={"evaluation": evaluation})
        trait = Trait(id="honest", statement="I tell the truth.")
        constitution = Constitution(name="small", description="One trait.", traits=(trait,))
        stages = define(config, constitution, lambda path: {"name": path})
        return {each.name: each for each in stages}["evaluation"].identity_config

    item = '{"probe": "farewell", "id": "%s", "farewell": "Bye."}\n'
    here = identity(item % 1 + item % 2)
    assert identity(item % 1 + item % 2, "there") == here
    assert identity(item % 1 + item % 3) != here
    assert "are_you_sure" in here["contents of probes"]


def test_pairs_are_those_of_the_files_contents_wherever_it_is(
    defined: Define, tmp_path: Path
) -> None:
    def identity(name: str, text: str) -> Any:
        (tmp_path / name).write_text(text)
        stages = {each.name: each for each in defined(file=str(tmp_path / name))}
        return stages["pairs"].identity_config

    here = identity("here.jsonl", "{}\n")
    assert identity("there.jsonl", "{}\n") == here
    assert identity("here.jsonl", "{} \n") != here
    assert "file" not in here["pairs"]
    plain = {each.name: each for each in defined()}["pairs"]
    assert plain.inputs == ("traits", "responses", "rankings")
    assert plain.identity_config["contents of pairs.file"] is None


@pytest.mark.parametrize(
    ("only", "until", "message"),
    [
        ("prompt", None, "run.only: no stage 'prompt'; expected one of traits, prompts, pairs"),
        (None, "end", "run.until: no stage 'end'; expected one of traits, prompts, pairs"),
        ("pairs", "pairs", "run.only and run.until exclude each other; give one of them"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(
    run_directory: Directory, only: str | None, until: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(run_directory, only=only, until=until)
    assert str(caught.value) == message


def test_a_run_in_an_object_store_is_planned_and_skipped_alike(
    open_s3: Callable[[str], Directory],
) -> None:
    directory = open_s3("pipeline")
    with pytest.raises(RuntimeError, match="traits broke"):
        run(directory, implementation=fail)
    assert actions(make_plan(directory))["traits"] is Action.RESUME
    run(directory)
    assert set(actions(make_plan(directory)).values()) == {Action.SKIP}
    with pytest.raises(ArtifactError, match="s3://bucket/pipeline/prompts was made with other"):
        run(directory, CHANGED)


@pytest.mark.parametrize(
    ("objective", "idle", "decisive"),
    [
        ("dpo", "policy.group_size=3", "policy.objective.beta=0.3"),
        ("dpo", "policy.kl.coef=0.7", "policy.num_steps=5"),
        ("best_of_n", "policy.max_staleness=3", "policy.group_size=3"),
        ("grpo", "policy.resources.engines=1", "policy.max_staleness=3"),
    ],
)
def test_settings_that_an_objective_does_without_are_no_identity_of_its_policy(
    compose: Any, objective: str, idle: str, decisive: str
) -> None:
    def policy(*overrides: str) -> Stage:
        config = validate(compose("experiment=smoke", f"objective={objective}", *overrides))
        trait = Trait(id="honest", statement="I tell the truth.")
        constitution = Constitution(name="small", description="One trait.", traits=(trait,))
        stages = define(config, constitution, lambda path: {"name": path})
        return next(stage for stage in stages if stage.name == "policy")

    plain = policy()
    assert policy(idle).identity_config == plain.identity_config
    assert policy(decisive).identity_config != plain.identity_config
    # Whatever is learnt, adapters learn another thing of it.
    adapted = policy("policy.lora={rank: 4, alpha: 8}")
    assert adapted.identity_config["policy"]["lora"] == {"rank": 4, "alpha": 8}
    assert plain.identity_config["policy"]["lora"] is None
    learnt_from = "pairs" if objective == "dpo" else "preference_model"
    assert plain.inputs[-1] == learnt_from


def test_an_ablation_is_another_run_from_the_pairs_on_and_shares_what_comes_before(
    compose: Any,
) -> None:
    def fingerprints(*overrides: str) -> dict[str, str]:
        config = validate(compose("experiment=smoke", *overrides))
        traits = tuple(Trait(id=name, statement=f"I am {name}.") for name in ("warm", "calm"))
        constitution = Constitution(name="small", description="Two traits.", traits=traits)
        stages = define(config, constitution, lambda path: {"name": path})
        found = pipeline.identities(stages)
        return {name: identity.fingerprint for name, identity in found.items()}

    whole, without = fingerprints(), fingerprints("ablate=[warm]")
    changed = {name for name in whole if whole[name] != without[name]}
    assert changed == {"pairs", "preference_model", "policy", "evaluation", "report"}
    assert fingerprints("ablate=[calm,warm]") == fingerprints("ablate=[warm,calm]")
