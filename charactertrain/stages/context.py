"""What every stage is given besides its work: config, model, constitution, session."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from charactertrain.artifacts import Json
from charactertrain.config import RunConfig
from charactertrain.constitution import Constitution
from charactertrain.models import sources
from charactertrain.records import Trait
from charactertrain.runtime.sampling import SamplingSettings
from charactertrain.runtime.session import Session


@dataclass(frozen=True)
class Context:
    """One run, as its stages see it."""

    config: RunConfig
    constitution: Constitution
    session: Session
    defaults: Json | None = None
    """The config without overrides, for the report; None where it is not known."""

    @cached_property
    def model_directory(self) -> Path:
        """The base model's local directory."""
        return sources.resolve(self.config.model.path)

    def traits(self) -> list[Trait]:
        """The constitution's traits as records."""
        return [
            Trait(
                trait_id=trait.id,
                statement=trait.statement,
                facets=trait.facets,
                detector=trait.detector.pattern if trait.detector else None,
                weight=trait.weight,
                source=self.constitution.name,
            )
            for trait in self.constitution.traits
        ]


def traits_shown(traits: dict[str, Trait], trait_id: str, mode: str) -> list[Trait]:
    """The traits that the model is shown for a prompt about `trait_id`; `mode` is of the config."""
    match mode:
        case "all":
            return list(traits.values())
        case "at_stake":
            return [traits[trait_id]]
        case "none":
            return []
        case _:
            raise AssertionError(f"config shows no traits by {mode!r}")


def traits_prompted(mode: str) -> str:
    """How the arm `prompted` is shown the character: as the run's responses were.

    A run that shows none is a control, and is measured like the others: by the trait at stake.
    """
    return "at_stake" if mode == "none" else mode


def response_settings(*, temperature: float, max_tokens: int, ending: str) -> SamplingSettings:
    """How responses are drawn: untruncated distribution, natural or fixed end."""
    return SamplingSettings(
        temperature=temperature,
        top_p=1.0,
        max_tokens=max_tokens,
        min_tokens=max_tokens if ending == "fixed" else 0,
        stop=(),
    )
