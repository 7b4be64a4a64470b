"""What all pages share: the run, its reviews, and the answers that come in as forms."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache, partial
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.requests import ClientDisconnect

from charactertrain import reviews
from charactertrain.records import ReviewEvent, ReviewKind
from charactertrain.review.picking import PairIndex
from charactertrain.review.rendering import link, render
from charactertrain.review.run_view import RunView
from charactertrain.review.security import REVIEWER_KEY, Access
from charactertrain.review.store import ReviewStore
from charactertrain.review.tables import Table
from charactertrain.reviews import Decisions
from charactertrain.seeds import derive_seed, stable_id

MAX_NOTE_CHARACTERS = 4_000
MAX_NAME_CHARACTERS = 40
_MAX_FIELDS = 16


@dataclass(frozen=True)
class Desk:
    """The server's state; threads share it."""

    run: RunView
    store: ReviewStore
    access: Access

    def decisions(self) -> Decisions:
        """What the reviews come to by now."""
        return reviews.decide(self.store.events())

    @cached_property
    def _index_of(self) -> Any:
        seed = derive_seed("picking", self.run.name)
        return lru_cache(maxsize=2)(lambda *tables: PairIndex(*tables, seed=seed))

    def pairs(self) -> PairIndex:
        """All pairs of the rankings that there are."""
        table: Table = self.run.table("rankings", "rankings")
        rewards: Table = self.run.table("preference_model", "held_out_rewards")
        index: PairIndex = self._index_of(table, rewards)
        return index

    def record(
        self, form: Mapping[str, str], reviewer: str, kind: ReviewKind, **values: str
    ) -> str:
        """Add an event; it is on the disk when this returns. The same form is recorded once.

        Returns:
            The event's id.
        """
        blank = dict.fromkeys(reviews.COLUMNS, "")
        # The form's own number makes a second click, or a repeated request, the same event.
        event_id = stable_id("event", reviewer, form.get("nonce", ""))
        named = {
            "event_id": event_id,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "reviewer": reviewer,
            "kind": kind,
            "note": form.get("note", "")[:MAX_NOTE_CHARACTERS],
        }
        self.store.append(ReviewEvent(**{**blank, **named, **values}))  # type: ignore[arg-type]
        return event_id


def desk_of(request: Request) -> Desk:
    """The server's desk."""
    desk: Desk = request.app.state.desk
    return desk


def reviewer_of(request: Request) -> str:
    """Who sent the request."""
    reviewer: str = request.scope[REVIEWER_KEY]
    return reviewer


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a posted form, decoded; what is not UTF-8 is replaced."""
    try:
        body = await request.body()
    except ClientDisconnect as error:
        # Nobody is there to be answered, and nothing was recorded.
        raise HTTPException(400, "the browser went away") from error
    try:
        pairs = parse_qsl(
            body.decode("ascii", "replace"),
            keep_blank_values=True,
            max_num_fields=_MAX_FIELDS,
            errors="replace",
        )
    except ValueError as error:
        raise HTTPException(400, f"expected a form of {_MAX_FIELDS} fields at most") from error
    # Browsers send line ends as CR LF.
    return {key: value.replace("\r\n", "\n") for key, value in pairs}


OfDesk = Annotated[Desk, Depends(desk_of)]
Reviewer = Annotated[str, Depends(reviewer_of)]
Form = Annotated[dict[str, str], Depends(form_of)]


def page(request: Request, template: str, **values: Any) -> HTMLResponse:
    """A page with what every page has."""
    desk = desk_of(request)
    given: dict[str, Any] = {
        "run_name": desk.run.name,
        "reviewer": reviewer_of(request),
        "path": request.url.path,
        "link": partial(link, request.url.path, request.query_params),
    }
    return HTMLResponse(render(template, **{**given, **values}))


def go(url: str) -> RedirectResponse:
    """On to a page after a form was taken."""
    return RedirectResponse(url, status_code=303)


def wanted(form: Mapping[str, str], key: str, allowed: tuple[str, ...]) -> str:
    """A field's value, which is one of some; HTTP 422 otherwise."""
    value = form.get(key, "")
    if value not in allowed:
        raise HTTPException(422, f"{key} is {value[:60]!r}; expected one of {', '.join(allowed)}")
    return value
