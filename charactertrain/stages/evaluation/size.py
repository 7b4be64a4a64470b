"""How many replies an evaluation samples, as far as its config and the constitution say."""

import math
from collections.abc import Sequence

from charactertrain.config import RunConfig
from charactertrain.config.evaluation import ProbesSection
from charactertrain.probes.file import load
from charactertrain.probes.measures import EVERY_TRAIT
from charactertrain.records import NO_TRAIT, Prompt, Script
from charactertrain.stages.evaluation import probe_scripts, trait_choices
from charactertrain.stages.evaluation.arms import OWN_ARMS


def replies_at_most(
    config: RunConfig, trait_ids: Sequence[str], *, num_tested: int, num_general: int
) -> dict[str, int]:
    """Replies of all arms by what they are for; one that is not asked for is absent.

    At most: prompts that another run trained on are not asked, and conversations may be cut short.

    Args:
        config: Of the run.
        trait_ids: Of the constitution.
        num_tested: Held-out prompts of all traits together.
        num_general: Held-out prompts for which no trait is at stake.
    """
    section = config.evaluation
    num_arms = len(OWN_ARMS) + len(section.compare)
    # The prompted base is neither asked for its natural length nor offered traits.
    num_unprompted = num_arms - 1
    of_an_arm = _probe_replies(section.probes, trait_ids, num_tested, num_general)
    num_shown = min(section.attribution_prompts, math.ceil(num_tested / len(trait_ids)))
    counts = {
        "on held-out prompts": num_arms * num_tested * section.responses_per_prompt,
        "with each trait shown": num_shown * len(trait_ids) ** 2,
        "for their length": num_unprompted * min(section.length_prompts, num_tested),
        "in probes": num_arms * of_an_arm,
        "to free choices": _choices(config, trait_ids, num_arms=num_unprompted),
    }
    return {what: count for what, count in counts.items() if count > 0}


def _choices(config: RunConfig, trait_ids: Sequence[str], *, num_arms: int) -> int:
    """Replies of all arms that are offered traits."""
    pairs_per_trait = config.evaluation.preferences.pairs_per_trait
    if pairs_per_trait == 0:
        return 0
    offered = trait_choices.offers(trait_ids, pairs_per_trait=pairs_per_trait, seed=config.seed)
    # What it is to take up the base alone is told.
    num_told = sum(offer.condition == "told" for offer in offered)
    return num_arms * (len(offered) - num_told) + num_told


def _probe_replies(
    section: ProbesSection, trait_ids: Sequence[str], num_tested: int, num_general: int
) -> int:
    """Replies of one arm in all probes."""
    scripts = probe_scripts_at_most(
        section, trait_ids, num_tested=num_tested, num_general=num_general, text="?"
    )
    return sum(len(script.turns) - len(script.given_replies) for script in scripts)


def probe_scripts_at_most(
    section: ProbesSection,
    trait_ids: Sequence[str],
    *,
    num_tested: int,
    num_general: int,
    text: str,
) -> list[Script]:
    """The conversations that an arm is put through, of prompts that are all `text`."""
    per_trait = min(section.prompts_per_trait, math.ceil(num_tested / len(trait_ids)))
    asked = [_prompt(trait_id, str(i), text) for trait_id in trait_ids for i in range(per_trait)]
    scripts = probe_scripts.from_prompts(section.names, asked)
    if probe_scripts.PREFILL in section.names:
        scripts += probe_scripts.prefilled(asked, {prompt.prompt_id: text for prompt in asked})
    for name, probe in load(section.names, section.files).items():
        scripts += probe_scripts.from_file(name, probe)
    if probe_scripts.DOSE in section.names:
        num_own = min(section.prompts_per_trait, num_general)
        own = [_prompt(NO_TRAIT, str(i), text) for i in range(num_own)]
        scripts += probe_scripts.on_general(own, probe=probe_scripts.DOSE, measure=EVERY_TRAIT)
    return scripts


def _prompt(trait_id: str, number: str, text: str) -> Prompt:
    """A prompt that is only counted."""
    return Prompt(f"{trait_id}-{number}", trait_id, NO_TRAIT, "trait", text, "test")
