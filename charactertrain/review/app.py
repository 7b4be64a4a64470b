"""The review page's server: routes behind the guard, and what is said when something is wrong."""

from collections.abc import Mapping
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from charactertrain.exceptions import CharacterTrainError
from charactertrain.review import browsing, correcting, judging
from charactertrain.review.desk import Desk, page
from charactertrain.review.run_view import RunView
from charactertrain.review.security import Access, Guard
from charactertrain.review.store import ReviewStore, StoreError
from charactertrain.storage import Directory

_STATIC_TYPES = {
    "style.css": "text/css",
    "review.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def make_app(run: Directory, store: ReviewStore, access: Access, *, port: int) -> Guard:
    """The app of one run directory, guarded; it listens on `port` of this machine's loopback."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.desk = Desk(RunView(run), store, access)
    for part in (browsing, judging, correcting):
        app.include_router(part.router)
    static = _static_files()

    def static_file(name: str) -> Response:
        if name not in static:
            raise HTTPException(404, "there is no such file")
        return Response(static[name], media_type=_STATIC_TYPES[name])

    app.get("/static/{name}")(static_file)
    app.add_exception_handler(HTTPException, _said)
    app.add_exception_handler(RequestValidationError, _misread)
    app.add_exception_handler(CharacterTrainError, _failed)
    return Guard(app, access, port)


def _static_files() -> Mapping[str, bytes]:
    # By name out of a table: nothing of a request is ever part of a path.
    folder = files("charactertrain.review").joinpath("static")
    return {name: folder.joinpath(name).read_bytes() for name in _STATIC_TYPES}


def _error_page(request: Request, status: int, message: str) -> HTMLResponse:
    answer = page(request, "error.html", status=status, message=message)
    answer.status_code = status
    return answer


def _said(request: Request, error: Exception) -> HTMLResponse:
    assert isinstance(error, HTTPException), f"registered for HTTPException, not {error!r}"
    return _error_page(request, error.status_code, str(error.detail))


def _misread(request: Request, error: Exception) -> HTMLResponse:
    assert isinstance(error, RequestValidationError), f"registered for another error: {error!r}"
    wrong = ", ".join(str(problem["loc"][-1]) for problem in error.errors())
    return _error_page(request, 422, f"the address is not understood; look at: {wrong}")


def _failed(request: Request, error: Exception) -> HTMLResponse:
    return _error_page(request, 503 if isinstance(error, StoreError) else 500, str(error))
