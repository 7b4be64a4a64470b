"""A run on wandb: its history, resumed under one id, and its artifacts.

metrics.jsonl is what counts, and a line's number there is its step on wandb. So an attempt knows
what wandb lacks: online, the lines after wandb's last step; offline, where nothing can be asked,
all of them, in a file that takes the place of those of earlier attempts.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from charactertrain.exceptions import ConfigError
from charactertrain.runtime.metric_lines import Line, Place, place_of
from charactertrain.runtime.wandb_artifacts import ArtifactSender, Made, faults
from charactertrain.storage import Directory

Mode = Literal["offline", "online"]
EARLIER = "earlier-attempts"
"""Where offline files go that a later one holds all of; `wandb sync` does not look there."""


@dataclass(frozen=True)
class WandbSettings:
    """What a run is called on wandb, and what it sends."""

    mode: Mode
    project: str
    group: str
    job_type: str
    run_id: str
    """The same in every attempt at the run, and another for another run."""
    artifacts: frozenset[str]
    """Of the run, as lines name them: others that the file holds lines of are not the run's."""
    upload: tuple[str, ...]
    """Stages whose files are sent, and not only named."""
    timeout_seconds: float
    """To wait for the service at the start, and at the end for what is not sent yet."""
    config: Mapping[str, Any]


class WandbRun:
    """One attempt at a run. Once it has started, no fault of wandb's stops the run."""

    def __init__(
        self, settings: WandbSettings, directory: Directory, say: Callable[[str], None]
    ) -> None:
        """Start nothing. `say` shows a person a line."""
        self._settings, self._directory, self._say = settings, directory, say
        self._run: Any = None
        self._artifacts: ArtifactSender | None = None
        self._steps: set[tuple[object, ...]] = set()
        """Those that are in the history."""
        self._prefixes: set[str] = set()

    def start(self, earlier: Iterable[Line]) -> None:
        """Start wandb, and send what earlier attempts wrote and it has not.

        Raises:
            ConfigError: wandb has no key, or refuses the key or the names that it was given.
        """
        self._run = self._open(self._settings.mode)
        # Offline a run begins at 0; online at the step after wandb's last.
        first = 0 if self._run is None else int(self._run.starting_step)
        for line in earlier:
            self._send(line, is_new=line.number >= first)
        if self._run is not None:
            self._retire()
            self._artifacts = ArtifactSender(self._run, self._settings.upload)

    def log(self, line: Line) -> None:
        """Send a line that was just written."""
        self._send(line, is_new=True)

    def made(self, made: Made) -> None:
        """An artifact of the run is there."""
        if self._artifacts is not None:
            self._artifacts.send(made)

    def finish(self) -> None:
        """End the attempt; what is not sent in time stays in files for `wandb sync`."""
        if self._artifacts is not None:
            for problem in self._artifacts.finish(self._settings.timeout_seconds):
                self._say(f"wandb: {problem}")
            self._artifacts = None
        if self._run is not None:
            try:
                self._run.finish()
            except faults() as error:
                self._give_up(error)
            self._run = None

    def _open(self, mode: Mode) -> Any:
        import wandb

        try:
            if mode == "online":
                _require_key()
            return self._init(mode)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            raise ConfigError(
                f"logging.wandb={mode}: wandb did not start: {error}. Mend that, or use "
                "logging.wandb=offline and send the run later, with `wandb sync`."
            ) from error
        except faults() as error:
            if mode == "offline":
                self._give_up(error)
                return None
            self._say(
                f"wandb cannot be reached ({_in_short(error)}): this attempt goes on offline; "
                "`wandb sync` sends it later, or the next attempt does"
            )
            # Its process would take the run for one that is under way.
            wandb.teardown()
            return self._open("offline")

    def _init(self, mode: Mode) -> Any:
        import wandb

        settings = self._settings
        local = self._directory.local_path if self._directory.is_local else None
        if local is not None:
            local.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=settings.project,
            group=settings.group,
            job_type=settings.job_type,
            id=settings.run_id,
            name=self._directory.root.rpartition("/")[2],
            # Offline wandb resumes nothing, and warns.
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=local,
            config=dict(settings.config),
            # Where and how a run runs may differ from its last attempt.
            allow_val_change=True,
            settings=wandb.Settings(
                silent=True,
                console="off",
                # It would send the command line, in which a URI may have keys.
                x_disable_meta=True,
                init_timeout=settings.timeout_seconds,
                finish_timeout=settings.timeout_seconds,
            ),
        )
        self._say(f"wandb: {run.url if mode == 'online' else run.settings.sync_dir}")
        return run

    def _send(self, line: Line, *, is_new: bool) -> None:
        """Send a line of the run's, unless its step is in the history.

        A step that was taken again after a kill is in the file twice. The first counts: what has
        been sent cannot be taken back.
        """
        values = dict(line.values)
        stage, artifact = str(values.pop("stage", "")), values.pop("artifact", None)
        if artifact is not None and artifact not in self._settings.artifacts:
            return
        place = place_of(stage, values)
        if place.step is not None:
            step = (stage, artifact, place.phase, place.counter, place.step)
            if step in self._steps:
                return
            self._steps.add(step)
        if self._run is None or not is_new:
            return
        try:
            self._run.log(self._row(place, values), step=line.number, commit=True)
        except faults() as error:
            self._give_up(error)

    def _row(self, place: Place, values: Mapping[str, Any]) -> dict[str, Any]:
        """A line as a row of the history, whose phase has steps of its own."""
        prefix = "/".join(part for part in (place.stage, place.phase) if part)
        row = {key: value for key, value in values.items() if key not in (place.counter, "job")}
        if place.step is not None:
            row["step"] = place.step
            if prefix not in self._prefixes:
                self._prefixes.add(prefix)
                self._run.define_metric(f"{prefix}/step")
                self._run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")
        return {f"{prefix}/{key}": value for key, value in row.items()}

    def _retire(self) -> None:
        """Move offline files of earlier attempts away: this one's holds what they hold."""
        current = Path(self._run.settings.sync_dir)
        if not current.name.startswith("offline-run-"):
            return
        for path in sorted(current.parent.glob(f"offline-run-*-{self._settings.run_id}*")):
            if path.name != current.name:
                target = current.parent / EARLIER / path.name
                target.parent.mkdir(exist_ok=True)
                path.rename(target)

    def _give_up(self, error: BaseException) -> None:
        if self._artifacts is not None:
            self._artifacts.stop()
        self._run = self._artifacts = None
        self._say(
            f"wandb stopped ({_in_short(error)}): this attempt goes on without it; metrics.jsonl "
            "has all lines, and the next attempt sends them"
        )


def _require_key() -> None:
    """Raise UsageError where wandb has no credentials: at a terminal it would ask, and wait."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    # Verifying would take a server that does not answer for a key that is refused.
    if not wandb.login(prompt=False, verify=False):
        raise wandb.errors.UsageError(
            "there is no key: set WANDB_API_KEY, or log in with `wandb login`"
        )


def _in_short(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
