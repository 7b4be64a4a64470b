"""What keeps a run's pods from running, from their status and from the cluster's events."""

from collections.abc import Iterator, Sequence

from charactertrain.artifacts import Json
from launch.clusters import shortened

_PULL = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_ON_ITS_WAY = ("ContainerCreating", "PodInitializing")
_SAID_BY_PODS = ("FailedScheduling", "Failed", "BackOff", "InspectFailed")
"""Reasons of events that the status of a pod tells better."""


def problems(pods: Sequence[Json], events: Sequence[Json], names: Sequence[str]) -> list[str]:
    """A line for each problem of the pods, and of what else is called by these names."""
    of_pods = [line for pod in pods for line in _of_pod(pod)]
    known = {*names, *(pod["metadata"]["name"] for pod in pods)}
    of_events = [_of_event(event) for event in events if _is_told(event, known)]
    return list(dict.fromkeys([*of_pods, *of_events]))


def _of_pod(pod: Json) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("reason") == "Evicted":
        yield f"pod {name} was evicted: {status.get('message', '')}"
    for condition in status.get("conditions") or ():
        if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
            yield f"pod {name} has no node yet: {shortened(condition.get('message', ''))}"
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or ():
            yield from (f"pod {name}: {line}" for line in _of_container(container))


def _of_container(container: Json) -> Iterator[str]:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason, said = waiting.get("reason", ""), shortened(waiting.get("message", ""))
    if reason in _PULL:
        yield (
            f"the image {container.get('image')} cannot be pulled ({reason}): {said}. Name the one "
            "that was pushed (--image); a private registry wants an imagePullSecret."
        )
    elif reason and reason not in _ON_ITS_WAY:
        yield f"{container['name']} does not start ({reason}): {said}"
    for state in (container.get("state") or {}, container.get("lastState") or {}):
        if (state.get("terminated") or {}).get("reason") == "OOMKilled":
            yield f"{container['name']} was killed for want of memory"


def _is_told(event: Json, known: set[str]) -> bool:
    is_ours = (event.get("involvedObject") or {}).get("name") in known
    return is_ours and event.get("reason") not in _SAID_BY_PODS


def _of_event(event: Json) -> str:
    about = event["involvedObject"]
    said = shortened(event.get("message") or "")
    return f"{about.get('kind')} {about.get('name')}: {event.get('reason')}: {said}"
