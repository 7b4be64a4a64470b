"""A run's artifacts on wandb: what each was made of and where it is; copied only if asked for."""

import threading
from collections.abc import Collection
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from charactertrain.artifacts import Manifest
from charactertrain.storage import Directory

ALIAS_DIGITS = 12
"""Of a fingerprint, as the plan shows it."""


@dataclass(frozen=True)
class Made:
    """An artifact that is there, and those that it was made of."""

    manifest: Manifest
    directory: Directory
    inputs: tuple[tuple[Manifest, Directory], ...]


def faults() -> tuple[type[Exception], ...]:
    """What wandb raises when it, its process or its server fails, or refuses what it is given."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError
    from wandb.sdk.mailbox.mailbox import MailboxClosedError
    from wandb.sdk.mailbox.mailbox_handle import HandleAbandonedError, ServerResponseError

    return (
        wandb.Error,
        OSError,
        ValueError,
        WandbApiFailedError,
        MailboxClosedError,
        HandleAbandonedError,
        ServerResponseError,
    )


class ArtifactSender:
    """Logs artifacts beside the run: wandb asks its server for each, which may take its time."""

    def __init__(self, run: Any, upload: Collection[str]) -> None:
        """Log to wandb's `run`; of the stages in `upload` the files are sent."""
        self._run, self._upload = run, upload
        self._used: set[str] = set()
        self._queue: SimpleQueue[Made | None] = SimpleQueue()
        self._problems: list[str] = []
        # A daemon: a process that ends does not wait for a server.
        self._thread = threading.Thread(target=self._work, name="wandb-artifacts", daemon=True)
        self._thread.start()

    def send(self, made: Made) -> None:
        """Log an artifact as the run's output, and what it was made of as its input.

        The same again is the same version: wandb knows one by its files' checksums.
        """
        self._queue.put(made)

    def finish(self, timeout_seconds: float) -> list[str]:
        """Wait for what is under way; what went wrong."""
        self.stop()
        self._thread.join(timeout_seconds)
        late = ["not all artifacts were sent in time"] if self._thread.is_alive() else []
        return [*self._problems, *late]

    def stop(self) -> None:
        """Log what is under way, and nothing after it."""
        self._queue.put(None)

    def _work(self) -> None:
        while (made := self._queue.get()) is not None:
            try:
                self._log(made)
            except Exception as error:  # noqa: BLE001  or the thread ends, and later ones are lost
                stage = made.manifest.identity.stage
                self._problems.append(f"the artifact of {stage} was not logged: {error}")

    def _log(self, made: Made) -> None:
        for manifest, directory in made.inputs:
            if manifest.fingerprint in self._used:
                continue
            self._used.add(manifest.fingerprint)
            # What `use_artifact` does, which then waits, and refuses where a run is offline.
            self._run._log_artifact(
                self._artifact(manifest, directory),
                aliases=[manifest.fingerprint[:ALIAS_DIGITS]],
                is_user_created=True,
                use_after_commit=True,
            )
        artifact = self._artifact(made.manifest, made.directory)
        self._run.log_artifact(artifact, aliases=[made.manifest.fingerprint[:ALIAS_DIGITS]])

    def _artifact(self, manifest: Manifest, directory: Directory) -> Any:
        import wandb
        from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
        from wandb.sdk.lib.paths import LogicalPath

        stage = manifest.identity.stage
        artifact = wandb.Artifact(stage, type=stage, metadata=_metadata(manifest, directory))
        for file in manifest.files:
            if stage in self._upload:
                artifact.add_file(
                    str(directory.local_path / file.name),
                    name=file.name,
                    skip_cache=True,
                    policy="immutable",
                )
                continue
            # `add_reference` would read every byte for a checksum, which the manifest has.
            entry = ArtifactManifestEntry(
                path=LogicalPath(file.name),
                digest=file.checksum,
                ref=f"{_location(directory)}/{file.name}",
                size=file.size_bytes,
            )
            artifact.manifest.add_entry(entry)
        return artifact


def _metadata(manifest: Manifest, directory: Directory) -> dict[str, Any]:
    return {
        "fingerprint": manifest.fingerprint,
        "inputs": manifest.identity.inputs,
        "location": directory.uri,
        "rows": manifest.rows,
        "rejects": manifest.rejects,
        "code_version": manifest.code_version,
        "created_at": manifest.created_at,
        "wall_seconds": manifest.wall_seconds,
    }


def _location(directory: Directory) -> str:
    return directory.local_path.absolute().as_uri() if directory.is_local else directory.uri
