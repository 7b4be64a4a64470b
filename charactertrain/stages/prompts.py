"""prompts: the model writes messages for which each trait matters.

A plan of slots (trait x facet) gives the coverage; each slot is one attempt. Scenario families
are assigned before anything is written, and splits are made of whole families.
"""

import re
from collections.abc import Sequence
from functools import partial

from charactertrain.artifacts import FileEntry, Outcome, read_rows
from charactertrain.config import PromptsSection
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
    """Every attempt that will be made: trait x facet x index, each family in one split."""
    slots = []
    for trait in traits:
        facets = trait.facets or DEFAULT_FACETS
        splits = split_families(
            [family_name(trait.trait_id, facet) for facet in facets],
            validation_share=config.validation_share,
            test_share=config.test_share,
            seed=derive_seed(seed, "split", trait.trait_id),
        )
        for facet in facets:
            family = family_name(trait.trait_id, facet)
            for index in range(config.attempts_per_facet):
                slot_id = stable_id(trait.trait_id, facet, index)
                slots.append(PromptSlot(slot_id, trait.trait_id, facet, family, splits[family]))
    return slots


def family_name(trait_id: str, facet: str) -> str:
    """The scenario family of a facet of a trait."""
    return f"{trait_id}/{'-'.join(_WORDS.findall(facet.lower()))}"


def split_families(
    families: Sequence[str], *, validation_share: float, test_share: float, seed: int
) -> dict[str, Split]:
    """The split of each family: shares of families, at least one in each.

    Raises ConfigError for fewer than three families.
    """
    if len(families) < 3:
        raise ConfigError(
            f"the trait of {list(families)} has {len(families)} facets; a split by scenario family "
            "needs 3 or more. Add facets to the trait, or leave them out to use the shipped ones."
        )
    ordered = sorted(families, key=lambda family: derive_seed(seed, family))
    num_validation = max(1, round(validation_share * len(families)))
    num_validation = min(num_validation, len(families) - 2)
    num_test = max(1, round(test_share * len(families)))
    num_test = min(num_test, len(families) - num_validation - 1)
    splits: dict[str, Split] = {}
    for index, family in enumerate(ordered):
        if index < num_test:
            splits[family] = "test"
        elif index < num_test + num_validation:
            splits[family] = "validation"
        else:
            splits[family] = "train"
    return splits


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
    for trait in traits:
        for split in ("train", "validation", "test"):
            if not any(p.trait_id == trait.trait_id and p.split == split for p in prompts):
                raise SamplingError(
                    f"no {split} prompt for trait {trait.trait_id!r} is left after the filters; "
                    "raise prompts.attempts_per_facet, loosen its filters, or see rejects/"
                )
