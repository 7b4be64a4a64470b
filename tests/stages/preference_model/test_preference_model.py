"""Which models are trained, on which labels, and what stops a policy that would learn from them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from charactertrain.artifacts import Manifest
from charactertrain.config import PreferenceModelSection, RunConfig
from charactertrain.exceptions import TrainingError
from charactertrain.models.packing import PromptGroup
from charactertrain.pipeline import Work
from charactertrain.stages.context import Context
from charactertrain.stages.policy import stage as policy
from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.loop import Member
from charactertrain.stages.preference_model.stage import GOLD, _Data, _members
from charactertrain.stages.preference_model.step import RankedPair, RankedPrompt


def example(name: str) -> Example:
    group = PromptGroup((1, 2), ((3,), (4,), (5,)))
    pairs = tuple(
        RankedPair(better, worse, label, 1 / 3, 0.0)
        for better, worse, label in ((0, 1, 0.9), (0, 2, 0.8), (1, 2, 0.6))
    )
    return Example(
        ranked=RankedPrompt(name, "warm", group, pairs, (1.0, 0.0, -1.0)),
        family=name,
        split="train",
        texts=("a", "b", "c"),
        response_ids=(f"{name}a", f"{name}b", f"{name}c"),
        lengths=(1, 1, 1),
        variants=("none", "mild", "strong"),
    )


TRAINED = [example(f"p{number}") for number in range(20)]
OF_GOLD = [example(f"g{number}") for number in range(5)]


def members(config: RunConfig, **changes: Any) -> dict[str, Member]:
    section = cast(PreferenceModelSection, config.preference_model.model_copy(update=changes))
    data = _Data(TRAINED, OF_GOLD, [], [], [], 0)
    return {member.name: member for member in _members(data, section, seed=7)}


def test_members_of_an_ensemble_differ_by_their_seed_and_gold_by_its_prompts_too(
    smoke_config: RunConfig,
) -> None:
    found = members(smoke_config, ensemble=3, gold_share=0.5)
    assert list(found) == ["model", "model-1", "model-2", GOLD]
    assert len({member.seed for member in found.values()}) == 4
    for name in ("model", "model-1", "model-2"):
        assert [p.prompt_id for p in found[name].prompts] == [e.ranked.prompt_id for e in TRAINED]
    assert {prompt.prompt_id for prompt in found[GOLD].prompts} == {f"g{n}" for n in range(5)}
    assert GOLD not in members(smoke_config, ensemble=1, gold_share=0.0)


def test_a_placebo_is_trained_on_labels_that_were_handed_out_anew(smoke_config: RunConfig) -> None:
    ranked = members(smoke_config, labels="ranked")["model"].prompts
    assert list(ranked) == [e.ranked for e in TRAINED]
    placebo = members(smoke_config, labels="shuffled")
    changed = [
        prompt.utilities != own.ranked.utilities
        for prompt, own in zip(placebo["model"].prompts, TRAINED, strict=True)
    ]
    assert sum(changed) > 10
    # The gold model's too, or it would tell the placebo from nothing.
    assert any(p.utilities != (1.0, 0.0, -1.0) for p in placebo[GOLD].prompts)


@pytest.mark.parametrize("despite", [False, True])
def test_a_policy_is_not_trained_on_a_model_that_fails_its_gates(
    smoke_config: RunConfig, tmp_path: Path, despite: bool
) -> None:
    row = {"estimate": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    summary = {
        "accuracy_by_trait": {"warm": {**row, "above_length": {**row, "estimate": 0.2}}},
        "after_temperature": {"ece": 0.01, "ece_ci_low": 0.0, "ece_ci_high": 0.02},
    }
    manifest = cast(Manifest, SimpleNamespace(summary=summary))
    work = cast(Work, SimpleNamespace(inputs={"preference_model": (tmp_path, manifest)}))
    section = smoke_config.policy.model_copy(update={"despite_gates": despite})
    config = smoke_config.model_copy(update={"policy": section})
    context = cast(Context, SimpleNamespace(config=config))
    if despite:
        policy._check_gates(work, context)
        return
    with pytest.raises(TrainingError, match="does not pass its gates"):
        policy._check_gates(work, context)
