"""The jobs of revealed preferences, worked on in this process, from offers to results."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from planted_chooser import PlantedChooser

from charactertrain.config import RunConfig
from charactertrain.records import OfferReply, TraitChoice, from_table, to_table
from charactertrain.runtime.dataflow import ChunkJob, Produced, chunk_name
from charactertrain.stages.context import Context
from charactertrain.stages.evaluation import choosing
from charactertrain.storage import Directory, open_directory

TRAITS = ["curious", "open_nature", "honest"]


@dataclass(frozen=True)
class Source:
    """Opens a planted chooser."""

    preferred: dict[str, float] = field(default_factory=dict)

    def open(self) -> PlantedChooser:
        """A new one."""
        return PlantedChooser(self.preferred, {})


class InlineSession:
    """Works on the chunks of a job one after the other, without Ray."""

    def run(self, job: ChunkJob) -> Produced:
        """As a session does, in one attempt."""
        processor = job.make_processor(job.sampler.open())
        names = []
        for chunk in job.source.chunks(1000):
            rows, rejects = processor.process(job.source.read(chunk))
            assert rejects == []
            names.append(chunk_name(job.table, chunk.index))
            job.target.write_table(names[-1], to_table(rows, job.result_type))
        return Produced(tuple(names), (), 0, {}, {})


@dataclass(frozen=True)
class Settings:
    """Those of a run that revealed preferences read."""

    preferences: Any
    num_resamples: int = 100
    seed: int = 3
    trait_placement: str = "system"
    max_reject_share: float = 0.1

    @property
    def evaluation(self) -> "Settings":
        """The section."""
        return self

    @property
    def model(self) -> "Settings":
        """The section."""
        return self

    @property
    def responses(self) -> "Settings":
        """The section."""
        return self


@dataclass(frozen=True)
class Preferences:
    """Their section."""

    pairs_per_trait: int
    max_tokens: int = 8
    judged: bool = False


def chosen(path: Path, pairs_per_trait: int) -> tuple[Directory, Sequence[str], RunConfig]:
    directory = open_directory(str(path))
    config = cast(RunConfig, Settings(Preferences(pairs_per_trait)))
    base, policy = Source(), Source({"curious": 99.0})
    names = choosing.run_choices(
        directory,
        Context(config, cast(Any, None), cast(Any, InlineSession())),
        TRAITS,
        {"base": base, "policy": policy},
        base,
    )
    return directory, names, config


def test_arms_choose_and_are_compared(tmp_path: Path) -> None:
    directory, names, config = chosen(tmp_path, 8)
    assert names
    assert all(name.startswith("trait_choices/") for name in names)
    choices = [c for name in names for c in from_table(directory.read_table(name), TraitChoice)]
    replies = from_table(
        directory.read_table("offer_replies_policy/part-000000.parquet"), OfferReply
    )
    assert {c.offer.condition for c in choices if c.arm == "policy"} == {"free", "random"}
    assert {c.offer.condition for c in choices if c.arm == "base"} == {"free", "random", "told"}
    assert len(replies) == sum(c.arm == "policy" for c in choices)
    found = choosing.report(directory, names, TRAITS, config)
    effects = {trait: by_arm["policy"] for trait, by_arm in found["changes"].items()}
    assert effects["curious"]["ci_low"] > 0
    assert effects["curious"]["p_value"] < 0.001
    assert set(found["order_agreement"]) == {"policy"}
    assert found["words"]["open_nature"] == "open nature"


def test_nothing_is_offered_where_no_pairs_are_asked_for(tmp_path: Path) -> None:
    directory, names, config = chosen(tmp_path, 0)
    assert names == []
    assert choosing.report(directory, names, TRAITS, config) == {}
    assert directory.files() == []
