"""The model card: front matter that the Hub reads, and the numbers with their intervals."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from charactertrain.report.model_card import render
from charactertrain.report.view import ReportView


def _front_matter(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_front_matter_has_what_the_hub_reads(view: ReportView) -> None:
    hub = replace(view, run=replace(view.run, model_path="org/SmolLM2-135M-Instruct"))
    found = _front_matter(render(hub))
    assert found["license"] == "other"
    assert found["base_model"] == "org/SmolLM2-135M-Instruct"
    assert "charactertrain" in found["tags"]
    assert found["pipeline_tag"] == "text-generation"


@pytest.mark.parametrize("path", ["embedded:smollm2_135m", "/models/smollm2", None])
def test_a_model_that_is_not_on_the_hub_is_no_link(view: ReportView, path: str | None) -> None:
    card = render(replace(view, run=replace(view.run, model_path=path)))
    assert "base_model" not in _front_matter(card)
    assert f"Base model: `{path or view.run.model_name}`" in card


def test_results_parse_as_the_hubs_with_their_intervals(view: ReportView) -> None:
    card = render(view)
    name, results = model_index_to_eval_results(_front_matter(card)["model-index"])
    assert name == "SmolLM2-135M-Instruct, demo"
    first = results[0]
    assert (first.dataset_name, first.metric_type) == (
        "held-out prompts about enthusiastic",
        "contrast",
    )
    assert first.metric_value == pytest.approx(0.314)
    assert first.metric_args
    assert first.metric_args["ci_low"] == pytest.approx(0.28)
    assert first.metric_args["ci_high"] == pytest.approx(0.348)
    assert len(results) == sum(len(trait.effects) for trait in view.traits)
    # Refuses front matter that the Hub would.
    assert "license: other" in str(ModelCard(card).data)


def test_card_says_what_changed_what_failed_and_what_is_not_known(view: ReportView) -> None:
    card = render(view)
    for words in (
        "shows 2 of 4 traits more than its base",
        "| enthusiastic: contrast | -0.231 | 0.083 | +0.314 [0.280, 0.348] | higher |",
        "| honest: contrast | -0.152 | -0.148 | +0.004 [-0.025, 0.033] | not established |",
        "- fail: distinct bigrams as a share of the base's, at least 0.9; 0.826 [0.797, 0.856]",
        "- not measured: win rate at equal length",
        "Controls that were not compared: neutral, placebo.",
        "are of these weights, one run with one seed",
    ):
        assert words in card, words


def test_card_says_what_other_seeds_were_tried(view: ReportView) -> None:
    card, alone = render(view), render(replace(view, over_seeds=None))
    assert "What 2 runs that differ by seed alone have in common" in card
    row = "| enthusiastic: contrast | -0.231 | 0.061 | +0.292 [0.175, 0.409] | higher |"
    assert row in card.partition("## Over 2 seeds")[2]
    assert "says nothing of another seed" in alone
    for words in ("says nothing of another seed", "seed alone", "## Over"):
        assert (words in card) != (words in alone), words


def test_text_of_a_model_or_user_stays_text(view: ReportView) -> None:
    hostile = "x\n---\n# <script>[a](b) | `c`"
    trait = replace(view.traits[0], trait_id=hostile, statement=hostile)
    run = replace(view.run, model_name=hostile, constitution_name=hostile)
    card = render(replace(view, run=run, traits=(trait,)))
    body = card.split("---\n", 2)[2]
    assert "\n---" not in body
    assert "<script>" not in body.replace("\\<script\\>", "")
    assert "[a](b)" not in body
    name, _ = model_index_to_eval_results(_front_matter(card)["model-index"])
    assert name == "x --- # <script>[a](b) | `c`, x --- # <script>[a](b) | `c`"
