"""Pages on which people correct a run: verdicts, what is dropped, a trait's wording, the export."""

import difflib
import secrets
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from charactertrain import reviews
from charactertrain.exceptions import ConstitutionError
from charactertrain.records import ReviewEvent, ReviewKind
from charactertrain.review.desk import (
    MAX_NAME_CHARACTERS,
    Desk,
    Form,
    OfDesk,
    Reviewer,
    go,
    page,
    wanted,
)
from charactertrain.review.judging import compared
from charactertrain.reviews import text_checksum
from charactertrain.trait_file import load_constitution

router = APIRouter()

CONSTITUTION_NAME = "constitution.yaml"
_ANSWERS = ("first", "second", "tie", "neither", "unsure", "withdrawn")
_SHOWN_EVENTS = 200


@router.post("/verdict")
def take_verdict(desk: OfDesk, reviewer: Reviewer, form: Form) -> RedirectResponse:
    """Record a verdict, to stand above the ranking's; `first` is what the form names so."""
    answer = wanted(form, "answer", _ANSWERS)
    pair = compared(desk, form)
    if answer in ("first", "second") and form["first"] != pair["first_id"]:
        answer = "second" if answer == "first" else "first"
    desk.record(form, reviewer, "verdict", answer=answer, picked_by="browsing", **pair)
    return go(prompt_url(pair["prompt_id"]))


@router.post("/drop")
def take_drop(desk: OfDesk, reviewer: Reviewer, form: Form) -> RedirectResponse:
    """Drop a prompt or a response with a reason, or restore it."""
    verb = wanted(form, "verb", ("drop", "restore"))
    responses = desk.run.responses(form.get("prompt", ""))
    if not responses:
        raise HTTPException(404, "this run has no responses to such a prompt")
    if verb == "drop" and not form.get("note", "").strip():
        raise HTTPException(422, "say in a few words why it is to be dropped")
    response = responses.get(form.get("response", ""))
    any_response = response or next(iter(responses.values()))
    kinds: dict[tuple[str, bool], ReviewKind] = {
        ("drop", True): "drop_response",
        ("restore", True): "restore_response",
        ("drop", False): "drop_prompt",
        ("restore", False): "restore_prompt",
    }
    if form.get("response") and response is None:
        raise HTTPException(404, "this run has no such response")
    desk.record(
        form,
        reviewer,
        kinds[verb, response is not None],
        trait_id=any_response.trait_id,
        prompt_id=any_response.prompt_id,
        first_id="" if response is None else response.response_id,
        first_checksum=text_checksum(any_response.prompt if response is None else response.text),
        picked_by="browsing",
    )
    return go(prompt_url(any_response.prompt_id))


def prompt_url(prompt_id: str) -> str:
    """Of the page of a prompt and its responses."""
    return f"/prompt?{urlencode({'id': prompt_id})}"


def wordings(events: list[ReviewEvent]) -> dict[str, str]:
    """The latest statement of each trait that was edited."""
    return {event.trait_id: event.answer for event in events if event.kind == "wording"}


@router.get("/traits")
def traits(request: Request, desk: OfDesk) -> HTMLResponse:
    """All traits, with what was edited."""
    edited = wordings(desk.store.events())
    found = desk.run.traits()
    return page(request, "traits.html", traits=found, edited=edited)


@router.get("/trait")
def trait(request: Request, desk: OfDesk, id: str) -> HTMLResponse:
    """A trait, its wording to be edited, and the edits so far."""
    return _trait_page(request, desk, id, draft=None, problem="")


def _trait_page(
    request: Request, desk: Desk, trait_id: str, *, draft: str | None, problem: str
) -> HTMLResponse:
    found = desk.run.traits()
    if trait_id not in found:
        raise HTTPException(404, "this run has no such trait")
    edits = [e for e in desk.store.events() if e.kind == "wording" and e.trait_id == trait_id]
    current = edits[-1].answer if edits else found[trait_id]
    return page(
        request,
        "trait.html",
        trait_id=trait_id,
        original=found[trait_id],
        draft=current if draft is None else draft,
        edits=[(edit, word_changes(found[trait_id], edit.answer)) for edit in reversed(edits)],
        problem=problem,
        nonce=secrets.token_hex(8),
    )


def word_changes(old: str, new: str) -> list[tuple[str, str]]:
    """The two texts word by word, as runs that are `kept`, `removed` or `added`."""
    before, after = old.split(), new.split()
    runs: list[tuple[str, str]] = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, i, j, k, end in matcher.get_opcodes():
        if tag == "equal":
            runs.append(("kept", " ".join(before[i:j])))
            continue
        runs += [("removed", " ".join(before[i:j]))] if j > i else []
        runs += [("added", " ".join(after[k:end]))] if end > k else []
    return runs


@router.post("/trait")
def take_wording(request: Request, desk: OfDesk, reviewer: Reviewer, form: Form) -> Response:
    """Record a trait's new wording, if a trait file could have it."""
    trait_id = wanted(form, "trait", tuple(desk.run.traits()))
    statement = " ".join(form.get("statement", "").split())
    try:
        _constitution_yaml(desk, {trait_id: statement})
    except ConstitutionError as error:
        return _trait_page(request, desk, trait_id, draft=statement, problem=str(error))
    desk.record(form, reviewer, "wording", trait_id=trait_id, answer=statement)
    return go(f"/trait?{urlencode({'id': trait_id})}")


def _constitution_yaml(desk: Desk, edited: dict[str, str]) -> bytes:
    """The run's trait file with edited statements; raises ConstitutionError if it is not one."""
    constitution = desk.run.constitution()
    if constitution is None:
        raise HTTPException(404, "this run has no traits yet")
    traits = [
        {key: value for key, value in trait.items() if value not in (None, [])}
        | {"statement": edited.get(trait["id"], trait["statement"])}
        for trait in constitution["traits"]
    ]
    values: dict[str, Any] = {**constitution, "traits": traits}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=96)
    with tempfile.TemporaryDirectory(prefix="charactertrain-") as temporary:
        path = Path(temporary) / CONSTITUTION_NAME
        path.write_text(text, encoding="utf-8")
        load_constitution(str(path), shipped_dir=Path(temporary) / "none")
    return text.encode()


@router.get("/reviews")
def log(request: Request, desk: OfDesk) -> HTMLResponse:
    """What was reviewed, newest first, and how the next run uses it."""
    events = desk.store.events()
    decisions = desk.decisions()
    return page(
        request,
        "reviews.html",
        events=events[: -_SHOWN_EVENTS - 1 : -1],
        num_events=len(events),
        decisions=decisions,
        edited=wordings(events),
        directory=desk.store.directory.uri,
        has_constitution=desk.store.directory.exists(CONSTITUTION_NAME),
        has_export=desk.store.directory.exists(reviews.EXPORT_NAME),
        nonce=secrets.token_hex(8),
    )


@router.post("/export")
def export(desk: OfDesk, form: Form) -> RedirectResponse:
    """Write the events as parquet, and the constitution as it was edited, beside the database."""
    events = desk.store.export()
    if edited := wordings(events):
        desk.store.directory.write_bytes(CONSTITUTION_NAME, _constitution_yaml(desk, edited))
    return go("/reviews")


@router.get(f"/{reviews.EXPORT_NAME}")
def exported_events(desk: OfDesk) -> Response:
    """The exported events as a file."""
    return _download(desk, reviews.EXPORT_NAME, "application/vnd.apache.parquet")


@router.get(f"/{CONSTITUTION_NAME}")
def exported_constitution(desk: OfDesk) -> Response:
    """The edited constitution as a file."""
    return _download(desk, CONSTITUTION_NAME, "application/yaml")


def _download(desk: Desk, name: str, media_type: str) -> Response:
    if not desk.store.directory.exists(name):
        raise HTTPException(404, "nothing of the kind was exported yet")
    return Response(
        desk.store.directory.read_bytes(name),
        media_type=media_type,
        headers={"content-disposition": f'attachment; filename="{name}"'},
    )


@router.get("/reviewers")
def reviewers(request: Request, desk: OfDesk) -> HTMLResponse:
    """Who reviewed, and a form for another reviewer's link."""
    return _reviewers_page(request, desk, link="", name="")


def _reviewers_page(request: Request, desk: Desk, *, link: str, name: str) -> HTMLResponse:
    counts: dict[str, int] = {}
    for event in desk.store.events():
        counts[event.reviewer] = counts.get(event.reviewer, 0) + 1
    return page(request, "reviewers.html", counts=counts, link=link, name=name)


@router.post("/reviewers")
def invite(request: Request, desk: OfDesk, form: Form) -> HTMLResponse:
    """A link for another reviewer's browser, good once."""
    name = checked_name(form.get("name", ""))
    if name is None:
        raise HTTPException(422, f"a name has 1 to {MAX_NAME_CHARACTERS} printable characters")
    token = desk.access.invite(name)
    return _reviewers_page(request, desk, link=f"{request.base_url}?token={token}", name=name)


def checked_name(name: str) -> str | None:
    """A reviewer's name without blanks around it; None where it cannot be one."""
    stripped = name.strip()
    is_name = 0 < len(stripped) <= MAX_NAME_CHARACTERS and stripped.isprintable()
    return stripped if is_name else None
