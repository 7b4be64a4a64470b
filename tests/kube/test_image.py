"""The image: what it is made of stays the same, and nothing else comes in."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from kube_manifests import KUBE, ROOT

DOCKERFILE = KUBE / "Dockerfile"
LOCKS = ("cpu", "gpu")
EXACT_TAG = re.compile(r"[a-z0-9./-]+:\d+\.\d+\.\d+-[a-z0-9.-]+(@sha256:[0-9a-f]{64})?")

Change = Callable[[str], str]


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction of a Dockerfile with what follows it."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, _, rest in split]


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile by this project's rules."""
    found, steps = [], instructions(text)
    defaults = dict(rest.split("=", 1) for name, rest in steps if name == "ARG" and "=" in rest)
    stages: set[str] = set()
    for name, rest in steps:
        if name == "FROM":
            image, _, stage = rest.partition(" AS ")
            for lock in LOCKS:
                values = {**defaults, "LOCK": lock}
                source = re.sub(r"\$\{(\w+)\}", lambda match, v=values: v[match[1]], image)
                if source not in stages and not EXACT_TAG.fullmatch(source):
                    found.append(f"{source} may be another tomorrow")
            stages.add(stage)
        found += _step_problems(name, rest)
    users = [rest for name, rest in steps if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append("the last user is none, or root, or has a name that Kubernetes cannot check")
    return found


def _step_problems(name: str, rest: str) -> list[str]:
    found = []
    if name in ("ARG", "ENV") and re.search(r"TOKEN|PASSWORD|SECRET|KEY|INDEX", rest):
        found.append(f"{rest} stays in the image")
    if "://" in rest or name == "ADD":
        found.append(f"{name} {rest} fetches from a host")
    if "pip install" in rest and ("--no-deps" not in rest or "--no-cache-dir" not in rest):
        found.append(f"{rest} takes more than the lock, or keeps what it fetched")
    if "apt-get install" in rest and "rm -rf /var/lib/apt/lists" not in rest:
        found.append(f"{rest} keeps the lists")
    return found


def test_the_image_keeps_the_rules() -> None:
    assert problems(DOCKERFILE.read_text()) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda t: t.replace("python:3.11.13-slim-bookworm\nARG", "python:3.11-slim\nARG"), "tom"),
        (
            lambda t: t.replace("python:3.11.13-slim-bookworm\nARG", "python:latest\nARG"),
            "tomorrow",
        ),
        (lambda t: t.replace("USER 1000:1000", ""), "the last user"),
        (lambda t: t.replace("USER 1000:1000", "USER charactertrain"), "the last user"),
        (lambda t: t + "USER 0:0\n", "the last user"),
        (lambda t: t + "ENV HF_TOKEN=x\n", "HF_TOKEN=x stays"),
        (lambda t: t + "ADD https://example.org/a /a\n", "fetches"),
        (lambda t: t + "RUN pip install --no-cache-dir ray\n", "more than the lock"),
        (lambda t: t + "RUN apt-get install --yes git\n", "keeps the lists"),
    ],
)
def test_an_image_that_breaks_a_rule_is_found_out(change: Change, problem: str) -> None:
    text = DOCKERFILE.read_text()
    assert change(text) != text
    assert any(problem in found for found in problems(change(text)))


def copied() -> list[str]:
    """Paths of the repository that the image has, for both locks."""
    sources = []
    for name, rest in instructions(DOCKERFILE.read_text()):
        if name == "COPY" and "--from" not in rest:
            sources += shlex.split(rest)[:-1]
    return sorted({s.replace("${LOCK}", lock) for s in sources for lock in LOCKS})


def test_all_that_is_copied_is_there_and_let_in() -> None:
    ignored, *rest = (
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert ignored == "*"
    let_in = {line[1:] for line in rest if line.startswith("!")}
    for path in copied():
        assert (ROOT / path).exists(), path
    # Nothing is sent to the builder that no instruction copies.
    assert let_in == {path.partition("/")[0] for path in copied()}


def test_the_image_has_all_that_a_run_reads() -> None:
    assert {"charactertrain", "conf", "constitutions", "pyproject.toml"} <= set(copied())
    assert {f"requirements/{lock}.txt" for lock in LOCKS} <= set(copied())


def test_a_run_starts_from_what_the_image_has(tmp_path: Path) -> None:
    app = tmp_path / "app"
    for path in copied():
        target = app / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target)
        else:
            shutil.copy(ROOT / path, target)
    command = [sys.executable, "-m", "charactertrain", "run.dry=true", f"run.dir={tmp_path}/run"]
    environment = {**os.environ, "PYTHONPATH": str(app), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing refuses" in done.stdout


def test_the_image_is_of_a_python_that_the_locks_are_for() -> None:
    (version,) = re.findall(r"^ARG BASE=python:(\d+\.\d+)\.", DOCKERFILE.read_text(), re.MULTILINE)
    for lock in LOCKS:
        (supported,) = re.findall(
            r"Python ([\d.]+) or ([\d.]+)", (ROOT / f"requirements/{lock}.txt").read_text()
        )
        assert version in supported
