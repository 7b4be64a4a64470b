"""How many rows a run makes, as far as its config and the constitution say: the most of each."""

from dataclasses import dataclass

from charactertrain.config import RunConfig
from charactertrain.constitution import Constitution


@dataclass(frozen=True)
class Counts:
    """Rows by what they are for. Filters take some away."""

    traits: int
    wanted: int
    """Prompts for which a trait matters, over all splits."""
    general: int
    """Prompts for which none does, for which no candidate is sampled."""
    tested: int
    """Of the wanted, those that are held out to the end."""
    validated: int
    """Of the wanted, those that measure the preference model."""
    candidates: int
    """Responses to each prompt that is not held out."""

    @property
    def answered(self) -> int:
        """Prompts that candidates are sampled for: to train on and to validate."""
        return self.wanted - self.tested

    @property
    def trained(self) -> int:
        """Prompts that models are trained on."""
        return self.answered - self.validated

    @property
    def responses(self) -> int:
        """Candidates of all prompts."""
        return self.answered * self.candidates

    @property
    def pairs_per_prompt(self) -> int:
        """Of a prompt's candidates."""
        return self.candidates * (self.candidates - 1) // 2

    @property
    def pairs(self) -> int:
        """Of all prompts."""
        return self.answered * self.pairs_per_prompt


def count(config: RunConfig, constitution: Constitution) -> Counts:
    """The rows that a run of `config` asks for, files of the researcher's own left aside."""
    section = config.prompts
    general_share = section.kind_shares.get("general", 0.0)
    num_traits = len(constitution.traits)
    total = num_traits * section.per_trait
    wanted = round(total * (1 - general_share))
    return Counts(
        traits=num_traits,
        wanted=wanted,
        general=round(total * general_share),
        tested=wanted - round(wanted * (1 - section.test_share)),
        validated=round(wanted * section.validation_share),
        candidates=config.responses.per_prompt,
    )
