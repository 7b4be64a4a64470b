"""Pages on which people judge: two responses against each other, and which trait one shows."""

import random
import secrets
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from charactertrain import records
from charactertrain.records import NO_TRAIT, ReviewEvent
from charactertrain.review import picking, tallies
from charactertrain.review.desk import Desk, Form, OfDesk, Reviewer, go, page, wanted
from charactertrain.review.picking import Pick
from charactertrain.reviews import text_checksum
from charactertrain.seeds import derive_seed

router = APIRouter()

_ANSWERS = ("left", "right", "tie", "neither", "unsure")
_MAX_CHOICES = 6
"""Traits that a response's is to be told from, itself included."""
_NAMING_TRIES = 64


@router.get("/judge")
def judge(request: Request, desk: OfDesk, reviewer: Reviewer, trait: str = "") -> HTMLResponse:
    """The next pair of the reviewer, blind."""
    traits = desk.run.traits()
    if trait and trait not in traits:
        raise HTTPException(404, "this run has no such trait")
    history = tallies.blind_verdicts(desk.store.events(), reviewer)
    found = _next(desk, history, reviewer, trait)
    last = history[-1] if history else None
    shown: dict[str, Any] = {"traits": traits, "trait": trait, "num_judged": len(history)}
    if found is None:
        return page(request, "judge.html", item=None, last=last, **shown)
    responses = desk.run.responses(found.prompt_id)
    first, second = responses[found.first_id], responses[found.second_id]
    times = sum({e.first_id, e.second_id} == {found.first_id, found.second_id} for e in history)
    is_first_left = picking.is_first_on_the_left(reviewer, found, times)
    left, right = (first, second) if is_first_left else (second, first)
    item = {"pick": found, "left": left, "right": right, "nonce": secrets.token_hex(8)}
    return page(request, "judge.html", item=item, last=last, **shown)


def _next(desk: Desk, history: list[ReviewEvent], reviewer: str, trait: str) -> Pick | None:
    index = desk.pairs()
    decisions = desk.decisions()
    ranked = [t for t in dict.fromkeys(index.traits) if t in ((trait,) if trait else index.traits)]
    return picking.pick(
        index,
        history,
        reviewer,
        trait_ids=ranked,
        left_out={*decisions.dropped_responses, *decisions.dropped_prompts},
    )


@router.post("/judge")
def take_judgement(desk: OfDesk, reviewer: Reviewer, form: Form) -> RedirectResponse:
    """Record a blind verdict and go on to the next pair."""
    answer = wanted(form, "answer", _ANSWERS)
    way = wanted(form, "way", picking.WAYS)
    pair = compared(desk, form)
    first, second = pair["first_id"], pair["second_id"]
    left = wanted(form, "left", (first, second))
    if answer in ("left", "right"):
        answer = "first" if (answer == "left") == (left == first) else "second"
    desk.record(form, reviewer, "verdict", answer=answer, left_id=left, picked_by=way, **pair)
    return go(_judge_url(form))


def compared(desk: Desk, form: dict[str, str]) -> dict[str, str]:
    """A form's two responses as an event has them; HTTP 404 where they are not ranked."""
    ranking = desk.run.ranking(form.get("prompt", ""))
    pair = tuple(sorted((form.get("first", ""), form.get("second", ""))))
    if ranking is None or pair[0] == pair[1] or not {*pair} <= {*ranking.response_ids}:
        raise HTTPException(404, "this run has no ranking of these two responses")
    responses = desk.run.responses(ranking.prompt_id)
    return {
        "trait_id": ranking.trait_id,
        "prompt_id": ranking.prompt_id,
        "first_id": pair[0],
        "second_id": pair[1],
        "first_checksum": text_checksum(responses[pair[0]].text),
        "second_checksum": text_checksum(responses[pair[1]].text),
    }


@router.post("/judge/undo")
def take_back(desk: OfDesk, reviewer: Reviewer, form: Form) -> RedirectResponse:
    """Withdraw the reviewer's last blind verdict; its pair comes again."""
    history = tallies.blind_verdicts(desk.store.events(), reviewer)
    if history and history[-1].event_id == form.get("event"):
        last = history[-1]
        names = ("trait_id", "prompt_id", "first_id", "second_id", "first_checksum")
        pair = {name: getattr(last, name) for name in (*names, "second_checksum")}
        desk.record(form, reviewer, "verdict", answer="withdrawn", picked_by="browsing", **pair)
    return go(_judge_url(form))


def _judge_url(form: dict[str, str]) -> str:
    trait = form.get("only_trait", "")
    return f"/judge?{urlencode({'trait': trait})}" if trait else "/judge"


@router.get("/naming")
def naming(request: Request, desk: OfDesk, reviewer: Reviewer) -> HTMLResponse:
    """A response, and the traits that it may have been written for."""
    traits = desk.run.traits()
    events = desk.store.events()
    named = [e for e in events if e.kind == "naming" and e.reviewer == reviewer]
    found = _response_to_name(desk, named, reviewer)
    shown = {"num_named": len(named), "nonce": secrets.token_hex(8), "traits": traits}
    if found is None:
        return page(request, "naming.html", item=None, choices=[], **shown)
    return page(
        request,
        "naming.html",
        item=found,
        choices=_choices(list(traits), found.trait_id, found.response_id),
        **shown,
    )


def _response_to_name(
    desk: Desk, named: list[ReviewEvent], reviewer: str
) -> records.Response | None:
    """One of the responses, at random; the same until it is named."""
    table = desk.run.table("responses", "responses")
    seen = {event.first_id for event in named}
    draw = random.Random(derive_seed("naming", reviewer, len(named)))
    for _ in range(_NAMING_TRIES if len(table) else 0):
        row = table.rows([draw.randrange(len(table))], ["response_id", "prompt_id", "trait_id"])[0]
        if row["response_id"] not in seen and row["trait_id"] != NO_TRAIT:
            return desk.run.responses(row["prompt_id"])[row["response_id"]]
    return None


def _choices(trait_ids: list[str], truth: str, response_id: str) -> list[str]:
    """The truth among others, in an order that does not tell which it is."""
    draw = random.Random(derive_seed("choices", response_id))
    others = [trait_id for trait_id in trait_ids if trait_id != truth]
    chosen = [truth, *draw.sample(others, min(len(others), _MAX_CHOICES - 1))]
    draw.shuffle(chosen)
    return chosen


@router.post("/naming")
def take_name(desk: OfDesk, reviewer: Reviewer, form: Form) -> RedirectResponse:
    """Record which trait a response was taken for."""
    responses = desk.run.responses(form.get("prompt", ""))
    found = responses.get(form.get("response", ""))
    if found is None:
        raise HTTPException(404, "this run has no such response")
    desk.record(
        form,
        reviewer,
        "naming",
        trait_id=found.trait_id,
        prompt_id=found.prompt_id,
        first_id=found.response_id,
        first_checksum=text_checksum(found.text),
        answer=wanted(form, "answer", (*desk.run.traits(), "none", "unsure")),
        variant=found.variant,
        picked_by="random",
    )
    return go("/naming")


@router.get("/agreement")
def agreement(request: Request, desk: OfDesk, part: bool = False) -> Response:
    """How far people agree; `part` asks for the numbers alone."""
    index = desk.pairs()
    found = tallies.tally(
        desk.store.events(),
        lambda event: index.probability(event.prompt_id, event.first_id, event.second_id),
    )
    template = "agreement_numbers.html" if part else "agreement.html"
    # A response's own trait among the choices, and "none of them".
    chance = 1 / (1 + min(_MAX_CHOICES, len(desk.run.traits())))
    return page(request, template, tally=found, chance=chance, least=tallies.MIN_PROMPTS)
