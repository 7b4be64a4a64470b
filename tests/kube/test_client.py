"""What a client adds to an overlay, as kube/README.md says it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kube_manifests import KUBE, OVERLAYS, Manifest, one, overrides, pods
from kube_policies import kuberay_problems, pod_problems, schema_problems

from charactertrain.config import validate

Build = Callable[[Path | str], list[Manifest]]
Compose = Callable[..., dict[str, Any]]

RUNS = [name for name in OVERLAYS if name != "interactive"]


def example() -> str:
    """The kustomization of a run of one's own in the docs."""
    blocks: list[str] = re.findall(
        r"```yaml\n(.*?)```", (KUBE / "README.md").read_text(), re.DOTALL
    )
    (block,) = (block for block in blocks if "kind: Kustomization" in block)
    return block


def written(directory: Path, overlay: str) -> Path:
    """The example in a directory of its own, on an overlay."""
    # Kustomize takes no absolute paths.
    up = "../" * (len(directory.parts) - 1)
    text = example().replace("../overlays/multi-node", f"{up}{KUBE}/overlays/{overlay}")
    (directory / "kustomization.yaml").write_text(text)
    return directory


@pytest.mark.parametrize("overlay", RUNS)
def test_a_run_of_ones_own_is_valid_on_every_overlay(
    build: Build, tmp_path: Path, overlay: str
) -> None:
    documents = build(written(tmp_path, overlay))
    job = one(documents, "RayJob")
    assert schema_problems(job) == []
    assert kuberay_problems(job) == []
    assert [problem for pod in pods(documents) for problem in pod_problems(pod)] == []
    images = {pod.container["image"] for pod in pods(documents)}
    assert images == {"registry.example/team/charactertrain:0.1.0-gpu"}


def test_a_client_changes_what_the_docs_say_and_nothing_else(build: Build, tmp_path: Path) -> None:
    before = one(build("overlays/multi-node"), "RayJob")
    after = one(build(written(tmp_path, "multi-node")), "RayJob")
    assert after["metadata"]["name"] == "brave-and-kind"
    assert after["metadata"]["labels"] == {
        "app.kubernetes.io/name": "charactertrain",
        "charactertrain.dev/run": "brave-and-kind",
    }
    environment = yaml.safe_load(after["spec"].pop("runtimeEnvYAML"))
    assert environment == {"env_vars": {"HF_HUB_OFFLINE": "1"}}
    for job in (before, after):
        del job["metadata"]["name"], job["metadata"]["labels"], job["spec"]["entrypoint"]
        for pod in pods([job]):
            del pod.container["image"]
    assert before == after


def test_the_command_line_of_the_docs_is_a_run(
    build: Build, compose: Compose, tmp_path: Path
) -> None:
    job = one(build(written(tmp_path, "multi-node")), "RayJob")
    config = validate(compose(*overrides(job["spec"]["entrypoint"])))
    assert config.run.dir == "/shared/runs/brave-and-kind"


@pytest.mark.parametrize("overlay", RUNS)
def test_command_lines_pass_through_shells(build: Build, overlay: str) -> None:
    entrypoint = one(build(f"overlays/{overlay}"), "RayJob")["spec"]["entrypoint"]
    assert re.fullmatch(r"[\w =./@:,\[\]-]+", entrypoint)


def test_docs_name_every_overlay_component_and_secret(build: Build) -> None:
    text = (KUBE / "README.md").read_text()
    for name in OVERLAYS:
        assert f"| `{name}` |" in text
    for name in ("spot", "gcs-ft", "every-pod", "hardened", "multi-node"):
        assert f"components/{name}" in text
    for directory in (*(f"overlays/{name}" for name in OVERLAYS), "export"):
        for document in build(directory):
            for secret in re.findall(r"'secretKeyRef': {[^}]*'name': '([^']*)'", str(document)):
                assert f"`{secret}`" in text
            for secret in re.findall(r"'secretName': '([^']*)'", str(document)):
                assert f"`{secret}`" in text
