"""Who may see the pages: the reviewers that were sent a link, from a page of this server's own.

The server listens on loopback. Other sites' pages in a browser on this machine may still send it
requests: hence a session for everything, a host name that is checked, and no posts from elsewhere.
"""

import hmac
import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import HTMLResponse, PlainTextResponse, Response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 64 * 1024
"""Of a post: a note or a trait's wording."""
REVIEWER_KEY = "charactertrain.reviewer"
"""Of the scope: who sent the request."""

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not no-referrer: with it browsers send posts with the origin "null".
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

# A page of this server's own goes on to the first one, so that the cookie is sent there however
# the link was opened: browsers keep it back from what another site's page has led to.
_WELCOME = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>Welcome</title>'
    '<meta http-equiv="refresh" content="0; url=/"><p><a href="/">Go to the review page</a></p>'
)


class Access:
    """Links, each good for one use, and the sessions that they became."""

    def __init__(self) -> None:
        """Nobody has access."""
        self._lock = threading.Lock()
        self._tokens: dict[str, str] = {}
        self._sessions: dict[str, str] = {}

    def invite(self, reviewer: str) -> str:
        """A token that lets one browser in as the reviewer, once."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            self._tokens[token] = reviewer
        return token

    def enter(self, token: str) -> str | None:
        """The session that a token becomes; None where it is not one, or was used."""
        with self._lock:
            known = [each for each in self._tokens if _same(each, token)]
            if not known:
                return None
            session = secrets.token_urlsafe(32)
            self._sessions[session] = self._tokens.pop(known[0])
            return session

    def reviewer(self, session: str) -> str | None:
        """Whose session it is; None where it is none."""
        with self._lock:
            known = [name for each, name in self._sessions.items() if _same(each, session)]
        return known[0] if known else None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode("utf-8", "surrogatepass"))


class Guard:
    """Stands before every page and every file: answers 403, or lets the request through."""

    def __init__(self, app: App, access: Access, port: int) -> None:
        """Guard `app`, which listens on `port` of this machine."""
        self._app, self._access = app, access
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        # Cookies do not tell ports apart.
        self._cookie = f"charactertrain_review_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        answer = self._answer(scope)
        await (answer or self._app)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """What is answered in the app's place; None where it is the app's turn."""
        headers = Headers(scope=scope)
        if headers.getlist("host") not in [[host] for host in self._hosts]:
            return _refused("this address is not the review page's: open the link that it printed")
        token = QueryParams(scope["query_string"]).get("token")
        if scope["method"] == "GET" and scope["path"] == "/" and token is not None:
            return self._entered(token)
        reviewer = self._access.reviewer(self._session(headers))
        if reviewer is None:
            return _refused("open the link that the review page printed when it was started")
        scope[REVIEWER_KEY] = reviewer
        if scope["method"] not in ("GET", "HEAD"):
            return _refused_post(headers)
        return None

    def _entered(self, token: str) -> Response:
        session = self._access.enter(token)
        if session is None:
            return _refused(
                "this link was used before, or is another server's. Each lets one browser in, "
                "once: ask someone who is in for another (Reviewers), or start the page again"
            )
        welcome = HTMLResponse(_WELCOME)
        welcome.set_cookie(self._cookie, session, httponly=True, samesite="strict", path="/")
        return welcome

    def _session(self, headers: Headers) -> str:
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        morsel = cookies.get(self._cookie)
        return morsel.value if morsel else ""


def _refused(why: str) -> Response:
    return PlainTextResponse(f"403: {why}.\n", status_code=403)


def _refused_post(headers: Headers) -> Response | None:
    """The answer to a post that a page of this server did not send, or that is too long."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    expected = f"http://{headers['host']}"
    is_ours = origin == expected and site in (None, "same-origin")
    if origin is None:
        is_ours = site == "same-origin"
    if not is_ours:
        return _refused("posts are taken from this server's own pages alone")
    length = headers.get("content-length", "")
    if not length.isdecimal() or "transfer-encoding" in headers:
        return PlainTextResponse("411: a post says how long it is.\n", status_code=411)
    if len(length) > 18 or int(length) > MAX_BODY_BYTES:
        return PlainTextResponse(
            f"413: expected at most {MAX_BODY_BYTES} bytes, found {length[:18]}.\n", status_code=413
        )
    return None
