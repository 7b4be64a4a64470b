"""What the model card says of how a policy was made."""

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from charactertrain.config import RunConfig, validate
from charactertrain.stages.report.method import method

CONF = str(Path(__file__).resolve().parents[3] / "conf")


def made_with(*overrides: str) -> str:
    with initialize_config_dir(CONF, version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    config: RunConfig = validate(composed)
    return method(config)


def test_a_plain_run_is_the_whole_loop() -> None:
    assert made_with() == (
        "The model wrote messages for which each trait matters. It wrote several responses to each "
        "while it was shown the traits, and ranked its own responses by how well they fit them. A "
        "preference model was trained on those comparisons, and the policy was optimised against "
        "it, with no trait in its prompt."
    )


@pytest.mark.parametrize(
    ("overrides", "said", "unsaid"),
    [
        (["objective=dpo"], "direct preference optimisation", "A preference model"),
        (["objective=best_of_n"], "the best of several responses by it", "optimised against"),
        (["experiment=neutral"], "without being shown any trait", "while it was shown"),
        (["experiment=placebo"], "with their labels shuffled", "optimised against it with"),
        (["rankings.judge_model=other"], "other ranked the responses", "its own responses"),
        (["pairs.reviews=reviews"], "People corrected some of the rankings.", "own comparisons"),
        (["pairs.file=a.jsonl"], "A researcher's own comparisons were added.", "People"),
        (["pairs.file=a.jsonl", "pairs.file_use=replace"], "are a researcher's own.", "ranked"),
        (["prompts.file=a.jsonl", "prompts.file_use=replace"], "The messages are", "model wrote"),
        (["ablate=[curious]"], "Left out of the training: curious.", "control"),
    ],
)
def test_what_a_run_did_otherwise_is_said(overrides: list[str], said: str, unsaid: str) -> None:
    text = made_with(*overrides)
    assert said in text
    assert unsaid not in text
