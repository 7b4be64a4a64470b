"""Which prompts and responses a policy is trained on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Manifest, Outcome
from charactertrain.config import RunConfig
from charactertrain.pipeline import Work
from charactertrain.records import Prompt, Ranking, Response, to_table
from charactertrain.stages.context import Context
from charactertrain.stages.policy.inputs import _best_responses, fitting_prompts
from charactertrain.storage import Directory, open_directory

PROMPTS = [
    Prompt("p1", "warm", "f1", "trait", "Tea?", "train"),
    Prompt("p2", "curious", "f2", "trait", "Rain?", "train"),
    Prompt("p3", "curious", "f3", "trait", "Snow?", "validation"),
    Prompt("p4", "warm", "f4", "trait", "word " * 3000, "train"),
]
GENERAL = [Prompt("g1", "general", "f9", "general", "What is 2 + 2?", "train")]


def response(prompt: Prompt, name: str, token: int) -> Response:
    origin = (prompt.prompt_id, prompt.trait_id, prompt.family, prompt.split, prompt.text)
    return Response(
        f"{prompt.prompt_id}{name}", *origin, "mild", 0, name, (token,), (-1.0,), -1.0, "stop"
    )


def ranking(prompt: Prompt) -> Ranking:
    return Ranking(
        prompt_id=prompt.prompt_id,
        trait_id=prompt.trait_id,
        split=prompt.split,
        response_ids=(f"{prompt.prompt_id}b", f"{prompt.prompt_id}a"),
        utilities=(1.0, -1.0),
        pair_probabilities=(0.9,),
        num_tokens=(1, 1),
        method="judge",
        swap_consistency=None,
        cyclic_triads=None,
        split_half=None,
        opinions=(),
        prompt_tokens=1,
        cached_tokens=0,
    )


@pytest.fixture(name="work")
def work_on_two_traits(tmp_path: Path) -> Work:
    def artifact(name: str, **tables: Any) -> tuple[Directory, Manifest]:
        directory = open_directory(str(tmp_path / name))
        for table, rows in tables.items():
            directory.write_table(f"{table}/part-000000.parquet", rows)
        files = tuple(f"{table}/part-000000.parquet" for table in tables)
        identity = Identity(name, {}, {})
        manifest = artifacts.commit(
            directory, identity, Outcome(files), resolved_config={}, code_version="", wall_seconds=0
        )
        return directory, manifest

    ranked = PROMPTS[:3]
    responses = [response(p, n, t) for p in ranked for n, t in (("a", 5), ("b", 6))]
    inputs = {
        "prompts": artifact(
            "prompts", prompts=to_table(PROMPTS, Prompt), general=to_table(GENERAL, Prompt)
        ),
        "responses": artifact("responses", responses=to_table(responses, Response)),
        "rankings": artifact("rankings", rankings=to_table(map(ranking, ranked), Ranking)),
    }
    return cast(Work, SimpleNamespace(inputs=inputs))


def context(config: RunConfig, model: Path, *ablate: str) -> Context:
    changed = config.model_copy(update={"ablate": ablate})
    return cast(Context, SimpleNamespace(config=changed, model_directory=model))


def test_prompts_that_leave_no_room_are_left_out_and_counted(
    work: Work, smoke_config: RunConfig, tiny_model: Path
) -> None:
    found, num_too_long = fitting_prompts(work, context(smoke_config, tiny_model))
    assert [prompt.prompt_id for prompt in found] == ["p1", "p2", "p3", "g1"]
    assert num_too_long == 1


def test_a_trait_that_is_ablated_gives_neither_prompts_nor_responses(
    work: Work, smoke_config: RunConfig, tiny_model: Path
) -> None:
    without = context(smoke_config, tiny_model, "curious")
    found, _ = fitting_prompts(work, without)
    assert [prompt.prompt_id for prompt in found] == ["p1", "g1"]
    assert len(_best_responses(work, without)) == 1


def test_the_warm_start_is_on_the_best_response_of_every_training_prompt(
    work: Work, smoke_config: RunConfig, tiny_model: Path
) -> None:
    groups = _best_responses(work, context(smoke_config, tiny_model))
    assert [list(map(list, group.responses)) for group in groups] == [[[6]], [[6]]]
