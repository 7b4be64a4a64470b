"""What a whole run is to compute, by stage."""

from collections.abc import Callable, Mapping
from statistics import fmean

from charactertrain.config import RunConfig
from charactertrain.config.plan import PlanSection
from charactertrain.constitution import Constitution
from charactertrain.plan import data_work, evaluation_work, training_work
from charactertrain.plan.lengths import Lengths, cut_short
from charactertrain.plan.work import StageWork
from charactertrain.records import Trait
from charactertrain.stages.counts import Counts, count
from charactertrain.stages.definitions import NAMES
from charactertrain.templates import NUM_WORKED_MESSAGES, synthesis_completion

_WORK: Mapping[str, Callable[[RunConfig, Counts, Lengths], StageWork]] = {
    "prompts": data_work.prompts,
    "responses": data_work.responses,
    "rankings": data_work.rankings,
    "preference_model": training_work.preference_model,
    "policy": training_work.policy,
    "evaluation": evaluation_work.evaluation,
}
"""The others compute nothing to speak of."""
_MESSAGE = "Message: "


def workload(
    config: RunConfig, constitution: Constitution, section: PlanSection
) -> dict[str, StageWork]:
    """The work of each stage, in order; what a file of the researcher's own brings is not read.

    Not counted: naming facets where the trait file has none, the readings' passes through the
    policy and its reference, and texts that are asked for again.
    """
    counts, found = count(config, constitution), lengths(config, constitution, section)
    return {
        name: _WORK[name](config, counts, found) if name in _WORK else StageWork() for name in NAMES
    }


def lengths(config: RunConfig, constitution: Constitution, section: PlanSection) -> Lengths:
    """Of the texts of a run."""
    traits = tuple(
        Trait(trait.id, trait.statement, trait.facets, None, trait.weight, constitution.name)
        for trait in constitution.traits
    )
    return Lengths(
        section=section,
        message=_message(config, section),
        traits=traits,
        placement=config.model.trait_placement,
        shows_all=config.model.traits_shown == "all",
    )


def _message(config: RunConfig, section: PlanSection) -> float:
    """Tokens of a message: a completion is as long as the worked messages that it follows."""
    mean = section.message_tokens
    if config.model.prompt_synthesis == "completion":
        text = synthesis_completion("trait", "", range(NUM_WORKED_MESSAGES)).text
        worked = [line for line in text.splitlines() if line.startswith(_MESSAGE)]
        characters = fmean(len(line) - len(_MESSAGE) for line in worked)
        mean = characters / section.characters_per_token
    return cut_short(mean, config.prompts.max_tokens / config.model.messages_per_call)
