"""The next run: reviews made in the page change its pairs exactly as entered, and only those."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from review_browser import Browser
from reviewed_run import TRAITS, prompt_row, ranking_row, response_rows
from rich.console import Console

from charactertrain import artifacts, pipeline
from charactertrain.__main__ import run as run_command
from charactertrain.artifacts import Outcome, read_manifest, read_rows
from charactertrain.config import RunConfig, validate
from charactertrain.constitution import Constitution
from charactertrain.exceptions import ArtifactError, ConfigError
from charactertrain.models.sources import model_identity
from charactertrain.records import (
    PreferencePair,
    Prompt,
    Ranking,
    Reject,
    Response,
    Trait,
    to_table,
)
from charactertrain.stages.definitions import define
from charactertrain.storage import open_directory
from charactertrain.trait_file import load_constitution

YAML = "name: small\ndescription: Three traits.\ntraits:\n" + "".join(
    f"  - id: {trait_id}\n    statement: {statement}\n" for trait_id, statement in TRAITS.items()
)


@dataclass(frozen=True)
class NextRun:
    """Runs the pairs stage by the command, on the responses and rankings of the reviewed run."""

    compose: Callable[..., Any]
    path: Path

    def config(self, name: str, *settings: str) -> RunConfig:
        constitution = self.path / "three.yaml"
        constitution.write_text(YAML)
        places = (f"run.dir={self.path / name}", f"constitution={constitution}")
        return validate(self.compose("experiment=smoke", "run.only=pairs", *places, *settings))

    def make(self, name: str, *settings: str) -> tuple[dict[str, PreferencePair], Any]:
        """The pairs by their two responses, and the manifest."""
        config = self.config(name, *settings)
        directory = open_directory(config.run.dir)
        constitution = load_constitution(config.constitution, shipped_dir=self.path / "none")
        self._commit_inputs(config, constitution)
        run_command(config, Console(quiet=True))
        pairs = directory.child("pairs")
        manifest = read_manifest(pairs)
        assert manifest is not None
        rows = read_rows(pairs, manifest, "pairs", PreferencePair)
        return {" ".join(sorted((p.chosen_id, p.rejected_id))): p for p in rows}, manifest

    def _commit_inputs(self, config: RunConfig, constitution: Constitution) -> None:
        prompts = [prompt_row(index) for index in range(12)]
        groups = [response_rows(prompt) for prompt in prompts]
        rankings = [ranking_row(group, index) for index, group in enumerate(groups)]
        tables = {
            "traits": to_table(
                [Trait(key, text, (), None, 1.0, "small") for key, text in TRAITS.items()], Trait
            ),
            "prompts": to_table(prompts, Prompt),
            "responses": to_table([row for group in groups for row in group], Response),
            "rankings": to_table(rankings, Ranking),
        }
        run = open_directory(config.run.dir)
        steps = pipeline.make_plan(
            define(config, constitution, model_identity), run, only=None, until="rankings"
        )
        for step in steps:
            name = step.stage.name
            file = f"{name}/part-000000.parquet"
            run.child(name).write_table(file, tables[name])
            artifacts.commit(
                run.child(name),
                step.identity,
                Outcome((file,)),
                resolved_config={},
                code_version="",
                wall_seconds=0,
            )


@pytest.fixture(name="next_run")
def next_run_maker(compose: Callable[..., Any], tmp_path: Path, tiny_model: Path) -> NextRun:
    return NextRun(compose, tmp_path)


def test_reviews_change_the_pairs_of_the_next_run_as_entered_and_only_those(
    browser: Browser, run: Any, next_run: NextRun
) -> None:
    before, plain = next_run.make("without")
    post = browser.post
    pair = {"prompt": "p1", "first": "p1-a", "second": "p1-b"}
    assert post("/verdict", nonce="1", answer="second", **pair).status_code == 303
    pair = {"prompt": "p4", "first": "p4-a", "second": "p4-c"}
    assert post("/verdict", nonce="2", answer="tie", **pair).status_code == 303
    pair = {"prompt": "p5", "first": "p5-a", "second": "p5-c"}
    assert post("/verdict", nonce="3", answer="neither", **pair).status_code == 303
    drop = {"verb": "drop", "prompt": "p2", "note": "rude"}
    assert post("/drop", nonce="4", response="p2-b", **drop).status_code == 303
    assert post("/drop", nonce="5", **(drop | {"prompt": "p7"})).status_code == 303
    assert post("/trait", nonce="6", trait="brief", statement="I am terse.").status_code == 303
    post("/export", nonce="7")
    after, reviewed = next_run.make("with", f"pairs.reviews={run.path('reviews')}")
    assert plain.fingerprint != reviewed.fingerprint
    for inputs in (plain.identity.inputs, reviewed.identity.inputs):
        assert inputs == plain.identity.inputs

    gone = {"p2-a p2-b", "p2-b p2-c", "p7-a p7-b", "p7-a p7-c", "p7-b p7-c"}
    assert before.keys() - after.keys() == gone
    judged = after.pop("p1-a p1-b")
    assert (judged.chosen_id, judged.rejected_id, judged.probability) == ("p1-b", "p1-a", 1.0)
    assert (judged.chosen, judged.rejected) == (
        before["p1-a p1-b"].rejected,
        before["p1-a p1-b"].chosen,
    )
    assert after.pop("p4-a p4-c").probability == 0.5
    # What is left of the prompt of a dropped response takes its whole weight.
    assert after.pop("p2-a p2-c").weight == pytest.approx(1.0)
    assert after == {key: before[key] for key in after}
    assert reviewed.rejects == {"reviewed_out": 5}
    rejects = read_rows(
        open_directory(f"{next_run.path}/with/pairs"), reviewed, "rejects/pairs", Reject
    )
    assert {each.detail for each in rejects} == {
        "response p2-b was dropped by Ada: rude",
        "its prompt was dropped by Ada: rude",
    }
    assert reviewed.summary["reviews"] == {
        "decisions": 4,
        "not_found": 0,
        "pairs_judged": 2,
        "pairs_turned_around": 1,
        "responses_left_out": 4,
    }
    # The export is the same events, and gives the same artifact.
    same, exported = next_run.make("export", f"pairs.reviews={run.path('reviews/reviews.parquet')}")
    assert exported.fingerprint == reviewed.fingerprint
    assert same == {**after, **{k: same[k] for k in ("p1-a p1-b", "p4-a p4-c", "p2-a p2-c")}}
    assert exported.files == reviewed.files


def test_new_reviews_are_another_run_s(browser: Browser, run: Any, next_run: NextRun) -> None:
    settings = ("with", f"pairs.reviews={run.path('reviews')}")
    _, first = next_run.make(*settings)
    # What is not about pairs leaves the pairs as they are.
    browser.post("/trait", nonce="1", trait="brief", statement="I am terse.")
    _, second = next_run.make(*settings)
    assert (second.fingerprint, second.created_at) == (first.fingerprint, first.created_at)
    pair = {"prompt": "p1", "first": "p1-a", "second": "p1-b"}
    browser.post("/verdict", nonce="2", answer="second", **pair)
    with pytest.raises(ArtifactError, match=r"contents of pairs\.reviews"):
        next_run.make(*settings)


def test_a_run_without_the_reviews_that_it_names_is_refused(next_run: NextRun) -> None:
    with pytest.raises(ConfigError, match=r"pairs\.reviews: there is no"):
        run_command(next_run.config("run", "pairs.reviews=/nowhere"), Console(quiet=True))
