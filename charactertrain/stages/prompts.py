"""prompts: the model writes messages for which each trait matters.

A plan of slots (trait x facet) gives the coverage; each slot is one attempt. Splits are made before
anything is written, of whole facets: a facet is in one split, whichever traits share it.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from charactertrain.artifacts import FileEntry, Outcome, read_rows
from charactertrain.config import PromptsSection
from charactertrain.constitution import normalised_facet
from charactertrain.exceptions import ConfigError, SamplingError
from charactertrain.pipeline import Work
from charactertrain.records import Probe, Prompt, PromptSlot, Reject, Split, Trait, to_table
from charactertrain.runtime.dataflow import ChunkJob, Source, count_reasons, run_chunks
from charactertrain.runtime.engines import SamplerSource, close_sampler
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages import checks
from charactertrain.stages.context import Context, response_settings
from charactertrain.templates import (
    DEFAULT_FACETS,
    NUM_STYLES,
    NUM_WORKED_MESSAGES,
    Shown,
    synthesis_chat,
    synthesis_completion,
)

_NUM_WORKED = 5
_NUM_ORDERS = 4
_WORDS = re.compile(r"[\w']+")
_MIN_PROMPTS: dict[Split, int] = {"train": 1, "validation": 2, "test": 2}
"""Of a trait, by split: an interval over prompts needs two."""


def run(work: Work, context: Context) -> Outcome:
    """Check that the character shows, then write, filter and split the prompts."""
    config, directory = context.config, work.directory
    source, manifest = work.inputs["traits"]
    traits = read_rows(source, manifest, "traits", Trait)
    model = str(context.model_directory)
    sampler = context.session.sampler(model, model)
    shifts = _template_check(work, context, sampler, traits)

    slots = plan(traits, config.prompts, seed=config.seed)
    directory.write_table("slots/part-000000.parquet", to_table(slots, PromptSlot))
    slot_files = (FileEntry("slots/part-000000.parquet", 0, "", len(slots)),)
    job = ChunkJob(
        name="prompts",
        source=Source(directory, slot_files, PromptSlot, whole_files=False),
        target=directory,
        table="drafts",
        result_type=Prompt,
        make_processor=partial(
            PromptWriter,
            traits={trait.trait_id: trait for trait in traits},
            settings=_settings(config.prompts, config.model.prompt_synthesis),
            limits=(config.prompts.min_words, config.prompts.max_words),
            synthesis=config.model.prompt_synthesis,
            seed=config.seed,
        ),
        sampler=sampler,
        max_reject_share=1 - config.prompts.min_accepted_share,
    )
    names, _, _ = run_chunks(job, context.session.pool, context.session.progress)
    drafts = [
        row
        for name in names
        if name.startswith("drafts/")
        for row in _prompts(directory.read_table(name).to_pylist())
    ]
    prompts, duplicates = without_near_duplicates(drafts, config.prompts.max_similarity)
    _check_splits(prompts, traits)
    files = ["prompts/part-000000.parquet", "probes/part-000000.parquet"]
    directory.write_table(files[0], to_table(prompts, Prompt))
    rejects = [name for name in names if name.startswith("rejects/")]
    if duplicates:
        rejects.append("rejects/duplicates/part-000000.parquet")
        directory.write_table(rejects[-1], to_table(duplicates, Reject))
    return Outcome(
        files=(*files, *rejects),
        rejects=count_reasons(directory, rejects),
        summary={"template_check": checks.as_json(shifts), "attempts": len(slots)},
    )


def _prompts(rows: list[dict[str, str]]) -> list[Prompt]:
    return [Prompt(**row) for row in rows]  # type: ignore[arg-type]


def _template_check(
    work: Work, context: Context, source: SamplerSource, traits: list[Trait]
) -> list[checks.TraitShift]:
    config = context.config
    name = "probes/part-000000.parquet"
    if work.directory.exists(name):
        rows = work.directory.read_table(name).to_pylist()
        probes = [Probe(**{**row, "token_ids": tuple(row["token_ids"])}) for row in rows]
    else:
        sampler = source.open()
        settings = response_settings(
            temperature=config.responses.temperature,
            max_tokens=config.responses.max_tokens,
            ending=config.responses.ending,
        )
        probes = checks.write_probes(
            sampler,
            traits,
            settings,
            placement=config.model.trait_placement,
            num_messages=config.prompts.check_prompts,
            seed=config.seed,
        )
        close_sampler(sampler)
        work.directory.write_table(name, to_table(probes, Probe))
    shifts = checks.trait_shifts(probes, traits)
    checks.check_template(shifts, min_shift=config.prompts.min_trait_shift)
    return shifts


def plan(traits: Sequence[Trait], config: PromptsSection, *, seed: int) -> list[PromptSlot]:
    """Every attempt that will be made: trait x facet x index, each facet in one split."""
    facets_by_trait = {trait.trait_id: trait.facets or DEFAULT_FACETS for trait in traits}
    splits = split_facets(
        facets_by_trait,
        validation_share=config.validation_share,
        test_share=config.test_share,
        seed=seed,
    )
    slots = []
    for trait_id, facets in facets_by_trait.items():
        for facet in facets:
            family, split = family_name(trait_id, facet), splits[normalised_facet(facet)]
            for index in range(config.attempts_per_facet):
                slot_id = stable_id(trait_id, facet, index)
                slots.append(PromptSlot(slot_id, trait_id, facet, family, split))
    return slots


def family_name(trait_id: str, facet: str) -> str:
    """The scenario family of a facet of a trait."""
    return f"{trait_id}/{normalised_facet(facet)}"


def split_facets(
    facets_by_trait: Mapping[str, Sequence[str]],
    *,
    validation_share: float,
    test_share: float,
    seed: int,
) -> dict[str, Split]:
    """The split of each normalised facet of the whole constitution.

    Traits in order: the facets that a trait shares with earlier ones keep their split, and the
    others fill its shares up, one facet at least in each split.

    Raises:
        ConfigError: A trait's facets leave a split without any.
    """
    splits: dict[str, Split] = {}
    for trait_id, facets in facets_by_trait.items():
        own = list(dict.fromkeys(normalised_facet(facet) for facet in facets))
        free = sorted(
            (facet for facet in own if facet not in splits),
            key=lambda facet: derive_seed(seed, "split", facet),
        )
        taken = Counter(splits[facet] for facet in own if facet in splits)
        shares = _facet_counts(len(own), validation_share, test_share)
        splits.update(zip(free, _splits_to_fill(taken, shares, len(free)), strict=True))
        missing = sorted(_MIN_PROMPTS.keys() - {splits[facet] for facet in own})
        if missing:
            placed = {facet: splits[normalised_facet(facet)] for facet in facets}
            raise ConfigError(
                f"trait {trait_id!r}: expected a facet in each of train, validation and test, "
                f"found none for {' and '.join(missing)}: {placed}. A facet that traits share is "
                "in one split for all of them. Give the trait three facets or more of its own, or "
                "list it before the traits that it shares them with."
            )
    return splits


def _facet_counts(num_facets: int, validation_share: float, test_share: float) -> dict[Split, int]:
    """How many of a trait's facets go to each held-out split."""
    num_validation = min(max(1, round(validation_share * num_facets)), num_facets - 2)
    num_test = min(max(1, round(test_share * num_facets)), num_facets - num_validation - 1)
    return {"test": num_test, "validation": num_validation}


def _splits_to_fill(taken: Counter[Split], shares: dict[Split, int], num_free: int) -> list[Split]:
    """A split for each free facet: what has none yet, then what has too few, then training."""
    order: tuple[Split, ...] = ("test", "validation", "train")
    wanted = [split for split in order if not taken[split]]
    for split, share in shares.items():
        wanted += [split] * (share - max(1, taken[split]))
    wanted += ["train"] * num_free
    return wanted[:num_free]


def _settings(config: PromptsSection, synthesis: str) -> SamplingSettings:
    return SamplingSettings(
        temperature=config.temperature,
        top_p=config.top_p,
        max_tokens=config.max_tokens,
        min_tokens=0,
        stop=("\n",) if synthesis == "completion" else (),
    )


class PromptWriter:
    """Writes one message per slot and keeps those that a person might send."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        traits: dict[str, Trait],
        settings: SamplingSettings,
        limits: tuple[int, int],
        synthesis: str,
        seed: int,
    ) -> None:
        """`limits`: fewest and most words of a message."""
        self._sampler, self._traits, self._settings = sampler, traits, settings
        self._limits, self._synthesis, self._seed = limits, synthesis, seed

    def process(self, rows: list[PromptSlot]) -> tuple[list[Prompt], list[Reject]]:
        """Messages and rejects for the given slots."""
        requests = [
            SampleRequest(slot.slot_id, self._shown(slot), derive_seed(self._seed, slot.slot_id))
            for slot in rows
        ]
        prompts, rejects = [], []
        results = self._sampler.sample(requests, self._settings)
        for slot, result in zip(rows, results, strict=True):
            text = message_text(result) if isinstance(result, Sample) else ""
            reason = self._reason(slot, result, text)
            if reason is not None:
                detail = result.detail if isinstance(result, Failure) else text[:200]
                rejects.append(Reject(slot.slot_id, "prompts", reason, detail))
                continue
            prompts.append(
                Prompt(
                    prompt_id=slot.slot_id,
                    trait_id=slot.trait_id,
                    family=slot.family,
                    kind="trait",
                    text=text,
                    split=slot.split,
                )
            )
        return prompts, rejects

    def _shown(self, slot: PromptSlot) -> Shown:
        draw = derive_seed(self._seed, "shape", slot.slot_id)
        if self._synthesis == "chat":
            return synthesis_chat(self._traits[slot.trait_id], slot.facet, draw % NUM_STYLES)
        # A few orders, not one per slot: slots with the same examples share a cached prefix.
        order = draw % _NUM_ORDERS
        worked = sorted(range(NUM_WORKED_MESSAGES), key=lambda index: derive_seed(order, index))
        return synthesis_completion(slot.facet, worked[:_NUM_WORKED])

    def _reason(self, slot: PromptSlot, result: Sample | Failure, text: str) -> str | None:
        if isinstance(result, Failure):
            return result.reason
        if result.finish_reason == "length":
            return "truncated"
        return unusable(text, self._traits[slot.trait_id].statement, self._limits)


def message_text(sample: Sample) -> str:
    """The message that a model wrote, without the quotation marks that small models add."""
    text = sample.text.strip()
    bare = text.strip('"').strip()
    # An odd number left means that one of the marks belongs to a quotation in the message.
    return text if bare.count('"') % 2 else bare


def unusable(text: str, statement: str, limits: tuple[int, int]) -> str | None:
    """Why a text is no message from a user, or None if it may be one."""
    words = _WORDS.findall(text)
    letters = sum(character.isalpha() or character.isspace() for character in text)
    if not text:
        return "empty"
    if re.match(r"(topic|message|user|assistant)\s*:", text, re.IGNORECASE):
        return "not_a_message"
    if letters < 0.7 * len(text):
        return "not_prose"
    if not limits[0] <= len(words) <= limits[1]:
        return "too_short" if len(words) < limits[0] else "too_long"
    if statement.lower().rstrip(".") in text.lower():
        return "trait_leaked"
    return None


def without_near_duplicates(
    prompts: Sequence[Prompt], max_similarity: float
) -> tuple[list[Prompt], list[Reject]]:
    """The prompts without those whose word set is close to an earlier one's, and the rejects.

    Compared over all traits and splits, so that no training prompt is a test prompt reworded.
    """
    kept: list[tuple[Prompt, frozenset[str]]] = []
    rejects = []
    for prompt in prompts:
        words = frozenset(_WORDS.findall(prompt.text.lower()))
        twin = next((k for k, seen in kept if _jaccard(words, seen) > max_similarity), None)
        if twin is None:
            kept.append((prompt, words))
        else:
            detail = f"{prompt.text[:120]!r} is close to {twin.prompt_id}"
            rejects.append(Reject(prompt.prompt_id, "prompts", "near_duplicate", detail))
    return [prompt for prompt, _ in kept], rejects


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def _check_splits(prompts: Sequence[Prompt], traits: Sequence[Trait]) -> None:
    counts = Counter((prompt.trait_id, prompt.split) for prompt in prompts)
    for trait in traits:
        for split, fewest in _MIN_PROMPTS.items():
            found = counts[trait.trait_id, split]
            if found < fewest:
                raise SamplingError(
                    f"trait {trait.trait_id!r}: expected {fewest} {split} prompts or more after "
                    f"the filters, found {found}. Raise prompts.attempts_per_facet, loosen the "
                    "filters of prompts, or see rejects/."
                )
