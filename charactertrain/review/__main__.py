"""`python -m charactertrain.review RUN_DIR`: serve the review page of a run on this machine."""

import argparse
import getpass
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

import uvicorn

from charactertrain.exceptions import CharacterTrainError, ConfigError
from charactertrain.review.app import make_app
from charactertrain.review.correcting import checked_name
from charactertrain.review.desk import MAX_NAME_CHARACTERS
from charactertrain.review.security import Access
from charactertrain.review.store import ReviewStore
from charactertrain.storage import Directory, open_directory

HOST = "127.0.0.1"
_SHUTDOWN_SECONDS = 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    options = _parser().parse_args(arguments)
    try:
        serve(options.run_dir, options.port, options.reviewer or [_login()])
    except CharacterTrainError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m charactertrain.review",
        description="Look at a run, judge its responses, and correct its rankings, in a browser. "
        "The page is served to this machine alone.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="a run directory on a local disk")
    parser.add_argument("--port", type=int, default=0, help="0, the default, is any that is free")
    parser.add_argument(
        "--reviewer",
        action="append",
        help="name of a reviewer; each that is given gets a link. By default your login's",
    )
    return parser


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return "reviewer"


def serve(run_dir: str, port: int, reviewers: Sequence[str]) -> None:
    """Print a link for each reviewer, and serve until interrupted.

    Raises:
        ConfigError: The directory, the port or a name cannot be used.
    """
    names = [checked_name(reviewer) for reviewer in reviewers]
    if None in names:
        raise ConfigError(
            f"--reviewer {reviewers[names.index(None)]!r}: expected 1 to {MAX_NAME_CHARACTERS} "
            "printable characters"
        )
    directory = _run_directory(run_dir)
    listener = _listen(port)
    port = listener.getsockname()[1]
    access, store = Access(), ReviewStore(directory.local_path)
    app = make_app(directory, store, access, port=port)
    print(f"The review page of {directory.uri}. Each link lets one browser in, once:")
    for name in names:
        assert name is not None, "checked above"
        print(f"  {name}: http://{HOST}:{port}/?token={access.invite(name)}", flush=True)
    print("Ctrl-C stops it; what was judged is kept.", flush=True)
    settings = uvicorn.Config(
        app,
        log_level="warning",
        # It would print the links' tokens.
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )
    # It ends with the interrupt that it was stopped by.
    with suppress(KeyboardInterrupt):
        uvicorn.Server(settings).run(sockets=[listener])
    store.close()


def _run_directory(run_dir: str) -> Directory:
    directory = open_directory(run_dir)
    if not directory.is_local:
        raise ConfigError(
            f"{run_dir}: reviews are kept in a database that needs a local disk. Download the run, "
            "or what is to be seen of it, and give that directory"
        )
    is_run = any(directory.exists(name) for name in ("config.yaml", "traits", "metrics.jsonl"))
    if not is_run:
        raise ConfigError(
            f"{directory.uri} is no run directory: expected config.yaml or traits in it. Give the "
            "run.dir of a run that has begun"
        )
    return directory


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"--port {port}: {error}. Give another, or 0 for any") from error
    return listener


if __name__ == "__main__":
    main()
