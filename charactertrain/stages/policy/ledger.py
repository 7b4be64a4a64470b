"""Which groups of rollouts are asked for, made and trained on: each of them exactly once.

Groups are numbered in the order of the prompts and taken in that order, whichever is done first, so
that what a step trains on does not depend on how fast engines are.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from charactertrain.exceptions import TrainingError
from charactertrain.stages.policy.rollouts import Rollout, Version


@dataclass(frozen=True)
class LedgerSettings:
    """How many groups a step takes, and how far ahead of it they may be made."""

    num_steps: int
    per_step: int
    ahead: int
    """Most steps that groups are made ahead of the weights that engines have; at 0 they wait while
    a step is trained."""
    max_staleness: int
    """Most steps between the weights that wrote a token and the step that is trained on it."""
    max_refills: int
    """Most groups of a step that are replaced by later ones because all their rewards are equal,
    and nothing is to be learnt from them."""


@dataclass(frozen=True)
class Batch:
    """What one step is trained on."""

    groups: tuple[tuple[Rollout, ...], ...]
    refills: int
    """Groups of equal rewards that were left out for it."""
    staleness: tuple[int, ...]
    """Of each token, in steps."""


class Ledger:
    """The numbers of groups and where they are; knows nothing of engines."""

    def __init__(self, settings: LedgerSettings) -> None:
        """Before the first step: nothing has been asked for."""
        self._settings = settings
        self._steps = 0
        self._taken = 0
        """Groups below this number are trained on or left out."""
        self._next = 0
        """Groups from this number on have never been asked for."""
        self._lost: set[int] = set()
        """Asked for, and to be asked for again."""
        self._done: dict[int, tuple[Rollout, ...]] = {}
        """Made, and not taken yet."""

    @property
    def num_waiting(self) -> int:
        """Groups that are made and not taken."""
        return len(self._done)

    def ask(self, version: Version) -> int | None:
        """The number of the group to make next; None if it is too far ahead, or of no step.

        Args:
            version: Steps that the engines' weights have behind them.
        """
        number = min(self._lost, default=self._next)
        step = self._step_of(number)
        if step - version > self._settings.ahead or step >= self._settings.num_steps:
            return None
        if number in self._lost:
            self._lost.remove(number)
        else:
            self._next += 1
        return number

    def lose(self, number: int) -> None:
        """A group that was asked for will not be made: it is to be asked for again."""
        self._lost.add(number)

    def make(self, number: int, group: tuple[Rollout, ...]) -> None:
        """A group that was asked for is there."""
        assert self._taken <= number < self._next, f"group {number} was not asked for"
        assert number not in self._done, f"group {number} was made twice"
        self._done[number] = group

    def take(self) -> Batch | None:
        """The next step's groups, or None while they are not all there."""
        groups, refills, number = [], 0, self._taken
        for number, is_used in self._fates():
            if number not in self._done:
                return None
            refills += not is_used
            if is_used:
                groups.append(self._done[number])
            if len(groups) == self._settings.per_step:
                break
        batch = Batch(tuple(groups), refills, tuple(self._staleness(groups)))
        for taken in range(self._taken, number + 1):
            del self._done[taken]
        self._taken, self._steps = number + 1, self._steps + 1
        return batch

    def _fates(self) -> Iterator[tuple[int, bool]]:
        """Every group from the first that is not taken, and whether a step is trained on it.

        One that is not made yet counts as trained on: if it is not, those after it come earlier.
        """
        number = self._taken
        while True:
            left = self._settings.max_refills
            used = 0
            while used < self._settings.per_step:
                is_used = left == 0 or not _is_flat(self._done.get(number))
                left, used = left - (not is_used), used + is_used
                yield number, is_used
                number += 1

    def _step_of(self, number: int) -> int:
        """The step that takes a group, counted from 0."""
        used = 0
        for other, is_used in self._fates():
            if other == number:
                break
            used += is_used
        return self._steps + used // self._settings.per_step

    def _staleness(self, groups: list[tuple[Rollout, ...]]) -> Iterator[int]:
        for group in groups:
            for rollout in group:
                for version in rollout.token_versions():
                    staleness = self._steps - version
                    if not 0 <= staleness <= self._settings.max_staleness:
                        raise TrainingError(
                            f"step {self._steps + 1} has a token of prompt {rollout.prompt_id} "
                            f"that weights of version {version} wrote, and policy.max_staleness is "
                            f"{self._settings.max_staleness}: an engine was not given its weights"
                        )
                    yield staleness

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON can hold it; what is being made is left to be asked again."""
        done = {
            str(number): [asdict(rollout) for rollout in group]
            for number, group in self._done.items()
        }
        return {"steps": self._steps, "taken": self._taken, "done": done}

    @classmethod
    def restored(cls, settings: LedgerSettings, state: dict[str, Any]) -> Self:
        """As it was when `state` was written."""
        ledger = cls(settings)
        ledger._steps, ledger._taken = state["steps"], state["taken"]
        ledger._done = {
            int(number): tuple(Rollout.from_json(values) for values in group)
            for number, group in state["done"].items()
        }
        ledger._next = max([ledger._taken, *(number + 1 for number in ledger._done)])
        ledger._lost = set(range(ledger._taken, ledger._next)) - ledger._done.keys()
        return ledger


def _is_flat(group: tuple[Rollout, ...] | None) -> bool:
    return group is not None and len({rollout.reward for rollout in group}) == 1
