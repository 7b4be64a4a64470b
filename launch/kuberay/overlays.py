"""The overlays of kube/ as kustomize builds them, alone and with a run in them."""

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from charactertrain.__main__ import ROOT
from charactertrain.artifacts import Json
from charactertrain.exceptions import ConfigError

_OVERLAYS = ROOT / "kube" / "overlays"
_COMMAND = ["python", "-m", "charactertrain"]


@dataclass(frozen=True)
class Overlay:
    """One way to run, with the run that it holds."""

    directory: Path
    namespace: str
    overrides: tuple[str, ...]
    """Of its run's command line."""
    image: str
    """Of its Ray nodes, without tag and digest: what another takes the place of."""
    runtime_env: Json
    """That of its run; empty where it has none."""


def read_overlay(name: str | None) -> Overlay:
    """An overlay of kube/ by its name, or any directory by its path.

    Raises:
        ConfigError: There is none, it does not build, or it holds no run.
    """
    directory = _directory(name)
    job = rayjob(build(directory), directory)
    command = shlex.split(job["spec"]["entrypoint"])
    if command[:3] != _COMMAND:
        raise ConfigError(
            f"overlay {directory}: expected an entrypoint that begins with {shlex.join(_COMMAND)}, "
            f"found {job['spec']['entrypoint']!r}"
        )
    return Overlay(
        directory=directory,
        namespace=job["metadata"]["namespace"],
        overrides=tuple(command[3:]),
        image=repository(head_image(job)),
        runtime_env=yaml.safe_load(job["spec"].get("runtimeEnvYAML") or "") or {},
    )


def _directory(name: str | None) -> Path:
    names = sorted(path.parent.name for path in _OVERLAYS.glob("*/kustomization.yaml"))
    if not name:
        raise ConfigError(f"no overlay is named: expected one of {', '.join(names)}, or a path")
    if name in names:
        return (_OVERLAYS / name).resolve()
    directory = Path(name)
    if not (directory / "kustomization.yaml").is_file():
        raise ConfigError(
            f"no overlay {name!r}: expected one of {', '.join(names)}, or the path of a directory "
            "with a kustomization.yaml"
        )
    return directory.resolve()


def with_run(overlay: Overlay, kustomization: Json) -> list[Json]:
    """The overlay's manifests after a run's own kustomization, which lies in no directory."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary).resolve()
        # Kustomize takes no absolute paths.
        resources = [os.path.relpath(overlay.directory, directory)]
        complete = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": resources,
            **kustomization,
        }
        (directory / "kustomization.yaml").write_text(as_yaml(complete), encoding="utf-8")
        return build(directory)


def as_yaml(value: Json) -> str:
    """Values for programs in Go to read: JSON, which is YAML without room for another reading.

    PyYAML leaves 1e5 without quotes, which they take for a number.
    """
    # What only YAML has are dates; its parsers refuse the halves of a character that JSON escapes.
    return json.dumps(value, default=str, ensure_ascii=False)


class _Dumper(yaml.SafeDumper):
    """Quotes also what only Go takes for a number."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9.]+[eE][-+]?[0-9]+|0o[0-7]+)$"),
    list("-+.0123456789"),
)


def manifests(documents: Sequence[Json]) -> str:
    """The documents as YAML for people and kubectl."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False)


def build(directory: Path) -> list[Json]:
    """What `kubectl kustomize` makes of a directory; it needs no cluster.

    Raises:
        ConfigError: kubectl is not there, or refuses.
    """
    command = ["kubectl", "kustomize", str(directory)]
    try:
        # In a session of its own: an interrupt at the keyboard is ours, and would else come back as
        # a refusal of kubectl's.
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, start_new_session=True
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "kubectl is not installed (or not on PATH), and its kustomize builds the overlays"
        ) from error
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{shlex.join(command)}: {error.stderr.strip()}") from error
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def rayjob(documents: Sequence[Json], directory: Path) -> Json:
    """The RayJob among the manifests; raises ConfigError unless there is one."""
    found = [document for document in documents if document["kind"] == "RayJob"]
    if len(found) != 1:
        raise ConfigError(
            f"overlay {directory}: expected one RayJob, found {len(found)}. A cluster that stays, "
            "such as that of `interactive`, is made with kubectl."
        )
    return found[0]


def head_image(job: Json) -> str:
    """The image of the head, and of all that the overlay gives the same."""
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return str(pod["containers"][0]["image"])


def repository(image: str) -> str:
    """An image's name without tag and digest; a registry's port stays."""
    name = image.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    return head if colon and "/" not in tag else name


def merged(overlay: Sequence[str], given: Sequence[str]) -> list[str]:
    """The overlay's overrides without those whose keys are given, then those that are.

    Of one key the last would count, but a group may be given once. What the overlay adds to the
    config is not there without its `+`.
    """
    keys = {_key(text) for text in given}
    signs = {_key(text): _sign(text) for text in overlay if _sign(text) != "~"}
    taken = [text if _sign(text) else signs.get(_key(text), "") + text for text in given]
    return [*(text for text in overlay if _key(text) not in keys), *taken]


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _sign(override: str) -> str:
    """How it changes the config: + or ++ adds, ~ takes away, nothing sets."""
    return override[: len(override) - len(override.lstrip("+~"))]
