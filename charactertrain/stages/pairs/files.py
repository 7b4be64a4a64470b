"""Comparisons of the researcher's own, in the conversational form that TRL's RewardTrainer reads.

Each row is checked before anything is started, and named with its file and number where it is
wrong.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from charactertrain.config.data import PairsSection
from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Message, PreferencePair, Split
from charactertrain.seeds import stable_id
from charactertrain.stages.row_files import (
    check_one_of,
    check_text,
    drawn_split,
    in_batches,
    read_rows,
)

_SETTING = "pairs.file"
_SPLITS: tuple[Split, ...] = ("train", "validation")
_ROLES = ("system", "user", "assistant")
_EXAMPLE = '[{"role": "assistant", "content": "..."}]'
_WHOLE = "; where chosen and rejected hold the whole conversation, leave prompt out."


def check(section: PairsSection, *, trait_weights: Mapping[str, float], seed: int) -> None:
    """Read the section's file to the end, for what is wrong in it.

    Raises:
        ConfigError: A row is not as `read_pairs` describes, or the file is to replace the pairs of
            rankings and leaves a split without any.
    """
    if section.file is None:
        return
    survey = _survey(section, trait_weights, {}, seed)
    if section.file_use == "join":
        return
    found = {survey.splits[family] for family in survey.families.values()}
    for split in _SPLITS:
        if split not in found:
            raise ConfigError(
                f"pairs.file: {section.file} has no {split} pairs; expected at least one where it "
                "replaces those of rankings. Add rows, say in their `split` where they belong, or "
                f"change pairs.validation_share, which is {section.validation_share}."
            )


def read_pairs(
    section: PairsSection,
    *,
    trait_weights: Mapping[str, float],
    splits: Mapping[str, Split],
    seed: int,
) -> Iterator[list[PreferencePair]]:
    """The pairs of the section's file, a few thousand at a time; none where it names no file.

    A row has `chosen` and `rejected`: each one assistant's turn that follows on `prompt`, or, in a
    row without `prompt`, a whole conversation, which the two share up to its last turn. If it
    likes, it has `probability` (that chosen is the better), `margin`, `trait_id`, `split`,
    `family` and `prompt_id`. Other columns are passed over. The file is read twice, since the
    weight of a pair depends on how many its prompt has.

    Args:
        section: Its share of families is that of rows that name no split.
        trait_weights: By trait id, of the constitution.
        splits: Of families that this run has prompts for.
        seed: Of the run.

    Raises:
        ConfigError: A row is not as described.
    """
    if section.file is not None:
        survey = _survey(section, trait_weights, splits, seed)
        yield from in_batches(_weighted_pairs(section.file, trait_weights, survey))


@dataclass(frozen=True)
class _Survey:
    """What only the whole file tells of a pair."""

    num_pairs: Counter[str]
    """By prompt."""
    families: dict[str, str]
    """By prompt."""
    splits: dict[str, Split]
    """By family."""


def _weighted_pairs(
    file: str, trait_weights: Mapping[str, float], survey: _Survey
) -> Iterator[PreferencePair]:
    for where, row in read_rows(file, setting=_SETTING):
        pair = _pair(row, where, trait_weights)
        weight = pair.weight / survey.num_pairs[pair.prompt_id]
        yield replace(pair, split=survey.splits[pair.family], weight=weight)


def _survey(
    section: PairsSection,
    trait_weights: Mapping[str, float],
    splits: Mapping[str, Split],
    seed: int,
) -> _Survey:
    assert section.file is not None, "a section without a file has nothing to survey"
    survey = _Survey(Counter(), {}, dict(splits))
    # Hashes, since the turns may be long; of prompts that rows name, as others are named by them.
    turns: dict[str, int] = {}
    seen: set[str] = set()
    for where, row in read_rows(section.file, setting=_SETTING):
        pair = _pair(row, where, trait_weights)
        named = row.get("prompt_id")
        if named and turns.setdefault(pair.prompt_id, hash(pair.prompt)) != hash(pair.prompt):
            raise ConfigError(
                f"{where}: prompt_id {named!r} is that of an earlier row with another prompt. "
                "Leave the rows' prompt_id out, or give each prompt its own."
            )
        _check_new(pair, seen, where)
        survey.num_pairs[pair.prompt_id] += 1
        _place(survey, pair, row.get("split"), where)
    for family in survey.families.values():
        if family not in survey.splits:
            survey.splits[family] = drawn_split(
                family, validation_share=section.validation_share, test_share=0.0, seed=seed
            )
    return survey


def _check_new(pair: PreferencePair, seen: set[str], where: str) -> None:
    # Whichever of the two is chosen.
    both = stable_id(*sorted((pair.chosen_id, pair.rejected_id)))
    if both in seen:
        raise ConfigError(
            f"{where}: an earlier row compares the same two responses. Keep one of the rows; where "
            "several people compared them, say in `probability` which share of them preferred "
            "chosen."
        )
    seen.add(both)


def _place(survey: _Survey, pair: PreferencePair, split: Split | None, where: str) -> None:
    """Note the family of a pair's prompt, and its split if it is known by now."""
    family = survey.families.setdefault(pair.prompt_id, pair.family)
    if family != pair.family:
        raise ConfigError(
            f"{where}: family is {pair.family!r}, and an earlier row has the same prompt in "
            f"{family!r}. A prompt is in one family: mend the one or the other."
        )
    found = survey.splits.get(family)
    if found == "test":
        raise ConfigError(
            f"{where}: family {family!r} is one of this run's test split, and nothing of it is "
            "trained on. Take the row out, or name another family if it is another scenario."
        )
    if split is None:
        return
    if survey.splits.setdefault(family, split) != split:
        raise ConfigError(
            f"{where}: split is {split!r}, and family {family!r} is in {found!r}. A family is in "
            "one split: mend the one or the other."
        )


def _pair(row: Mapping[str, Any], where: str, trait_weights: Mapping[str, float]) -> PreferencePair:
    """The pair of a row, with the whole weight of its prompt, and in train for the time being."""
    prompt, chosen, rejected = _conversation(row, where)
    probability = _probability(row.get("probability"), where)
    margin = _margin(row.get("margin"), where)
    if probability < 0.5:
        chosen, rejected = rejected, chosen
        probability, margin = 1 - probability, -margin
    for key in ("trait_id", "split", "family", "prompt_id"):
        check_text(row.get(key), key, where)
    _check_split(row.get("split"), where)
    trait_id = _trait_id(row.get("trait_id"), where, trait_weights)
    turns = json.dumps([[turn.role, turn.content] for turn in prompt])
    # Never as it stands: it may be that of a prompt of this run.
    prompt_id = stable_id("file", trait_id, row.get("prompt_id") or turns)
    chosen_id, rejected_id = (stable_id(prompt_id, turn.content) for turn in (chosen, rejected))
    return PreferencePair(
        pair_id=stable_id(chosen_id, rejected_id),
        prompt_id=prompt_id,
        trait_id=trait_id,
        family=row.get("family") or f"{trait_id}/file-{prompt_id}",
        split="train",
        prompt=prompt,
        chosen=(chosen,),
        rejected=(rejected,),
        probability=probability,
        weight=trait_weights.get(trait_id, 1.0),
        margin=margin,
        chosen_id=chosen_id,
        rejected_id=rejected_id,
        chosen_variant="file",
        rejected_variant="file",
        chosen_tokens=None,
        rejected_tokens=None,
    )


def _conversation(
    row: Mapping[str, Any], where: str
) -> tuple[tuple[Message, ...], Message, Message]:
    """The prompt and what follows on it: the response that was chosen and the other."""
    sides = {key: _turns(row, key, where) for key in ("chosen", "rejected")}
    if sides["chosen"] == sides["rejected"]:
        raise ConfigError(
            f"{where}: chosen and rejected are the same; expected two responses that differ. Take "
            "the row out."
        )
    if row.get("prompt") is not None:
        prompt = _turns(row, "prompt", where)
    else:
        prompt = _common_prefix(sides["chosen"], sides["rejected"])
        sides = {key: turns[len(prompt) :] for key, turns in sides.items()}
    for key, turns in sides.items():
        if [turn.role for turn in turns] != ["assistant"]:
            raise ConfigError(
                f"{where}: {key} has {_listed(turns)} after the prompt; expected one turn, of the "
                "assistant, in which the two differ. Cut conversations off after that turn"
                f"{'.' if row.get('prompt') is None else _WHOLE}"
            )
    if not prompt or prompt[-1].role != "user":
        raise ConfigError(
            f"{where}: the prompt has {_listed(prompt)}; expected turns of which the last is the "
            "user's, in prompt or as the beginning that chosen and rejected share."
        )
    return prompt, sides["chosen"][0], sides["rejected"][0]


def _common_prefix(
    chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[Message, ...]:
    length = 0
    for left, right in zip(chosen, rejected, strict=False):
        if left != right:
            break
        length += 1
    return chosen[:length]


def _listed(turns: tuple[Message, ...]) -> str:
    roles = ", ".join(turn.role for turn in turns)
    return f"{len(turns)} turns ({roles})" if turns else "no turns"


def _turns(row: Mapping[str, Any], key: str, where: str) -> tuple[Message, ...]:
    value = row.get(key)
    if not isinstance(value, list):
        found = "missing" if value is None else f"a {type(value).__name__}"
        example = _EXAMPLE.replace("assistant", "user") if key == "prompt" else _EXAMPLE
        raise ConfigError(
            f"{where}: {key} is {found}; expected the conversational form, a list of turns such as "
            f"{example}{_WHOLE if key == 'prompt' else '.'}"
        )
    return tuple(_turn(turn, f"{key}[{index}]", where) for index, turn in enumerate(value))


def _turn(value: object, key: str, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{where}: {key} is a {type(value).__name__}; expected a turn as in {_EXAMPLE}"
        )
    role, content = value.get("role"), value.get("content")
    check_one_of(role, _ROLES, f"{key}.role", where)
    check_text(content, f"{key}.content", where)
    # An empty system turn says something: templates may put one of their own where there is none.
    if content is None or not (content.strip() or role == "system"):
        raise ConfigError(f"{where}: {key}.content is {content!r}; expected text in it")
    return Message(str(role), content)


def _probability(value: object, where: str) -> float:
    if value is None:
        return 1.0
    if not _is_number(value) or not 0 <= value <= 1:
        raise ConfigError(
            f"{where}: probability is {value!r}; expected a number from 0 to 1: how likely chosen "
            "is the better"
        )
    return float(value)


def _margin(value: object, where: str) -> float:
    if value is None:
        return 0.0
    if not _is_number(value) or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"{where}: margin is {value!r}; expected a finite number, in logits")
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_split(split: str | None, where: str) -> None:
    if split == "test":
        raise ConfigError(
            f"{where}: split is 'test', and nothing of it is trained on; expected train or "
            "validation. Take the row out."
        )
    if split is not None:
        check_one_of(split, _SPLITS, "split", where)


def _trait_id(value: str | None, where: str, trait_weights: Mapping[str, float]) -> str:
    if value is None or value == NO_TRAIT:
        return NO_TRAIT
    if value not in trait_weights:
        raise ConfigError(
            f"{where}: trait_id is {value!r}; expected one of the constitution's: "
            f"{', '.join(trait_weights)}; or {NO_TRAIT}, where the comparison is of quality alone"
        )
    return value
