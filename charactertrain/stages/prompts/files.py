"""Prompts of the researcher's own: a parquet or JSONL file, or a directory that `datasets` saved.

Each row is checked before the stage starts an engine, and named with its file and number where it
is wrong.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, get_args

from charactertrain.config import PromptsSection
from charactertrain.exceptions import ConfigError
from charactertrain.records import NO_TRAIT, Prompt, PromptKind, Split
from charactertrain.seeds import stable_id
from charactertrain.stages.prompts.plan import MIN_PROMPTS
from charactertrain.stages.row_files import (
    check_one_of,
    check_text,
    drawn_split,
    in_batches,
    read_rows,
)

_KEPT = ("facet", "persona", "style", "length", "language")
"""Texts that go into the report as they are."""
_KEYS = {field.name for field in fields(Prompt)} | {"prompt"}
"""Those of a run's own prompts, so that one run's are another's file."""
_MAX_CHARACTERS = 20_000


def check(section: PromptsSection, *, trait_ids: Collection[str], seed: int) -> None:
    """Read the section's file to the end, for what is wrong in it.

    Raises:
        ConfigError: A row is not as `read_prompts` describes, or the file is to replace the model's
            prompts and has too few.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for batch in read_prompts(section, trait_ids=trait_ids, splits={}, seed=seed):
        counts.update((prompt.trait_id, prompt.split) for prompt in batch)
    if section.file is None or section.file_use == "join":
        return
    for trait_id in trait_ids:
        for split, fewest in MIN_PROMPTS.items():
            if counts[trait_id, split] < fewest:
                raise ConfigError(
                    f"prompts.file: {section.file} has {counts[trait_id, split]} {split} prompts "
                    f"of trait {trait_id!r}; expected {fewest} or more where it replaces the "
                    "model's. Add rows, say in their `split` where they belong, or let them join "
                    "(prompts.file_use=join)."
                )


def read_prompts(
    section: PromptsSection,
    *,
    trait_ids: Collection[str],
    splits: Mapping[str, Split],
    seed: int,
) -> Iterator[list[Prompt]]:
    """The prompts of the section's file, a few thousand at a time; none where it names no file.

    A row has `text` (or `prompt`: a text, or one user's turn), `trait_id` and, if it likes, `kind`,
    `family`, `facet`, `split`, `language` and `prompt_id`. A row without a split gets that of its
    family; a row without a family is a family of its own.

    Args:
        section: Its shares of families are those of rows that name no split.
        trait_ids: Of the constitution.
        splits: Of the families that the model writes messages for.
        seed: Of the run.

    Raises:
        ConfigError: A row is not as described.
    """
    if section.file is not None:
        rows = read_rows(section.file, setting="prompts.file")
        yield from in_batches(_prompts(rows, section, trait_ids, splits, seed))


def _prompts(
    rows: Iterator[tuple[str, Mapping[str, Any]]],
    section: PromptsSection,
    trait_ids: Collection[str],
    splits: Mapping[str, Split],
    seed: int,
) -> Iterator[Prompt]:
    seen: set[str] = set()
    given: dict[str, Split] = dict(splits)
    for where, row in rows:
        prompt = _prompt(row, where, trait_ids)
        split = row.get("split") or given.get(prompt.family)
        split = split or drawn_split(
            prompt.family,
            validation_share=section.validation_share,
            test_share=section.test_share,
            seed=seed,
        )
        if given.setdefault(prompt.family, split) != split:
            raise ConfigError(
                f"{where}: split is {split!r}, and family {prompt.family!r} is in "
                f"{given[prompt.family]!r}. A family is in one split: mend the one or the other."
            )
        if prompt.prompt_id in seen:
            name = row.get("prompt_id") or prompt.prompt_id
            raise ConfigError(
                f"{where}: prompt_id {name!r} comes twice. Leave the rows' prompt_id "
                "out, or make each its own; a text that comes twice is one row too many."
            )
        seen.add(prompt.prompt_id)
        yield replace(prompt, split=split)


def _prompt(row: Mapping[str, Any], where: str, trait_ids: Collection[str]) -> Prompt:
    unknown = sorted(row.keys() - _KEYS)
    if unknown:
        raise ConfigError(
            f"{where}: unknown keys {unknown}; expected some of {sorted(_KEYS)}. Rename them, or "
            "take them out."
        )
    text = _text(row, where)
    kind: PromptKind = row.get("kind") or "trait"
    check_one_of(kind, get_args(PromptKind), "kind", where)
    if row.get("split") is not None:
        check_one_of(row["split"], get_args(Split), "split", where)
    trait_id = _trait_id(row, kind, where, trait_ids)
    for key in ("family", "prompt_id", *_KEPT):
        check_text(row.get(key), key, where)
    # Never as it stands: it may be that of a message which the model is to write.
    given = row.get("prompt_id")
    prompt_id = stable_id("own", given) if given else stable_id("own", trait_id, kind, text)
    return Prompt(
        prompt_id=prompt_id,
        trait_id=trait_id,
        family=row.get("family") or f"{trait_id}/own-{prompt_id}",
        kind=kind,
        text=text,
        split="train",
        source="file",
        **{key: row.get(key) or "" for key in _KEPT},
    )


def _text(row: Mapping[str, Any], where: str) -> str:
    value = row.get("text") if row.get("text") is not None else row.get("prompt")
    if isinstance(value, list):
        turns = [turn for turn in value if isinstance(turn, Mapping)]
        if len(turns) != 1 or len(value) != 1 or turns[0].get("role") != "user":
            raise ConfigError(
                f"{where}: prompt has {len(value)} turns; expected one, of role user. Longer "
                "conversations are not trained on: give the message alone."
            )
        value = turns[0].get("content")
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: text is {value!r}; expected a message in `text` or `prompt`")
    if len(value) > _MAX_CHARACTERS:
        raise ConfigError(
            f"{where}: text has {len(value)} characters; expected {_MAX_CHARACTERS} at most"
        )
    check_text(value, "text", where)
    return value.strip()


def _trait_id(row: Mapping[str, Any], kind: str, where: str, trait_ids: Collection[str]) -> str:
    value = row.get("trait_id")
    if kind == "general":
        if value not in (None, NO_TRAIT):
            raise ConfigError(
                f"{where}: trait_id is {value!r} and kind is general, where no trait is at stake; "
                "leave trait_id out"
            )
        return NO_TRAIT
    if value is None and len(trait_ids) == 1:
        return next(iter(trait_ids))
    if value not in trait_ids:
        raise ConfigError(
            f"{where}: trait_id is {value!r}; expected one of the constitution's: "
            f"{', '.join(trait_ids)}"
        )
    return str(value)
