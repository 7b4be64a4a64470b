"""All probes of a run, from held-out prompts to results, with jobs that run in this process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from charactertrain.config import RunConfig
from charactertrain.config.evaluation import ProbeName
from charactertrain.pipeline import Work
from charactertrain.records import Prompt, Reject, Script, ScriptReply, Trait, from_table, to_table
from charactertrain.runtime.dataflow import ChunkJob, Produced, chunk_name
from charactertrain.runtime.fake_sampler import FakeSource
from charactertrain.stages.context import Context
from charactertrain.stages.evaluation import probing
from charactertrain.storage import Directory, open_directory

TRAITS = {
    "warm": Trait("warm", "I am warm.", (), "the", 1.0, "small"),
    "curious": Trait("curious", "I ask how.", (), None, 1.0, "small"),
}
PROMPTS = [
    Prompt(f"{trait}{n}", trait, "", "trait", f"Is {trait} {n} so?", "test")
    for trait in (*TRAITS, "general")
    for n in range(4)
]
ALL = list(get_args(ProbeName))


@dataclass
class HereSession:
    """Runs jobs in this process, chunk after chunk; what is there is not made again."""

    made: list[str] = field(default_factory=list)

    def run(self, job: ChunkJob) -> Produced:
        """Files of results and rejects."""
        processor = job.make_processor(job.sampler.open())
        files, reject_files, num_rows = [], [], 0
        for chunk in job.source.chunks(50):
            name = chunk_name(job.table, chunk.index)
            if not job.target.exists(name):
                rows, rejects = processor.process(job.source.read(chunk))
                job.target.write_table(name, to_table(rows, job.result_type))
                if rejects:
                    job.target.write_table(f"rejects/{name}", to_table(rejects, Reject))
                self.made.append(name)
            files.append(name)
            num_rows += job.target.num_rows(name)
            if job.target.exists(f"rejects/{name}"):
                reject_files.append(f"rejects/{name}")
        return Produced(tuple(files), tuple(reject_files), num_rows, {}, {})


def configured(config: RunConfig, names: list[str], files: tuple[str, ...] = ()) -> RunConfig:
    probes = config.evaluation.probes.model_copy(
        update={"names": tuple(names), "files": files, "prompts_per_trait": 3, "max_tokens": 12}
    )
    evaluation = config.evaluation.model_copy(update={"probes": probes, "num_resamples": 200})
    return config.model_copy(update={"evaluation": evaluation})


def run(config: RunConfig, directory: Directory, session: HereSession) -> list[str]:
    work = Work(cast(Any, None), cast(Any, None), directory, {})
    context = Context(config, cast(Any, None), cast(Any, session))
    source = FakeSource()
    samplers = {"base": source, "prompted": source, "policy": source}
    return probing.run_probes(work, context, PROMPTS, TRAITS, samplers, source)


def rows_of(directory: Directory, names: list[str]) -> list[ScriptReply]:
    found = [name for name in names if name.startswith("probe_replies/")]
    return [row for name in found for row in from_table(directory.read_table(name), ScriptReply)]


def test_every_probe_runs_in_every_arm_and_has_results(
    smoke_config: RunConfig, tmp_path: Path
) -> None:
    config, directory = configured(smoke_config, ALL), open_directory(str(tmp_path))
    names = run(config, directory, HereSession())
    replies = rows_of(directory, names)
    assert {reply.arm for reply in replies} == {"base", "prompted", "policy"}
    assert len({reply.sample_id for reply in replies}) == len(replies)
    found = probing.report(directory, names, config)
    assert sorted(found) == sorted(ALL)
    for probe in found.values():
        assert probe["rows"]
        assert probe["examples"]
        assert probe["left_out"] == {"prompted": 0, "policy": 0}
    # The policy is the base here, and draws with its seeds.
    effects = [row["arms"]["policy"] for probe in found.values() for row in probe["rows"]]
    assert all(effect["difference"] in (0.0, None) for effect in effects)
    assert [name for name, probe in found.items() if "flips" in probe] == ["paraphrase"]
    flips = found["paraphrase"]["flips"]
    assert {row["verdict"] for row in flips} == {"contrast_above_zero", "detected"}
    assert {row["trait_id"] for row in flips} == {None, "warm", "curious"}
    for row in flips:
        assert set(row["arms"]) == {"base", "prompted", "policy"}
        # Three prompts of each trait; only one trait has a detector.
        of_all = 6 if row["verdict"] == "contrast_above_zero" else 3
        expected = of_all if row["trait_id"] is None else 3
        assert {arm["num_prompts"] for arm in row["arms"].values()} == {expected}
        assert row["arms"]["base"] == row["arms"]["policy"]
    shown = [row["arms"]["prompted"] for row in found["dose"]["rows"]]
    assert any(effect["difference"] != 0.0 for effect in shown)


def test_prefill_gives_every_arm_the_bases_reply(smoke_config: RunConfig, tmp_path: Path) -> None:
    config, directory = configured(smoke_config, ["prefill"]), open_directory(str(tmp_path))
    replies = rows_of(directory, run(config, directory, HereSession()))
    plain = {r.cluster: r.text for r in replies if (r.probe, r.arm) == ("on_trait", "base")}
    given = [reply for reply in replies if reply.probe == "prefill"]
    assert {reply.arm for reply in given} == {"base", "prompted", "policy"}
    assert all(reply.messages[1].content == plain[reply.cluster] for reply in given)
    assert all(reply.turn == 1 for reply in given)


def test_dose_is_measured_on_the_runs_own_general_prompts_too(
    smoke_config: RunConfig, tmp_path: Path
) -> None:
    config, directory = configured(smoke_config, ["dose"]), open_directory(str(tmp_path))
    names = run(config, directory, HereSession())
    rows = probing.report(directory, names, config)["dose"]["rows"]
    measured = {(r["condition"], r["measure"], r["trait_id"]) for r in rows}
    for condition in ("plain", "held_out"):
        assert (condition, "contrast", "warm") in measured
        assert (condition, "contrast", "curious") in measured
        assert (condition, "detector_rate", "curious") not in measured


def test_file_of_ones_own_is_a_probe(smoke_config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "greetings.jsonl"
    path.write_text(
        '{"probe": "farewell", "id": "1", "farewell": "Bye."}\n'
        '{"probe": "farewell", "id": "2", "farewell": "See you."}\n'
    )
    config = configured(smoke_config, [], (str(path),))
    directory = open_directory(str(tmp_path / "run"))
    found = probing.report(directory, run(config, directory, HereSession()), config)
    assert list(found) == ["greetings"]
    assert found["greetings"]["title"] == "Farewells: greetings"
    assert {r["measure"] for r in found["greetings"]["rows"]} == {
        "discourages_leaving",
        "ends_with_hook",
    }


def test_no_probes_no_files(smoke_config: RunConfig, tmp_path: Path) -> None:
    config, directory = configured(smoke_config, []), open_directory(str(tmp_path))
    assert run(config, directory, HereSession()) == []
    assert probing.report(directory, [], config) == {}


@pytest.mark.parametrize("table", ["probe_prefill_drafts", "probe_replies"])
def test_what_is_lost_is_made_again_and_the_rest_is_not(
    table: str, smoke_config: RunConfig, tmp_path: Path
) -> None:
    config, directory = configured(smoke_config, ["prefill"]), open_directory(str(tmp_path))
    names = run(config, directory, HereSession())
    before = rows_of(directory, names)
    lost = f"{table}/part-000000.parquet"
    directory.delete(lost)
    again = HereSession()
    assert run(config, directory, again) == names
    assert again.made == [lost]
    assert rows_of(directory, names) == before


def test_scripts_are_rows_that_can_be_stored() -> None:
    script = Script("s", "p", "plain", "c", "warm", "", ("Well?",), (), ("refusal",), (), ())
    assert from_table(to_table([script], Script), Script) == [script]
