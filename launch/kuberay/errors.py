"""What an API server refuses, in words: what was asked for, why not, and what helps."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launch.clusters import ClusterError, ForbiddenError, UnreachableError, shortened

_TRANSIENT = (429, 500, 502, 503, 504)


def refused(what: str, address: str, status: int, body: str | bytes | None) -> ClusterError:
    """The error for an answer other than a success.

    Args:
        what: What was asked for.
        address: Of the server.
        status: That of HTTP; 0 where TLS failed before it.
        body: The answer, or what the client says in its place.
    """
    answer = _status(body)
    said = shortened(str(answer.get("message") or ""))
    causes = (answer.get("details") or {}).get("causes") or []
    conflicts = [cause for cause in causes if cause.get("reason") == "FieldManagerConflict"]
    match status:
        case 0:
            return ClusterError(
                f"{address}: its certificate is not trusted: {said}. Check the kubeconfig's "
                "certificate-authority."
            )
        case 401:
            return ClusterError(
                f"{address} does not take the credentials of the kubeconfig: they are missing or "
                "over. Log in to the cluster again; a credential plugin says above what it lacks."
            )
        case 403:
            return ForbiddenError(
                f"{what} is not allowed: {said}. Ask who administers the cluster for a role in the "
                "namespace, or name another (--namespace). What an overlay has beside the RayJob "
                "is left out with --job-only."
            )
        case 409 if conflicts:
            return ClusterError(
                f"{what} is set otherwise by another manager, and is left as it is: "
                f"{_conflicts(conflicts)}. Change the overlay to what is there, or apply the "
                "RayJob alone with --job-only."
            )
        case 404 if "namespaces" in said:
            return ClusterError(f"{what}: {said}. Make it with kubectl create namespace.")
        case 400 | 422:
            return ClusterError(
                f"{what} is not valid to {address}: {said}. Overlays are for KubeRay 1.7."
            )
        case _ if status in _TRANSIENT:
            return UnreachableError(f"{address} answered {status}: {said}")
        case _:
            return ClusterError(f"{what}: {address} answered {status}: {said}")


def _conflicts(causes: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes)


def _status(body: str | bytes | None) -> dict[str, Any]:
    """The object in which an API server says why it refuses, or what a proxy says as one."""
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        answer = json.loads(text)
    except ValueError:
        return {"message": text}
    return answer if isinstance(answer, dict) else {"message": text}
