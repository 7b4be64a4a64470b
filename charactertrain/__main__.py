"""The command line: compose the config, validate it, make a plan, and run the stages.

`charactertrain plan` composes the same config, and sizes the run in place of making it.
"""

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from charactertrain import __version__, pipeline
from charactertrain.artifacts import Json, Manifest, Outcome
from charactertrain.config import RunConfig, validate
from charactertrain.config.plan import validate_plan
from charactertrain.constitution import Constitution
from charactertrain.exceptions import CharacterTrainError, ConfigError, UnavailableError
from charactertrain.models.sources import model_identity
from charactertrain.pipeline import Action, Share, Step, Work
from charactertrain.points import point_name
from charactertrain.stages.definitions import NAMES, define
from charactertrain.stages.evaluation.arms import check_finished
from charactertrain.stages.pairs import files as pair_files
from charactertrain.stages.prompts import files as prompt_files
from charactertrain.storage import Directory, open_directory, without_keys
from charactertrain.trait_file import load_constitution

ROOT = Path(__file__).resolve().parent.parent
CONSTITUTIONS = ROOT / "constitutions"
TRY_AGAIN = 75
"""Exit status, EX_TEMPFAIL, where the same command may succeed in a while; 2 where it would not."""
_MAX_GROUP = 128
"""Characters of a group that wandb takes."""
SUMMARY_MEASURES = {
    "contrast": "contrast",
    "detector_rate": "detector rate",
    "win_rate_length_controlled": "win rate at equal length",
}
"""Measures in the table at the end, and their headings: three fit 80 columns."""


def main() -> None:
    """Console entry point."""
    # The driver trains nothing; without a name DeepSpeed warns that it found no accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if sys.argv[1:2] == ["plan"]:
        # A group of the config that nothing else composes.
        sys.argv[1] = "+plan=sizing"
    # Hydra's own decorator prints a traceback for errors; ours are messages for people.
    _compose_and_run()


@hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")
def _compose_and_run(composed: DictConfig) -> float | None:
    console = Console(soft_wrap=True, highlight=False)
    try:
        values: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        job = HydraConfig.get()
        if job.mode is RunMode.MULTIRUN:
            console.print(f"[bold]point {job.job.num}[/]: ", end="")
            console.print(" ".join(job.overrides.task), markup=False)
            values = point_values(values, job.overrides.task)
        assumed = values.pop("plan", None)
        if assumed is not None:
            size(validate(values), assumed, console)
            return None
        return run(validate(values), console)
    except CharacterTrainError as error:
        console.print(f"[bold red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False)
        sys.exit(TRY_AGAIN if isinstance(error, UnavailableError) else 2)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        sys.exit(130)


def point_directory(sweep_directory: str, overrides: Sequence[str]) -> str:
    """The run directory of a point of a sweep: in a multirun, run.dir is the sweep's."""
    location, mark, options = sweep_directory.partition("?")
    return f"{location.rstrip('/')}/{point_name(overrides)}{mark}{options}"


def point_values(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The settings of a point of a sweep: a directory of its own, in one group with the others."""
    sweep_directory, logging = values["run"]["dir"], values["logging"]
    name = PurePosixPath(sweep_directory.partition("?")[0]).name
    return {
        **values,
        "run": {**values["run"], "dir": point_directory(sweep_directory, overrides)},
        "logging": {**logging, "group": logging["group"] or name[:_MAX_GROUP] or None},
    }


def run(config: RunConfig, console: Console) -> float | None:
    """Run what `config` asks for; the mean trait effect, for sweeps, once there is a report."""
    directory = open_directory(config.run.dir)
    constitution = load_constitution(config.constitution, shipped_dir=CONSTITUTIONS)
    definitions = define(config, constitution, model_identity)
    steps = pipeline.make_plan(definitions, directory, only=config.run.only, until=config.run.until)
    _print_plan(console, config, steps, directory)
    pipeline.check_plan(steps, directory, code_version=code_version())
    pipeline.check_inputs(steps, directory)
    _check_files(config, constitution, steps)
    if config.run.dry:
        console.print("nothing refuses")
        return None
    if any(step.action is not Action.SKIP for step in steps):
        _check_model(config)
        directory.write_bytes("config.yaml", _resolved_yaml(config))
    fingerprints = {
        name: identity.fingerprint for name, identity in pipeline.identities(definitions).items()
    }
    return _execute(config, constitution, steps, directory, console, fingerprints)


def size(config: RunConfig, assumed: Mapping[str, Any], console: Console) -> None:
    """Print what the run that `config` asks for would take; `assumed` is of conf/plan/."""
    from charactertrain.plan.page import show
    from charactertrain.plan.sizing import make_plan

    constitution = load_constitution(config.constitution, shipped_dir=CONSTITUTIONS)
    definitions = define(config, constitution, model_identity)
    stages = pipeline.select(definitions, only=config.run.only, until=config.run.until)
    show(make_plan(config, constitution, validate_plan(assumed)), console, stages)


def _execute(
    config: RunConfig,
    constitution: Constitution,
    steps: Sequence[Step],
    directory: Directory,
    console: Console,
    fingerprints: Mapping[str, str],
) -> float | None:
    from charactertrain.stages.context import Context
    from charactertrain.stages.start import open_session

    started = time.monotonic()
    effect: float | None = None
    with open_session(config, directory, console, fingerprints) as session:
        context = Context(config, constitution, session, default_values())
        for step in steps:
            name = step.stage.name

            def implementation(work: Work, name: str = name) -> Outcome:
                with session.metrics.stage(name, work.identity.fingerprint):
                    module = importlib.import_module(f"charactertrain.stages.{name}.stage")
                    outcome: Outcome = module.run(work, context)
                    return outcome

            if step.action is not Action.SKIP:
                console.print(f"[bold]{name}[/]")
            manifest = pipeline.execute(
                step,
                directory,
                implementation,
                code_version=code_version(),
                share=_share(config, name, console),
            )
            session.end_leases()
            session.metrics.made(manifest, directory.child(name))
            if step.action is not Action.SKIP:
                _print_done(console, manifest)
            if name == "report":
                effect = _print_summary(console, manifest, directory)
    console.print(f"done in {time.monotonic() - started:.0f} s")
    return effect


def default_values() -> dict[str, Any]:
    """The config without experiment and overrides, as the report holds a run's against it."""
    # Under Hydra's own decorator it is there, and cannot be made a second time.
    is_there = GlobalHydra.instance().is_initialized()
    start = partial(hydra.initialize_config_dir, str(ROOT / "conf"), version_base="1.3")
    with nullcontext() if is_there else start():
        values: Any = OmegaConf.to_container(hydra.compose("config"), resolve=True)
    return validate(values).model_dump(mode="json")


def _share(config: RunConfig, stage: str, console: Console) -> Share | None:
    """Where the stage's artifact is shared; the report is of one run, which it names."""
    if config.run.share is None or stage == "report":
        return None
    return Share(
        open_directory(config.run.share), lambda line: console.print(f"  {line}", markup=False)
    )


def _check_files(config: RunConfig, constitution: Constitution, steps: Sequence[Step]) -> None:
    """Raise ConfigError before anything is started if a file of the researcher's own is wrong."""
    made = {step.stage.name for step in steps if step.action is not Action.SKIP}
    weights = {trait.id: trait.weight for trait in constitution.traits}
    _check_ablation(config.ablate, weights)
    _check_upload(config.logging.upload)
    if "evaluation" in made:
        check_finished(config.evaluation.compare)
    if "prompts" in made:
        prompt_files.check(config.prompts, trait_ids=list(weights), seed=config.seed)
    if "pairs" in made:
        pair_files.check(config.pairs, trait_weights=weights, seed=config.seed)


def _check_ablation(ablate: Sequence[str], traits: Collection[str]) -> None:
    unknown = sorted(set(ablate) - set(traits))
    if unknown or set(ablate) == set(traits):
        problem = f"no trait {unknown[0]!r}" if unknown else "nothing is left to be trained on"
        raise ConfigError(
            f"ablate: {problem}; expected some of {', '.join(traits)}, and not all of them"
        )


def _check_upload(stages: Sequence[str]) -> None:
    unknown = sorted(set(stages) - set(NAMES))
    if unknown:
        raise ConfigError(
            f"logging.upload: no stage {unknown[0]!r}; expected some of {', '.join(NAMES)}"
        )


def _check_model(config: RunConfig) -> None:
    """Raise before anything is started if the model is not there or is too short."""
    from charactertrain.models import loading, sources

    model = sources.resolve(config.model.path)
    loading.check_context(model, config.model.context_tokens)
    loading.load_tokenizer(model)
    for judge in (config.rankings.judge_model, config.evaluation.judge.judge_model):
        if judge is not None:
            loading.check_context(sources.resolve(judge), config.model.context_tokens)


def _resolved_yaml(config: RunConfig) -> bytes:
    text = OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))
    return without_keys(text).encode()


def code_version() -> str:
    """The package's version, with the commit of a source checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{described.stdout.strip()}"


def _print_plan(
    console: Console, config: RunConfig, steps: Sequence[Step], directory: Directory
) -> None:
    table = Table(title=f"{directory.uri}  ({config.model.name}, {config.constitution})")
    for column in ("stage", "action", "size", "fingerprint"):
        table.add_column(column)
    for step in steps:
        fingerprint = step.identity.fingerprint[:12]
        table.add_row(step.stage.name, step.action.value, step.stage.size, fingerprint)
    console.print(table)


def _print_done(console: Console, manifest: Manifest) -> None:
    tables = {t: count for t, count in manifest.rows.items() if not t.startswith("rejects/")}
    rows = ", ".join(f"{count} {table}" for table, count in tables.items())
    rejects = sum(manifest.rejects.values())
    note = f", {rejects} rejected" if rejects else ""
    console.print(f"  {rows or 'done'}{note} in {manifest.wall_seconds:.0f} s", style="green")


def _print_summary(console: Console, manifest: Manifest, directory: Directory) -> float | None:
    """The policy's effects in 80 columns, and the verdicts."""
    table = Table(title="what each trait changed: policy minus base, p after Holm, 95 % interval")
    for column in ("trait", *SUMMARY_MEASURES.values()):
        table.add_column(column, overflow="fold")
    effects = manifest.summary["effects"]
    found = {(row["trait"], row["measure"]): row for row in effects if row["arm"] == "policy"}
    for trait in dict.fromkeys(row["trait"] for row in effects):
        cells = (_in_short(found.get((trait, measure))) for measure in SUMMARY_MEASURES)
        table.add_row(trait, *cells)
    console.print(table)
    for verdict in manifest.summary["verdicts"]:
        console.print(f"  {verdict}", markup=False)
    page = f"{directory.uri}/report/report.html"
    console.print(f"levels, other arms and measures, and texts: {page}", markup=False)
    value: float | None = manifest.summary["objective"]
    # Read by launch.runs from the log of a job whose run directory it cannot see.
    console.print(f"objective: {value}")
    return value


def _in_short(effect: Json | None) -> str:
    if effect is None:
        return "not measured"
    p_holm = effect["p_holm"]
    p = "no p" if p_holm is None else "p<0.001" if p_holm < 0.001 else f"p={p_holm:.3f}"
    interval = f"{effect['ci_low']:+.3f}, {effect['ci_high']:+.3f}"
    return f"{effect['difference']:+.3f} {p}\n{interval}"


if __name__ == "__main__":
    main()
