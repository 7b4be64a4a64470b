"""Pages on which people look at a run: its stages, its tables, a prompt what came of it."""

import secrets
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse

from charactertrain.records import Ranking
from charactertrain.review.desk import Desk, OfDesk, Reviewer, page
from charactertrain.review.tables import Cells, Hits, Table
from charactertrain.reviews import VOTES, Decisions, text_checksum

router = APIRouter()

PAGE_ROWS = 50
_PROMPTS_OF_SAMPLES = 10
_CURVES = ("loss", "reward", "gold_reward", "kl", "entropy", "accuracy", "held_out_loss")


@dataclass(frozen=True)
class Listing:
    """A table that can be leafed through."""

    title: str
    stage: str
    table: str
    columns: tuple[str, ...]
    """That the page shows."""
    searched: tuple[str, ...]
    filters: tuple[str, ...]
    """Columns whose values the page can be narrowed to."""


LISTINGS = {
    "prompts": Listing(
        "Prompts",
        "prompts",
        "prompts",
        ("prompt_id", "trait_id", "kind", "split", "facet", "text"),
        ("text", "facet"),
        ("trait_id", "split", "kind"),
    ),
    "responses": Listing(
        "Responses",
        "responses",
        "responses",
        ("response_id", "prompt_id", "trait_id", "split", "variant", "prompt", "text"),
        ("text", "prompt"),
        ("trait_id", "split", "variant"),
    ),
    "rankings": Listing(
        "Rankings",
        "rankings",
        "rankings",
        (
            "prompt_id",
            "trait_id",
            "split",
            "utilities",
            "pair_probabilities",
            "method",
            "swap_consistency",
        ),
        (),
        ("trait_id", "split"),
    ),
    "pairs": Listing(
        "Pairs",
        "pairs",
        "pairs",
        (
            "pair_id",
            "prompt_id",
            "trait_id",
            "split",
            "prompt",
            "chosen",
            "rejected",
            "probability",
            "weight",
        ),
        ("prompt", "chosen", "rejected"),
        ("trait_id", "split"),
    ),
}


@router.get("/")
def home(request: Request, desk: OfDesk, part: bool = False) -> HTMLResponse:
    """The run's stages and how far it has come; `part` asks for that alone."""
    states = desk.run.stages()
    return page(
        request,
        "progress.html" if part else "home.html",
        stages=[(state, desk.run.progress(state)) for state in states],
        curves=[curve for curve in desk.run.curves(_CURVES) if len(curve.values) > 1],
        traits=desk.run.traits(),
        num_events=len(desk.store.events()),
    )


@router.get("/list/{name}")
def listing(request: Request, desk: OfDesk, name: str, q: str = "", start: int = 0) -> HTMLResponse:
    """A page of a table, narrowed by its filters and by a search."""
    found = LISTINGS.get(name)
    if found is None:
        raise HTTPException(404, f"expected one of {', '.join(LISTINGS)}")
    table = desk.run.table(found.stage, found.table)
    asked = {key: request.query_params.get(key, "") for key in found.filters}
    equal = {key: value for key, value in asked.items() if value}
    among = table.where(**equal) if equal and len(table) else None
    hits = _hits(table, q if found.searched else "", found.searched, among, max(0, start))
    rows = table.rows(hits.positions, found.columns)
    if name == "rankings":
        _add_prompts(desk, rows)
    return page(
        request,
        "list.html",
        listing=found,
        name=name,
        rows=rows,
        q=q,
        asked=asked,
        start=start,
        next_start=hits.next_start,
        num_rows=len(table),
        num_found=len(table) if among is None else len(among),
        trait_ids=list(desk.run.traits()),
        decisions=desk.decisions(),
    )


def _hits(table: Table, q: str, searched: tuple[str, ...], among: Any, start: int) -> Hits:
    """Positions of one page; `start` counts rows of the table."""
    if q:
        return table.search(q, searched, among, start=start, limit=PAGE_ROWS)
    if among is None:
        stop = min(len(table), start + PAGE_ROWS)
        return Hits(tuple(range(min(start, stop), stop)), stop if stop < len(table) else None)
    left = among[np.searchsorted(among, start) :]
    following = int(left[PAGE_ROWS]) if len(left) > PAGE_ROWS else None
    return Hits(tuple(left[:PAGE_ROWS].tolist()), following)


def _add_prompts(desk: Desk, rows: list[Cells]) -> None:
    """The text of each ranking's prompt, and how certain its least certain pair is."""
    for row in rows:
        prompt = desk.run.prompt(row["prompt_id"])
        row["text"] = "" if prompt is None else prompt["text"]
        row["least"] = min(max(p, 1 - p) for p in row["pair_probabilities"])


@dataclass(frozen=True)
class ComparedPair:
    """Two responses of a ranking, as the page shows them."""

    better: int
    """Places in the ranking, from 1: the first is what the ranking holds for the better."""
    worse: int
    better_id: str
    worse_id: str
    probability: float
    """The ranking's."""
    judged: float | None
    """What reviewers came to: that `better` is the better."""
    votes: dict[str, str]
    """By reviewer, in words."""


@router.get("/prompt")
def prompt(request: Request, desk: OfDesk, reviewer: Reviewer, id: str) -> HTMLResponse:
    """A prompt, its responses in their ranking with the reasons, and what people made of it."""
    responses = desk.run.responses(id)
    row = desk.run.prompt(id)
    if row is None and not responses:
        raise HTTPException(404, "this run has no such prompt")
    ranking = desk.run.ranking(id)
    decisions = desk.decisions()
    order = ranking.response_ids if ranking else tuple(responses)
    trait_id = row["trait_id"] if row else next(iter(responses.values())).trait_id
    return page(
        request,
        "prompt.html",
        prompt_id=id,
        text=row["text"] if row else next(iter(responses.values())).prompt,
        row=row,
        trait_id=trait_id,
        statement=desk.run.traits().get(trait_id, ""),
        ranking=ranking,
        ranked=[responses[each] for each in order],
        unranked=[each for each in responses.values() if ranking and each.response_id not in order],
        pairs=_compared_pairs(ranking, decisions, responses) if ranking else [],
        decisions=decisions,
        samples=_samples_of(desk, [id]).get(id, []),
        nonce=secrets.token_hex(8),
    )


def _compared_pairs(ranking: Ranking, decisions: Decisions, responses: Any) -> list[ComparedPair]:
    pairs = combinations(range(len(ranking.response_ids)), 2)
    found = []
    for (i, j), probability in zip(pairs, ranking.pair_probabilities, strict=True):
        better, worse = (i, j) if probability >= 0.5 else (j, i)
        ids = ranking.response_ids[better], ranking.response_ids[worse]
        first, second = sorted(ids)
        checksums = tuple(text_checksum(responses[each].text) for each in (first, second))
        judged, votes = None, {}
        for verdict in decisions.verdicts.get((ranking.trait_id, first, second), ()):
            if verdict.checksums == checksums:
                is_same = ids[0] == first
                judged = verdict.probability if is_same else 1 - verdict.probability
                votes = {
                    name: _in_words(vote if is_same else 1 - vote, better + 1, worse + 1)
                    for name, vote in verdict.votes.items()
                }
        certainty = max(probability, 1 - probability)
        found.append(ComparedPair(better + 1, worse + 1, *ids, certainty, judged, votes))
    return found


def _in_words(vote: float, better: int, worse: int) -> str:
    if vote == VOTES["tie"]:
        return "tie"
    return f"#{better}" if vote == VOTES["first"] else f"#{worse}"


@router.get("/samples")
def samples(
    request: Request, desk: OfDesk, trait_id: str = "", q: str = "", start: int = 0
) -> HTMLResponse:
    """Held-out prompts with the replies of each arm side by side: before and after."""
    table = desk.run.table("evaluation", "samples")
    prompt_ids: list[str] = []
    num_prompts, is_cut = 0, False
    if len(table):
        among = table.where(trait_id=trait_id) if trait_id else None
        if q:
            hits = table.search(q, ("prompt", "text"), among, start=0, limit=PAGE_ROWS * 10)
            among, is_cut = np.array(hits.positions, np.int64), hits.next_start is not None
        column = table.column("prompt_id").to_pylist()
        chosen = column if among is None else [column[int(p)] for p in among]
        distinct = list(dict.fromkeys(chosen))
        num_prompts, start = len(distinct), max(0, start)
        prompt_ids = distinct[start : start + _PROMPTS_OF_SAMPLES]
    following = start + _PROMPTS_OF_SAMPLES
    return page(
        request,
        "samples.html",
        groups=_samples_of(desk, prompt_ids),
        trait_ids=list(desk.run.traits()),
        trait_id=trait_id,
        q=q,
        start=start,
        num_prompts=num_prompts,
        is_cut=is_cut,
        next_start=following if following < num_prompts else None,
    )


def _samples_of(desk: Desk, prompt_ids: list[str]) -> dict[str, list[tuple[str, list[Cells]]]]:
    """The evaluation's replies by prompt, and for each prompt by arm."""
    table = desk.run.table("evaluation", "samples")
    if not len(table) or not prompt_ids:
        return {}
    asked = ("arm", "trait_id", "prompt", "text", "contrast", "reward", "detected", "num_tokens")
    columns = [name for name in asked if name in table.has]
    found: dict[str, list[tuple[str, list[Cells]]]] = {}
    for prompt_id in prompt_ids:
        arms: dict[str, list[Cells]] = {}
        for row in table.rows([int(p) for p in table.where(prompt_id=prompt_id)], columns):
            arms.setdefault(row["arm"], []).append(row)
        found[prompt_id] = sorted(arms.items(), key=lambda item: item[0] != "base")
    return found
