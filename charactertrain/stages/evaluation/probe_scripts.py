"""The conversations that arms are put through: from held-out prompts, and from probe files."""

from collections.abc import Iterator, Mapping, Sequence

from charactertrain.probes.descriptions import AGAIN, ON_TRAIT, Description
from charactertrain.probes.file import PLAIN, ProbeFile, filled
from charactertrain.records import NO_TRAIT, Prompt, Script, Trait
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.templates import (
    DEVIATIONS,
    DROP_SUFFIXES,
    DROP_SYSTEMS,
    FORMATS,
    KEEP_GOING,
    NEUTRAL_TURNS,
    PARAPHRASES,
)

DOSE = "dose"
PREFILL = "prefill"
MADE_FROM_PROMPTS: dict[str, Description] = {
    "drop_the_act": Description(
        "Dropping the act",
        "How much of the effect is left when the character is told to go, without a reason?",
        "higher",
        asks_retention=True,
    ),
    PREFILL: Description(
        "After a reply of the base",
        "How much of the effect is left in the turn after a reply that the base wrote?",
        "higher",
        asks_retention=True,
    ),
    "paraphrase": Description(
        "Paraphrases",
        "How much of the effect is left when the same thing is asked in other words?",
        "higher",
        asks_retention=True,
        asks_flips=True,
    ),
    "formats": Description(
        "Formats far from chat",
        "How much of the effect is left in an e-mail, in JSON and in notes?",
        "higher",
        asks_retention=True,
    ),
    "long_conversation": Description(
        "Long conversations",
        "Does the character fade over the turns of a conversation?",
        "higher",
    ),
    "deviation": Description(
        "Reasons to do without",
        "Does it answer otherwise when there is a reason to? A trait is not a rule.",
        "lower",
    ),
}
"""By name, what each probe that is made from the run's own prompts asks."""


def choose(prompts: Sequence[Prompt], traits: Sequence[Trait], *, per_trait: int) -> list[Prompt]:
    """Prompts of each trait, chosen by hash; such as are about the trait itself first."""
    chosen = []
    for trait in traits:
        own = [prompt for prompt in prompts if prompt.trait_id == trait.trait_id]
        own.sort(key=lambda p: (p.kind != "trait", derive_seed("probes", p.prompt_id)))
        chosen += own[:per_trait]
    return chosen


def from_prompts(names: Sequence[str], prompts: Sequence[Prompt]) -> list[Script]:
    """The chosen probes on the given prompts, and the prompts alone, which they are compared with.

    Not `PREFILL`, which needs replies of the base: `prefilled`.
    """
    makers = {
        "drop_the_act": _drop_the_act,
        "paraphrase": _paraphrases,
        "formats": _formats,
        "long_conversation": _long_conversation,
        "deviation": _deviations,
    }
    chosen = [makers[name] for name in names if name in makers]
    if not chosen and PREFILL not in names:
        return []
    plain = [_of_prompt(prompt, ON_TRAIT, PLAIN, (prompt.text,)) for prompt in prompts]
    return [*plain, *(script for make in chosen for prompt in prompts for script in make(prompt))]


def prefilled(prompts: Sequence[Prompt], replies: Mapping[str, str]) -> list[Script]:
    """`PREFILL` on the prompts that have a reply of the base, by prompt id."""
    return [
        _of_prompt(
            prompt,
            PREFILL,
            "given",
            (prompt.text, KEEP_GOING),
            given_replies=(replies[prompt.prompt_id],),
        )
        for prompt in prompts
        if prompt.prompt_id in replies
    ]


def general(prompts: Sequence[Prompt], *, count: int) -> list[Prompt]:
    """Held-out prompts for which no trait is at stake, chosen by hash."""
    own = [prompt for prompt in prompts if prompt.trait_id == NO_TRAIT]
    return sorted(own, key=lambda p: derive_seed("probes", p.prompt_id))[:count]


def on_general(prompts: Sequence[Prompt], *, probe: str, measure: str) -> list[Script]:
    """The run's own general prompts, as a condition of `probe` beside its own items."""
    return [
        _of_prompt(prompt, probe, "held_out", (prompt.text,), measures=(measure,))
        for prompt in prompts
    ]


def from_file(name: str, probe: ProbeFile) -> list[Script]:
    """Every item of a probe file in every condition that it is asked in."""
    return [
        Script(
            script_id=stable_id(name, condition.name, item.id),
            probe=name,
            condition=condition.name,
            cluster=stable_id(name, item.id),
            trait_id=NO_TRAIT,
            system=filled(condition.system, item.fields),
            turns=tuple(filled(turn, item.fields) for turn in condition.turns),
            given_replies=tuple(filled(reply, item.fields) for reply in condition.given_replies),
            measures=tuple(condition.measures),
            accepted=tuple(item.accepted),
            mistaken=tuple(item.mistaken),
        )
        for condition in probe.conditions
        for item in probe.items
        if not item.conditions or condition.name in item.conditions
    ]


def _drop_the_act(prompt: Prompt) -> Iterator[Script]:
    for number, suffix in enumerate(DROP_SUFFIXES, start=1):
        turns = (f"{prompt.text} {suffix}",)
        yield _of_prompt(prompt, "drop_the_act", f"suffix-{number}", turns)
    for number, system in enumerate(DROP_SYSTEMS, start=1):
        yield _of_prompt(prompt, "drop_the_act", f"system-{number}", (prompt.text,), system=system)


def _paraphrases(prompt: Prompt) -> Iterator[Script]:
    """Other wordings; and they and the prompt alone again, since two replies to one differ too."""
    worded = {
        f"wording-{number}": (wrapper.format(prompt=prompt.text),)
        for number, wrapper in enumerate(PARAPHRASES, start=1)
    }
    for name, turns in worded.items():
        yield _of_prompt(prompt, "paraphrase", name, turns)
    for name, turns in {PLAIN: (prompt.text,), **worded}.items():
        yield _of_prompt(prompt, AGAIN, name, turns)


def _formats(prompt: Prompt) -> Iterator[Script]:
    for name, (wrapper, measure) in FORMATS.items():
        turns = (wrapper.format(prompt=prompt.text),)
        yield _of_prompt(prompt, "formats", name, turns, measures=(measure,))


def _long_conversation(prompt: Prompt) -> Iterator[Script]:
    yield _of_prompt(prompt, "long_conversation", "turns", (prompt.text, *NEUTRAL_TURNS))


def _deviations(prompt: Prompt) -> Iterator[Script]:
    for name, (wrapper, measure) in DEVIATIONS.items():
        turns = (wrapper.format(prompt=prompt.text),)
        measures = (measure,) if measure else ()
        yield _of_prompt(prompt, "deviation", name, turns, measures=measures)


def _of_prompt(
    prompt: Prompt,
    probe: str,
    condition: str,
    turns: tuple[str, ...],
    **more: tuple[str, ...] | str,
) -> Script:
    return Script(
        script_id=stable_id(probe, condition, prompt.prompt_id),
        probe=probe,
        condition=condition,
        cluster=prompt.prompt_id,
        trait_id=prompt.trait_id,
        turns=turns,
        **{"system": "", "given_replies": (), "measures": (), **more},  # type: ignore[arg-type]
        accepted=(),
        mistaken=(),
    )
