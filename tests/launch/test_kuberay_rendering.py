"""What a run makes of an overlay, without a cluster."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kube_policies import DNS_LABEL, MAX_JOB_NAME, kuberay_problems, schema_problems
from kube_server import RUN, Document, KubeServer
from rich.console import Console

from charactertrain.exceptions import ConfigError
from launch import submit
from launch.kuberay.overlays import merged
from launch.kuberay.rayjobs import rayjob_name, rayjob_patch
from launch.runs import Run

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl, which builds the overlays, is not installed"
)


def rendered(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Document]:
    assert submit.run([*RUN, "--render", *arguments], Console(width=400, soft_wrap=True)) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


def rayjob_of(documents: list[Document]) -> Document:
    (job,) = (document for document in documents if document["kind"] == "RayJob")
    return job


def test_an_override_with_blanks_and_quotes_reaches_the_driver_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = r"""run.dir='/shared/runs/it\'s a "run", $HOME'"""
    documents = rendered(capsys, given)
    entrypoint = rayjob_of(documents)["spec"]["entrypoint"]
    # KubeRay pastes it into a script, whose words `ray job submit` quotes for another shell.
    script = "import shlex, sys; print(shlex.join(sys.argv[1:]))"
    submitted = bash(f"{sys.executable} -c '{script}' {entrypoint}")
    words = bash(f"printf '%s\\0' {submitted}").split("\0")
    assert given in words


def bash(text: str) -> str:
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("overlay", ["cpu-demo", "hardened", "kueue"])
def test_rendering_needs_no_cluster_and_gives_valid_manifests(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overlay: str,
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "nosuch"))
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    monkeypatch.setenv("SENT", "yes")
    arguments = ["--overlay", overlay, "--image", "registry:5000/team/ours:1.0", "--env", "SENT"]
    documents = rendered(capsys, *arguments, "--namespace", "theirs")
    job = rayjob_of(documents)
    assert documents[-1] is job
    assert schema_problems(job) == []
    assert kuberay_problems(job) == []
    images = {text for text in str(job).split("'") if text.startswith("registry:5000/")}
    assert images == {"registry:5000/team/ours:1.0"}
    assert "charactertrain:0.1.0" not in str(job)
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"]) == {"env_vars": {"SENT": "yes"}}
    assert {d["metadata"].get("namespace", "theirs") for d in documents} == {"theirs"}


def test_an_image_may_be_named_by_its_digest(capsys: pytest.CaptureFixture[str]) -> None:
    digest = "sha256:" + "0" * 64
    job = rayjob_of(rendered(capsys, "--image", f"registry:5000/ours@{digest}"))
    assert f"'image': 'registry:5000/ours@{digest}'" in str(job)


@pytest.mark.parametrize("image", ["ours", "registry:5000/ours"])
def test_an_image_without_a_tag_is_refused(console: Console, image: str) -> None:
    with pytest.raises(ConfigError, match="expected a tag that stays or a digest"):
        submit.run([*RUN, "--render", "--image", image], console)


def test_texts_that_look_like_numbers_stay_texts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    passed = {"A_NUMBER": "1e5", "A_TEXT": 'é 😀 "quoted" \\ and\nmore', "A_DATE": "2026-01-01"}
    for name, value in passed.items():
        monkeypatch.setenv(name, value)
    options = [option for name in passed for option in ("--env", name)]
    job = rayjob_of(rendered(capsys, *options, "--name", "1e5", "--image", "ours:1e5"))
    assert json.loads(job["spec"]["runtimeEnvYAML"]) == {"env_vars": passed}
    assert job["metadata"]["labels"]["charactertrain.dev/run"] == "1e5"
    assert "'image': 'ours:1e5'" in str(job)


def test_rendered_texts_that_go_takes_for_numbers_are_quoted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert submit.run([*RUN, "--render", "--name", "1e5"], Console(soft_wrap=True)) == 0
    assert "charactertrain.dev/run: '1e5'\n" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["a$b", "a`b`"])
def test_a_variable_that_a_shell_would_expand_is_refused(
    console: Console, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("KEY", value)
    with pytest.raises(ConfigError, match=r"expands: KEY\. Name a Secret") as raised:
        submit.run([*RUN, "--render", "--env", "KEY"], console)
    assert value not in str(raised.value)


@pytest.mark.parametrize(
    ("overlay", "given", "expected"),
    [
        (["a=1", "b=2"], ["a=3"], ["b=2", "a=3"]),
        (["+a=1"], ["a=3"], ["+a=3"]),
        (["++a=1"], ["+a=3"], ["+a=3"]),
        (["a=1"], ["~a"], ["~a"]),
        (["~a"], ["a=1"], ["a=1"]),
    ],
)
def test_given_overrides_take_the_place_of_the_overlays(
    overlay: list[str], given: list[str], expected: list[str]
) -> None:
    assert merged(overlay, given) == expected


@pytest.mark.parametrize("name", ["9 Lives!", "x" * 160, "Kl.coef=0.1,Seed=1", "-"])
@pytest.mark.parametrize("attempt", [1, 23])
def test_names_are_those_that_kuberay_takes(name: str, attempt: int) -> None:
    run = run_of_name(name)
    metadata = rayjob_patch(run, attempt, {}, keeps_cluster=False)["metadata"]
    assert DNS_LABEL.fullmatch(metadata["name"])
    assert len(metadata["name"]) <= MAX_JOB_NAME
    assert metadata["name"].endswith("-ffffffffffff" + ("-23" if attempt == 23 else ""))
    for value in metadata["labels"].values():
        assert re.fullmatch(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", value, re.ASCII)


def run_of_name(name: str) -> Run:
    return Run(name, "f" * 32, "report", "/shared/runs/a", (), is_dry=False)


@pytest.mark.parametrize(
    ("name", "other"), [("a.b", "a_b"), ("kl", "KL"), ("x" * 60 + "1", "x" * 60 + "2")]
)
def test_names_that_kuberay_does_not_take_as_they_are_stay_apart(name: str, other: str) -> None:
    assert rayjob_name(run_of_name(name), 1) != rayjob_name(run_of_name(other), 1)
    # And attempts at one run are seen to be so.
    first, second = (rayjob_name(run_of_name(name), attempt) for attempt in (1, 2))
    assert second == f"{first}-2"


def test_kubectl_is_asked_for(
    kube: KubeServer, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        submit.run(RUN, console)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--kuberay"], "no overlay is named: expected one of cpu-demo, "),
        (["--kuberay", "--overlay", "nosuch"], "no overlay 'nosuch'"),
        (["--kuberay", "--overlay", "interactive"], "expected one RayJob, found 0"),
        (["--kuberay", "--overlay", "kueue", "--keep", "cluster"], "Kueue"),
        (["--kuberay", "--pip", "lock.txt"], "--pip: has a meaning only without --kuberay"),
        (["--kuberay", "--address", "http://h"], "--address: has a meaning only without"),
        (["--overlay", "kueue"], "--overlay: has a meaning only with --kuberay"),
        (["--context", "here"], "--context: has a meaning only with --kuberay"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    kube: KubeServer, console: Console, arguments: list[str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        submit.run([*arguments, "experiment=smoke", "cluster=ray"], console)
    assert not kube.applied


def test_the_cluster_is_kept_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    spec = rayjob_of(rendered(capsys))["spec"]
    assert spec["shutdownAfterJobFinishes"]
    kept = rayjob_of(rendered(capsys, "--keep", "cluster"))
    assert not kept["spec"]["shutdownAfterJobFinishes"]
    assert "ttlSecondsAfterFinished" not in kept["spec"]
    assert kuberay_problems(kept) == []
