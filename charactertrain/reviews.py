"""What people said of a run's responses: its events, and what they decide about pairs.

The events are append-only. A run remembers the checksum of those that its pairs were made with, and
reads that many of them, however many have come since.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from charactertrain.artifacts import canonical_json, check_schema
from charactertrain.exceptions import ConfigError
from charactertrain.records import Ranking, Response, ReviewEvent, from_table, schema

DIRECTORY_NAME = "reviews"
DATABASE_NAME = "reviews.sqlite"
EXPORT_NAME = "reviews.parquet"
COLUMNS = tuple(field.name for field in fields(ReviewEvent))

_BEARING = ("verdict", "drop_response", "restore_response", "drop_prompt", "restore_prompt")
"""Kinds of events that pairs are made with; what a trait was taken for changes none."""
VOTES = {"first": 1.0, "second": 0.0, "tie": 0.5}
"""What answers say of the first response; others say nothing."""
_OF_NOTHING = xxhash.xxh3_128().hexdigest()
_SHOWN_CHECKSUM_DIGITS = 12

PairKey = tuple[str, str, str]
"""Trait, and the two response ids, the lesser first."""


def text_checksum(text: str) -> str:
    """xxh3-128 of a text in UTF-8, in hexadecimal."""
    return xxhash.xxh3_128(text.encode("utf-8", "surrogatepass")).hexdigest()


def read_events(location: str) -> list[ReviewEvent]:
    """All events, in the order in which they came.

    Args:
        location: A `reviews` directory, or the parquet file that the review page exports.

    Raises:
        ConfigError: Nothing of the kind is there.
    """
    path = Path(location).expanduser()
    if path.is_dir():
        path = path / (DATABASE_NAME if (path / DATABASE_NAME).exists() else EXPORT_NAME)
    if not path.is_file():
        raise ConfigError(
            f"pairs.reviews: there is no {path}; expected the {DIRECTORY_NAME} directory that the "
            f"review page keeps in a run directory, or a {EXPORT_NAME} exported by it"
        )
    try:
        if path.suffix == ".parquet":
            return _events_of_export(path)
        return list(events_of_database(path))
    except (sqlite3.Error, pa.ArrowInvalid, OSError) as error:
        raise ConfigError(
            f"pairs.reviews: {path} cannot be read: {error}. Give the directory or the export of a "
            "review page; where the directory cannot be written to, give the export"
        ) from error


def _events_of_export(path: Path) -> list[ReviewEvent]:
    table = pq.read_table(path)
    check_schema(table, schema(ReviewEvent), str(path))
    return from_table(table.select(list(COLUMNS)), ReviewEvent)


def events_of_database(path: Path) -> Iterator[ReviewEvent]:
    """The events of a database, which may be written to at the same time; raises sqlite3.Error."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    try:
        query = f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY sequence"
        for row in connection.execute(query):
            yield ReviewEvent(*row)
    finally:
        connection.close()


def checksum(location: str) -> str:
    """Of the events that bear on pairs, in their order; raises ConfigError as `read_events`."""
    digests = [digest for _, digest in _with_checksums(read_events(location))]
    return digests[-1] if digests else _OF_NOTHING


def events_until(location: str, expected: str) -> list[ReviewEvent]:
    """The events that bear on pairs up to the one with which their checksum was `expected`.

    Raises:
        ConfigError: No beginning of the events has that checksum.
    """
    found: list[ReviewEvent] = []
    if expected == _OF_NOTHING:
        return found
    for event, digest in _with_checksums(read_events(location)):
        found.append(event)
        if digest == expected:
            return found
    raise ConfigError(
        f"pairs.reviews: {location} no longer begins with the events that this run was planned "
        f"with (checksum {expected[:_SHOWN_CHECKSUM_DIGITS]}). Events are only ever added to a "
        "review page's database: put back the one that was there, or use another run.dir"
    )


def _with_checksums(events: Iterable[ReviewEvent]) -> Iterator[tuple[ReviewEvent, str]]:
    """Each event that bears on pairs, and the checksum of those up to it."""
    digest = xxhash.xxh3_128()
    for event in events:
        if event.kind in _BEARING:
            digest.update(canonical_json(asdict(event)).encode("utf-8", "surrogatepass"))
            yield event, digest.hexdigest()


@dataclass(frozen=True)
class Verdict:
    """What reviewers said of two responses, the latest word of each."""

    key: PairKey
    checksums: tuple[str, str]
    """Of the texts that they saw."""
    votes: Mapping[str, float]
    """By reviewer: 1 for the first response, 0 for the second, 0.5 for a tie."""

    @property
    def probability(self) -> float:
        """Share of the votes for the first response, ties counted as halves."""
        return sum(self.votes.values()) / len(self.votes)


@dataclass(frozen=True)
class Decisions:
    """What the events come to; a decision is known by the event that it was last made in."""

    verdicts: Mapping[PairKey, tuple[Verdict, ...]]
    """One for each state of the two texts that was judged; those without a vote are left out."""
    dropped_responses: Mapping[str, ReviewEvent]
    dropped_prompts: Mapping[str, ReviewEvent]

    def __bool__(self) -> bool:
        return bool(self.verdicts or self.dropped_responses or self.dropped_prompts)


NO_DECISIONS = Decisions({}, {}, {})


def decide(events: Iterable[ReviewEvent]) -> Decisions:
    """The latest word of each reviewer on each pair, and what is dropped and not restored since.

    A word that is withdrawn leaves the reviewer's word before it, if there was one.
    """
    words: dict[tuple[PairKey, tuple[str, str]], dict[str, list[str]]] = defaultdict(dict)
    dropped: dict[str, dict[str, ReviewEvent]] = {"response": {}, "prompt": {}}
    for event in events:
        verb, _, thing = event.kind.partition("_")
        if event.kind == "verdict":
            key = (event.trait_id, event.first_id, event.second_id)
            of_pair = words[key, (event.first_checksum, event.second_checksum)]
            of_reviewer = of_pair.setdefault(event.reviewer, [])
            if event.answer != "withdrawn":
                of_reviewer.append(event.answer)
            elif of_reviewer:
                of_reviewer.pop()
        elif verb == "drop":
            dropped[thing][_dropped_id(event)] = event
        elif verb == "restore":
            dropped[thing].pop(_dropped_id(event), None)
    verdicts: dict[PairKey, tuple[Verdict, ...]] = {}
    for (key, checksums), of_pair in words.items():
        votes = {
            reviewer: VOTES[answers[-1]]
            for reviewer, answers in of_pair.items()
            if answers and answers[-1] in VOTES
        }
        if votes:
            verdicts[key] = (*verdicts.get(key, ()), Verdict(key, checksums, votes))
    return Decisions(verdicts, dropped["response"], dropped["prompt"])


def _dropped_id(event: ReviewEvent) -> str:
    return event.first_id if event.kind.endswith("response") else event.prompt_id


@dataclass(frozen=True)
class RankingReview:
    """What was decided about one ranking's responses, as far as ids and texts are the same."""

    probabilities: Mapping[tuple[str, str], float]
    """By response ids, the lesser first: that it is the better."""
    dropped: Mapping[str, str]
    """By response id: why it, or its prompt, is left out."""
    applied: frozenset[str]
    """Names of the decisions, as `decision_names` gives them."""

    def probability(self, response_id: str, other_id: str) -> float | None:
        """That the first response given is the better; None where nobody decided."""
        if response_id < other_id:
            return self.probabilities.get((response_id, other_id))
        found = self.probabilities.get((other_id, response_id))
        return None if found is None else 1 - found


NO_REVIEW = RankingReview({}, {}, frozenset())


def review_of_ranking(
    decisions: Decisions, ranking: Ranking, responses: Mapping[str, Response]
) -> RankingReview:
    """The decisions that name the ranking's responses and were made on the texts that they have."""
    if not decisions:
        return NO_REVIEW
    probabilities, dropped, applied = {}, {}, set()
    for pair in combinations(sorted(ranking.response_ids), 2):
        for verdict in decisions.verdicts.get((ranking.trait_id, *pair), ()):
            if verdict.checksums == tuple(text_checksum(responses[id_].text) for id_ in pair):
                probabilities[pair] = verdict.probability
                applied.add(_verdict_name(verdict))
    gone = decisions.dropped_prompts.get(ranking.prompt_id)
    for response_id in ranking.response_ids:
        response = responses[response_id]
        event = decisions.dropped_responses.get(response_id)
        is_of_prompt = event is not None and event.prompt_id == ranking.prompt_id
        if event and is_of_prompt and event.first_checksum == text_checksum(response.text):
            dropped[response_id] = f"response {response_id} was dropped {_because(event)}"
            applied.add(event.event_id)
        if gone and gone.first_checksum == text_checksum(response.prompt):
            dropped[response_id] = f"its prompt was dropped {_because(gone)}"
            applied.add(gone.event_id)
    return RankingReview(probabilities, dropped, frozenset(applied))


def decision_names(decisions: Decisions) -> dict[str, tuple[str, str]]:
    """A name for each decision, with its trait and what it says."""
    named = {}
    for found in decisions.verdicts.values():
        for verdict in found:
            trait_id, first, second = verdict.key
            says = f"{first} over {second} by {verdict.probability:g}"
            named[_verdict_name(verdict)] = (trait_id, says)
    for events in (decisions.dropped_responses, decisions.dropped_prompts):
        for id_, event in events.items():
            thing = event.kind.removeprefix("drop_")
            named[event.event_id] = (event.trait_id, f"{thing} {id_} dropped {_because(event)}")
    return named


def _verdict_name(verdict: Verdict) -> str:
    return text_checksum("\x1f".join((*verdict.key, *verdict.checksums)))


def _because(event: ReviewEvent) -> str:
    return f"by {event.reviewer}: {event.note}" if event.note else f"by {event.reviewer}"


def export_table(events: Sequence[ReviewEvent]) -> pa.Table:
    """The events as a table; the same events give the same."""
    columns: list[list[Any]] = [[getattr(event, name) for event in events] for name in COLUMNS]
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.Table.from_arrays(arrays, schema=schema(ReviewEvent))
