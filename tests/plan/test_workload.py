"""Requests and tokens: counted by hand, against what stages ask, and against a real run."""

from typing import Any

import pytest

from charactertrain.plan.lengths import cut_short
from charactertrain.plan.workload import workload
from charactertrain.stages.counts import count
from charactertrain.stages.evaluation.size import replies_at_most

SIZES = (
    "experiment=smoke",
    "prompts.per_trait=100",
    "prompts.kinds.general=0",
    "policy.general_share=0",
)
"""300 prompts: 90 tested, 60 validated, 150 trained on; 3 responses of 16 tokens."""


def by_name(work: Any) -> dict[str, Any]:
    return {job.name: job for job in work.jobs}


def test_a_text_is_as_long_as_it_would_be_or_as_it_may_be() -> None:
    assert cut_short(300, 1e9) == pytest.approx(300)
    # Of 24 tokens nearly all are written; of twice the mean, 1 - e^-2 of it.
    assert cut_short(300, 24) == pytest.approx(23.06, abs=0.01)
    assert cut_short(300, 600) == pytest.approx(300 * 0.8647, abs=0.1)


def test_rows_are_those_that_the_stages_are_told_of(composed: Any) -> None:
    config, constitution, _ = composed(*SIZES)
    counts = count(config, constitution)
    assert (counts.wanted, counts.tested, counts.validated) == (300, 90, 60)
    assert (counts.answered, counts.trained) == (210, 150)
    assert (counts.responses, counts.pairs) == (630, 630)


def test_responses_are_written_for_all_prompts_that_are_not_held_out(composed: Any) -> None:
    work = workload(*composed(*SIZES))["responses"]
    assert sum(job.requests for job in work.jobs) == 630
    # Of a fixed length.
    assert work.tokens_written == 630 * 16
    plain, strong = by_name(work)["responses, none"], by_name(work)["responses, strong"]
    assert plain.length.common == 0
    # The trait, which stands before the message, is read once by all.
    assert strong.length.own == pytest.approx(plain.length.shown)
    assert strong.length.common > 10


@pytest.mark.parametrize(
    ("ranker", "name", "requests"),
    [
        # 210 prompts with 3 responses: each twice; 3 pairs in both orders; 6 orders; one by one.
        ("contrast", "contrast, plain", 210 * 3),
        ("judge", "judge", 210 * 3 * 2),
        ("judge_listwise", "judge_listwise", 210 * 6),
        ("rating", "rating", 210 * 3),
        # Counted as the first judge that it considers.
        ("auto", "judge", 210 * 3 * 2),
    ],
)
def test_rankers_ask_as_often_as_they_do(
    composed: Any, ranker: str, name: str, requests: int
) -> None:
    settings = (*SIZES, f"ranker={ranker}", "rankings.second_opinions=[]")
    jobs = workload(*composed(*settings))["rankings"].jobs
    job = next(job for job in jobs if job.name == name)
    assert job.requests == requests
    assert 0 < job.length.own < job.length.shown
    # Besides, the check on known pairs, of rankers that ask.
    checked = [job for job in jobs if job.requests < 210 and not job.name.startswith("contrast")]
    assert bool(checked) == (ranker != "contrast")


def test_a_judge_at_an_endpoint_takes_nothing_of_our_engines(composed: Any) -> None:
    endpoint = (
        "rankings.endpoint={base_url: 'http://judge:8000/v1', model: other, api_key_variable: null,"
        " max_in_flight: 1, timeout_seconds: 1, max_retries: 0}"
    )
    work = workload(*composed(*SIZES, "ranker=judge", endpoint))["rankings"]
    assert {job.name.partition(",")[0] for job in work.jobs} <= {"contrast"}


def test_the_preference_models_learn_from_their_shares(composed: Any) -> None:
    settings = (*SIZES, "preference_model.ensemble=2", "preference_model.epochs=3")
    work = workload(*composed(*settings, "preference_model.gold_share=0.4"))["preference_model"]
    model, gold, held_out = work.trained
    per_prompt = model.step.tokens_per_group
    # Of 150 prompts 60 % train each of two, and 40 % the gold model; 4 prompts a step.
    assert model.tokens == pytest.approx(2 * 3 * 90 * per_prompt)
    assert gold.tokens == pytest.approx(3 * 60 * per_prompt)
    assert (model.steps, gold.steps) == (2 * 3 * 23, 3 * 15)
    assert work.tokens_trained == pytest.approx(model.tokens + gold.tokens)
    # Two evaluations on half of 60, and all of them in the end, by each of three.
    assert held_out.tokens == pytest.approx(3 * (2 * 30 + 60) * per_prompt)
    # A prompt, and three responses of 16 tokens.
    assert per_prompt == pytest.approx(3 * 16 + model.step.context - 8)


def test_policy_steps_sample_score_and_train(composed: Any) -> None:
    work = workload(*composed(*SIZES))["policy"]
    online = work.online
    assert online is not None
    # Two steps of 4 prompts with 4 responses of 16 tokens, and readings before and after.
    assert (online.steps, online.readings) == (2, 2)
    assert online.sampled.tokens_written == 16 * 16
    assert online.scored.requests == 16
    assert online.trained.groups == 4
    prompt = online.sampled.length.shown
    assert online.trained.tokens_per_group == pytest.approx(prompt + 4 * 16)
    assert online.trained.predicted_share == pytest.approx(64 / (prompt + 64))
    # Forward and backward, and the reference.
    assert online.trained.passes.total == 4
    (warm_start,) = work.trained
    assert warm_start.steps == 38
    assert warm_start.tokens == pytest.approx(150 * (prompt + 16))


def test_each_objective_does_its_own_work(composed: Any) -> None:
    dpo = workload(*composed(*SIZES, "objective=dpo"))["policy"]
    assert dpo.online is None
    assert [part.name for part in dpo.trained] == ["warm start", "steps"]
    best = workload(*composed(*SIZES, "objective=best_of_n"))["policy"].online
    assert best is not None
    assert not best.sends_weights
    # One of the four is trained on, and a fixed ending wants the reference.
    assert best.trained.tokens_per_group == pytest.approx(best.sampled.length.shown + 16)
    assert best.trained.passes.total == 4


def test_adapters_and_recomputing_change_the_passes(composed: Any) -> None:
    settings = ("policy.lora={rank: 8, alpha: 16}", "policy.resources.recompute_activations=true")
    online = workload(*composed(*SIZES, *settings))["policy"].online
    assert online is not None
    assert online.trained.passes.total == 2 + 1 + 1


def test_replies_of_the_evaluation_are_those_that_its_size_names(composed: Any) -> None:
    config, constitution, section = composed(*SIZES)
    counts = count(config, constitution)
    work = workload(config, constitution, section)["evaluation"]
    replies = replies_at_most(
        config,
        [trait.id for trait in constitution.traits],
        num_tested=counts.tested,
        num_general=0,
    )
    written = sum(job.requests for job in work.jobs if job.written > 1)
    assert written == sum(replies.values())
    jobs = by_name(work)
    # Three arms with two replies each, and whether there is a gold model.
    assert jobs["contrast, plain"].requests == 3 * 90 * 2
    assert jobs["rewards"].requests == 2 * 3 * 90 * 2
    # Two prompts of each of three traits with each of them, scored as the arms' replies are.
    title = "with each trait shown"
    shown = jobs[f"replies {title}"]
    assert (shown.requests, shown.longest) == (replies[title], 16) == (18, 16)
    assert shown.length.common > 10
    for scored in (f"contrast {title}, with the trait", f"contrast {title}, plain"):
        assert jobs[scored].requests == 18
    assert jobs[f"rewards {title}"].requests == 2 * 18
    # Two arms against the base in both orders: 2 prompts of each trait, and 3 of none.
    assert jobs["judgements"].requests == 2 * 2 * 2 * 3
    assert jobs["judgements as answers"].requests == 2 * 2 * 3


def test_tokens_whose_log_probabilities_are_asked_for_pass_the_output_layer(composed: Any) -> None:
    settings = (*SIZES, "rankings.second_opinions=[judge]", "ranker=contrast")
    work = workload(*composed(*settings))
    jobs = [job for stage in work.values() for job in stage.jobs if job.written <= 1]
    scored = {job.name for job in jobs if job.predicted_share == 1}
    others = {job.name for job in jobs if job.predicted_share == 0}
    assert len(scored) + len(others) == len({job.name for job in jobs})
    assert all("contrast" in name or name == "readings of free choices" for name in scored)
    assert not any("contrast" in name for name in others)
    assert {"judge", "judgements", "rewards"} <= others


RECORDED = {
    "prompts": {"written": 4_748, "read": 48_256},
    "responses": {"written": 14_256, "read": 39_055},
    "rankings": {"read": 132_948},
    "preference_model": {"trained": 15_220},
    "policy": {"rollouts": 5_184},
    "evaluation": {"written": 37_582, "read": 377_002},
}
"""Tokens of `make demo` on 2026-11-28 (docs/results.md): of its engines' last lines in
metrics.jsonl, of the preference model's steps, and of the policy's. The checks of template and
rankers are not among them."""
DEMO = ("experiment=demo", "ranker=contrast", "plan.template_tokens=31")
"""SmolLM2's chat template has a system message of its own."""
WITHIN = 1.25
"""Either way: what the assumptions of lengths, of characters a token and of rejects are worth."""


@pytest.mark.parametrize(
    ("stage", "what"), [(stage, what) for stage, found in RECORDED.items() for what in found]
)
def test_tokens_of_the_demo_are_as_planned(composed: Any, stage: str, what: str) -> None:
    work = workload(*composed(*DEMO))[stage]
    jobs = [job for job in work.jobs if not _is_check(stage, job.name)]
    online = work.online
    rollouts = 0.0 if online is None else online.steps * online.sampled.tokens_written
    found = {
        "written": sum(job.tokens_written for job in jobs),
        "read": sum(job.tokens_read for job in jobs),
        "trained": work.tokens_trained,
        "rollouts": rollouts,
    }
    recorded = RECORDED[stage][what]
    assert recorded / WITHIN < found[what] < recorded * WITHIN


def _is_check(stage: str, job: str) -> bool:
    return stage == "prompts" and job != "messages"
