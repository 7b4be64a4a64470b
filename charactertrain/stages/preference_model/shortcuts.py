"""Does the preference model reward what makes a response no better? Edited held-out responses."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from charactertrain import chat
from charactertrain.models.packing import PromptGroup
from charactertrain.records import Trait
from charactertrain.seeds import derive_seed
from charactertrain.stages.preference_model.data import Example
from charactertrain.statistics.bootstrap import cluster_bootstrap_mean
from charactertrain.texts.shortcuts import EDITS

MAX_PROMPTS = 200
"""Of which responses are edited."""
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class EditedResponse:
    """A held-out response in every edit that its prompt has room for."""

    prompt_id: str
    place: int
    """Of the response among those of its prompt."""
    edits: tuple[str, ...]
    group: PromptGroup
    """The prompt, and the response in each of the edits."""


def edited_responses(
    examples: Sequence[Example],
    traits: Mapping[str, Trait],
    tokenizer: chat.Tokenizer,
    *,
    context_tokens: int,
    seed: int,
) -> list[EditedResponse]:
    """One response of each of up to `MAX_PROMPTS` prompts of traits, chosen by the seed."""
    about_traits = [example for example in examples if example.ranked.trait_id in traits]
    about_traits.sort(key=lambda e: derive_seed(seed, "edited", e.ranked.prompt_id))
    found = []
    for example in about_traits[:MAX_PROMPTS]:
        prompt = example.ranked.group.prompt_token_ids
        place = derive_seed(seed, "edited response", example.ranked.prompt_id) % len(example.texts)
        trait = traits[example.ranked.trait_id]
        edited = {
            name: tuple(chat.encode_response(edit(example.texts[place], trait), tokenizer))
            for name, edit in EDITS.items()
        }
        fitting = {
            name: ids for name, ids in edited.items() if len(prompt) + len(ids) <= context_tokens
        }
        if fitting:
            group = PromptGroup(prompt, tuple(fitting.values()))
            found.append(EditedResponse(example.ranked.prompt_id, place, tuple(fitting), group))
    return found


def effects(
    edited: Sequence[EditedResponse],
    edited_rewards: Sequence[Sequence[float]],
    examples: Sequence[Example],
    rewards: Mapping[str, Sequence[float]],
    *,
    seed: int,
) -> dict[str, Any]:
    """What each edit adds to the reward, with its 95 % interval over prompts.

    In units of the standard deviation of rewards within prompts, so that 1 is about the step from
    a middling response to a good one.

    Args:
        edited: As `edited_responses` gives them.
        edited_rewards: Of each, in each of its edits.
        examples: Held out; their rewards give the unit.
        rewards: Of their responses as they were, by prompt id.
        seed: Of the bootstrap.
    """
    unit = _spread([rewards[example.ranked.prompt_id] for example in examples])
    changes: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for response, found in zip(edited, edited_rewards, strict=True):
        before = rewards[response.prompt_id][response.place]
        for name, after in zip(response.edits, found, strict=True):
            changes[name][response.prompt_id].append(after - before)
    table: dict[str, Any] = {}
    for name, by_prompt in changes.items():
        if len(by_prompt) < 2 or unit == 0:
            continue
        interval = cluster_bootstrap_mean(by_prompt, num_resamples=_NUM_RESAMPLES, seed=seed)
        values = [value for of_prompt in by_prompt.values() for value in of_prompt]
        table[name] = {
            "estimate": interval.estimate / unit,
            "ci_low": interval.ci_low / unit,
            "ci_high": interval.ci_high / unit,
            "num_prompts": interval.num_clusters,
            "raised_share": fmean(value > 0 for value in values),
        }
    return table


def _spread(rewards: Sequence[Sequence[float]]) -> float:
    """Standard deviation about the prompts' means, pooled over prompts."""
    squares = [(value - fmean(found)) ** 2 for found in rewards for value in found]
    degrees = len(squares) - len(rewards)
    return float((sum(squares) / degrees) ** 0.5) if degrees > 0 else 0.0
