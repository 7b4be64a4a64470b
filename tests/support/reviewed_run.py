"""A run directory with every table that the review page shows, for its tests."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from charactertrain import artifacts
from charactertrain.artifacts import Identity, Manifest, Outcome
from charactertrain.records import (
    EvaluationSample,
    HeldOutReward,
    Message,
    Opinion,
    PreferencePair,
    Prompt,
    Ranking,
    Response,
    Trait,
    to_table,
)
from charactertrain.storage import Directory, open_directory

TRAITS = {
    "honest": "I tell the truth, gently where it hurts.",
    "curious": "I ask how things come to be.",
    "brief": "I say it in one line.",
}
HOSTILE = (
    "<script>document.title='hacked'</script>"
    '<img src=x onerror="document.title=1">'
    "\u202eright to left\x00\x1b[31m{{ 7 * 7 }}"
)
VARIANTS = ("none", "mild", "strong")
_ANSWERS = (
    "No, I think the blue one suits you better.",
    "It is lovely! You look wonderful in everything you wear, and I mean that.",
    "To tell the truth, the colour is a bit loud for the occasion, but the cut is good. Would you "
    "like me to say what I would change?",
)
_QUESTIONS = (
    "Do you like my scarf?",
    "My sister painted this and asked what I think. What should I say?",
    "Was the soup good?",
    "I have an exam tomorrow and have not learnt anything. Will I pass?",
)


def commit(
    run: Directory, stage: str, tables: Sequence[tuple[str, Any]], config: Any = None
) -> Manifest:
    """An artifact of the given tables."""
    directory = run.child(stage)
    for name, table in tables:
        directory.write_table(name, table)
    return artifacts.commit(
        directory,
        Identity(stage, config or {}, {}),
        Outcome(tuple(name for name, _ in tables)),
        resolved_config={},
        code_version="",
        wall_seconds=12.5,
    )


def constitution() -> dict[str, Any]:
    traits = [
        {"id": trait_id, "statement": statement, "facets": [], "weight": 1.0, "detector": None}
        for trait_id, statement in TRAITS.items()
    ]
    return {"name": "small", "description": "Three traits.", "traits": traits}


def prompt_row(index: int) -> Prompt:
    trait_id = tuple(TRAITS)[index % len(TRAITS)]
    return Prompt(
        prompt_id=f"p{index}",
        trait_id=trait_id,
        family=f"{trait_id}/f{index}",
        kind="trait",
        text=f"{_QUESTIONS[index % len(_QUESTIONS)]} ({index})",
        split="validation" if index % 4 == 3 else "train",
        facet="a gift",
    )


def response_rows(prompt: Prompt, texts: Sequence[str] = _ANSWERS) -> list[Response]:
    return [
        Response(
            response_id=f"{prompt.prompt_id}-{'bca'[number]}",
            prompt_id=prompt.prompt_id,
            trait_id=prompt.trait_id,
            family=prompt.family,
            split=prompt.split,
            prompt=prompt.text,
            variant=VARIANTS[number],
            phrasing=0,
            text=text,
            token_ids=(1, 2, 3),
            logprobs=(-0.5, -0.5, -0.5),
            sequence_logprob=-1.5,
            finish_reason="stop",
        )
        for number, text in enumerate(texts)
    ]


def ranking_row(responses: Sequence[Response], index: int) -> Ranking:
    ids = tuple(response.response_id for response in reversed(responses))
    probabilities = (0.55 + (index % 4) / 10, 0.9, 0.5 + (index % 5) / 10)
    return Ranking(
        prompt_id=responses[0].prompt_id,
        trait_id=responses[0].trait_id,
        split=responses[0].split,
        response_ids=ids,
        utilities=(1.2, 0.1, -1.3),
        pair_probabilities=probabilities,
        num_tokens=(3, 3, 3),
        method="contrast",
        swap_consistency=None,
        cyclic_triads=0.0,
        split_half=None,
        opinions=(Opinion("judge", (index % 4) / 3),) if index % 2 else (),
        prompt_tokens=10,
        cached_tokens=0,
    )


def pair_rows(ranking: Ranking, responses: Sequence[Response]) -> list[PreferencePair]:
    by_id = {response.response_id: response for response in responses}
    found = []
    for pair, probability in zip(
        combinations(ranking.response_ids, 2), ranking.pair_probabilities, strict=True
    ):
        chosen, rejected = (by_id[each] for each in pair)
        found.append(
            PreferencePair(
                pair_id="-".join(pair),
                prompt_id=ranking.prompt_id,
                trait_id=ranking.trait_id,
                family=chosen.family,
                split=ranking.split,
                prompt=(Message("user", chosen.prompt),),
                chosen=(Message("assistant", chosen.text),),
                rejected=(Message("assistant", rejected.text),),
                probability=probability,
                weight=1 / 3,
                margin=0.0,
                chosen_id=chosen.response_id,
                rejected_id=rejected.response_id,
                chosen_variant=chosen.variant,
                rejected_variant=rejected.variant,
                chosen_tokens=3,
                rejected_tokens=3,
            )
        )
    return found


def sample_row(index: int, arm: str) -> EvaluationSample:
    return EvaluationSample(
        sample_id=f"s{index}-{arm}",
        prompt_id=f"t{index}",
        trait_id="honest",
        kind="trait",
        arm=arm,
        prompt=f"Is my poem good? ({index})",
        text="It is wonderful!" if arm == "base" else "The second line limps; the rest is good.",
        num_tokens=9,
        finish_reason="stop",
        contrast=-0.1 if arm == "base" else 0.2,
        detected=arm != "base",
        reward=0.1 if arm == "base" else 1.4,
        gold_reward=None,
        kl=0.01,
    )


def commit_rewards(run: Directory, rewards: Mapping[str, Sequence[float]]) -> None:
    """The preference model's, by response, of each of its members."""
    rows = [
        HeldOutReward(response_id, response_id.partition("-")[0], "", tuple(values))
        for response_id, values in rewards.items()
    ]
    name = "held_out_rewards/part-000000.parquet"
    commit(run, "preference_model", [(name, to_table(rows, HeldOutReward))])


def make_run(path: Path, *, num_prompts: int = 12, per_file: int = 4) -> Directory:
    """A finished run but for its preference model, policy and report."""
    run = open_directory(str(path))
    traits = [Trait(key, text, (), None, 1.0, "small") for key, text in TRAITS.items()]
    config = {"constitution": constitution()}
    commit(run, "traits", [("traits/part-000000.parquet", to_table(traits, Trait))], config)
    prompts = [prompt_row(index) for index in range(num_prompts)]
    commit(run, "prompts", [("prompts/part-000000.parquet", to_table(prompts, Prompt))])
    parts: dict[str, list[tuple[str, Any]]] = {"responses": [], "rankings": [], "pairs": []}
    for number, start in enumerate(range(0, num_prompts, per_file)):
        groups = [response_rows(prompt) for prompt in prompts[start : start + per_file]]
        rankings = [ranking_row(group, start + i) for i, group in enumerate(groups)]
        pairs = [pair_rows(r, g) for r, g in zip(rankings, groups, strict=True)]
        rows: dict[str, tuple[list[Any], type]] = {
            "responses": ([row for group in groups for row in group], Response),
            "rankings": (rankings, Ranking),
            "pairs": ([pair for group in pairs for pair in group], PreferencePair),
        }
        for stage, (found, kind) in rows.items():
            parts[stage].append((f"{stage}/part-{number:06d}.parquet", to_table(found, kind)))
    for stage, tables in parts.items():
        commit(run, stage, tables)
    samples = [sample_row(index, arm) for index in range(3) for arm in ("base", "policy")]
    table = to_table(samples, EvaluationSample)
    commit(run, "evaluation", [("samples/part-000000.parquet", table)])
    return run
