"""RayJobs: what a run writes into one, and what KubeRay's status of it means."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from charactertrain.artifacts import Json
from charactertrain.seeds import stable_id
from launch.clusters import Job, reason_of
from launch.kuberay.overlays import as_yaml
from launch.runs import Run

API_VERSION = "ray.io/v1"
KIND = "RayJob"
_NAME_LABEL = "app.kubernetes.io/name"
_NAME = "charactertrain"
ALL = f"{_NAME_LABEL}={_NAME}"
"""The label of every RayJob of a run."""
_PREFIX = "charactertrain.dev/"
_MAX_NAME = 47
"""Characters; KubeRay makes longer names of it."""
_MAX_STEM = 30
"""What a fingerprint's digits and an attempt's number leave: attempts have one stem."""
_NAME_DIGITS = 5
_MAX_LABEL = 63
_ID_DIGITS = 12
_EXIT_CODE = re.compile(r"failed with exit code (-?\d+)")
"""Of the driver, which KubeRay has in Ray's message alone."""
_WAITING = {
    "": "KubeRay has not taken it up; its operator may not run, or not for this namespace",
    "Initializing": "its cluster is being made",
    "Running": "its driver is about to start",
    "Retrying": "it failed, and KubeRay makes a new cluster for it",
    "Suspending": "its cluster is being taken down",
    "Suspended": "it is suspended: until Kueue admits it, or by hand",
}


def rayjob_name(run: Run, attempt: int) -> str:
    """A DNS label that KubeRay takes, of the run's name, its fingerprint and the attempt."""
    end = f"-{run.fingerprint[:_ID_DIGITS]}" + ("" if attempt == 1 else f"-{attempt}")
    return _stem(run.name)[: _MAX_NAME - len(end)].rstrip("-") + end


def _stem(name: str) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not stem[:1].isalpha():
        stem = f"run-{stem}"
    if stem == name and len(stem) <= _MAX_STEM:
        return stem
    # Other names may come to the same, and one fingerprint may run in several directories.
    end = f"-{stable_id(name)[:_NAME_DIGITS]}"
    return stem[: _MAX_STEM - len(end)].rstrip("-") + end


def rayjob_patch(run: Run, attempt: int, runtime_env: Json, *, keeps_cluster: bool) -> Json:
    """What makes an overlay's RayJob an attempt at a run; an empty `runtime_env` changes none."""
    metadata = run.metadata(attempt)
    commit = metadata["code_version"].partition("+")[2] or metadata["code_version"]
    spec: Json = {"entrypoint": run.entrypoint}
    if runtime_env:
        spec["runtimeEnvYAML"] = as_yaml(runtime_env)
    if keeps_cluster:
        spec |= {"shutdownAfterJobFinishes": False, "ttlSecondsAfterFinished": None}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": rayjob_name(run, attempt),
            "labels": {
                _NAME_LABEL: _NAME,
                f"{_PREFIX}run": _label(run.name),
                f"{_PREFIX}fingerprint": run.fingerprint,
                f"{_PREFIX}commit": _label(commit),
            },
            "annotations": {
                f"{_PREFIX}{key.replace('_', '-')}": value for key, value in metadata.items()
            },
        },
        "spec": spec,
    }


def _label(text: str) -> str:
    """What a label's value may be."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[:_MAX_LABEL].strip("-_.")


def job_of(document: Json, notices: tuple[str, ...] = ()) -> Job:
    """What KubeRay says of a RayJob."""
    metadata, status = document["metadata"], document.get("status") or {}
    message = status.get("message") or ""
    code = _EXIT_CODE.search(message)
    state, words = _state(metadata, status)
    return Job(
        submission_id=metadata["name"],
        status=state,
        message=reason_of(message) or words,
        error_type=status.get("reason") or None if state == "FAILED" else None,
        exit_code=int(code[1]) if code and state == "FAILED" else None,
        metadata=_run_metadata(metadata),
        start_time=_milliseconds(status.get("startTime") or metadata.get("creationTimestamp")),
        end_time=_milliseconds(status.get("endTime")),
        notices=notices,
        is_being_deleted=state == "RUNNING" and "deletionTimestamp" in metadata,
    )


def _state(metadata: Json, status: Json) -> tuple[str, str]:
    """The state of a job, and what it means where KubeRay does not say."""
    deployment, ray = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    if deployment in ("Failed", "ValidationFailed"):
        return "FAILED", "KubeRay gives no reason"
    if deployment == "Complete":
        return ("STOPPED", "on request") if ray == "STOPPED" else ("SUCCEEDED", "")
    if "deletionTimestamp" in metadata:
        # It runs until it is gone: an attempt beside it would write into the same directory.
        return "RUNNING", "it is being deleted"
    if deployment == "Running" and ray not in ("", "PENDING"):
        return "RUNNING", ""
    return "PENDING", _WAITING.get(deployment, deployment)


def _run_metadata(metadata: Json) -> dict[str, str]:
    """As `Run.metadata` gave it; of a RayJob that was applied by hand what its labels say."""
    labels: Mapping[str, str] = metadata.get("labels") or {}
    annotations: Mapping[str, str] = metadata.get("annotations") or {}
    found = {
        key.removeprefix(_PREFIX).replace("-", "_"): value
        for key, value in annotations.items()
        if key.startswith(_PREFIX)
    }
    by_hand = {
        "run_name": labels.get(f"{_PREFIX}run", metadata["name"]),
        "fingerprint": labels.get(f"{_PREFIX}fingerprint", ""),
    }
    return by_hand | found


def _milliseconds(time: Any) -> int | None:
    return None if not time else round(datetime.fromisoformat(str(time)).timestamp() * 1000)
