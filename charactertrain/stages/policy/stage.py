"""policy: the base model, optimised against the preference model with no trait in its prompt."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import ray

from charactertrain.artifacts import Outcome
from charactertrain.config import Control
from charactertrain.config.objective import DpoSection
from charactertrain.config.training import ColocatedSection
from charactertrain.pipeline import Work
from charactertrain.records import Prompt
from charactertrain.runtime import training
from charactertrain.runtime.engines import EngineSource
from charactertrain.runtime.placement import beside_the_driver
from charactertrain.stages.context import Context
from charactertrain.stages.policy.dpo import train as train_on_pairs
from charactertrain.stages.policy.inputs import (
    buffer_settings,
    dpo_task,
    fitting_prompts,
    is_watched,
    policy_task,
    reward_of,
    watch_task,
)
from charactertrain.stages.policy.loop import train
from charactertrain.stages.policy.monitor import BEST
from charactertrain.stages.policy.rollout_buffer import Gold, RolloutBuffer
from charactertrain.stages.policy.rollout_engines import Sampling
from charactertrain.stages.preference_model.gates import check_gates, require_gates
from charactertrain.stages.preference_model.stage import GOLD, ensemble_members, worker_settings

_TRAITS_OF: dict[Control | None, str] = {
    None: "The traits, as trained without showing them",
    "neutral": "Nothing was shown to it of the traits, whose prompts it was trained on",
    "placebo": "Its rewards are of labels handed out at random, and not of the traits",
}
"""How the model card introduces the traits."""


def run(work: Work, context: Context) -> Outcome:
    """Warm start on the top-ranked responses, then steps of the objective."""
    objective = context.config.policy.objective
    summary: dict[str, Any] = {"control": context.config.control}
    if not isinstance(objective, DpoSection):
        _check_gates(work, context)
        prompts, num_too_long = fitting_prompts(work, context)
        summary["prompts_too_long"] = num_too_long
        if num_too_long:
            context.session.console.print(
                f"  {num_too_long} prompts leave no room for policy.max_tokens, and are left out"
            )
    if not work.directory.exists("optimise.json"):
        context.session.make_room()
        if isinstance(objective, DpoSection):
            _train_on_pairs(work, context, objective.beta)
        else:
            _train_on_rewards(work, context, prompts)
    work.directory.delete("checkpoints")
    history = json.loads(work.directory.read_bytes("optimise.json"))
    files = ["optimise.json", *work.directory.files("model")]
    warm_start: list[dict[str, Any]] = []
    if context.config.policy.warm_start.epochs > 0:
        warm_start = json.loads(work.directory.read_bytes("warm_start.json"))
        files += ["warm_start.json", *work.directory.files("warm_start")]
    work.directory.write_bytes("model/README.md", _model_card(work, context).encode())
    if is_watched(context.config.policy):
        summary["watch"] = json.loads(work.directory.read_bytes("watch.json"))
        work.directory.delete(BEST)
        files.append("watch.json")
    summary |= {
        "history": [*warm_start, *history],
        "sync_difference": max(
            (row["sync_difference"] for row in history if "sync_difference" in row), default=None
        ),
    }
    return Outcome(files=tuple({*files, "model/README.md"}), summary=summary)


def _train_on_pairs(work: Work, context: Context, beta: float) -> None:
    context.session.connect()
    training.fit(
        train_on_pairs,
        {"task": policy_task(work, context), "dpo": dpo_task(work, context, beta)},
        workers=worker_settings(context),
        storage=work.directory,
        on_metrics=lambda values: context.session.metrics.log("policy", values),
    )


def _train_on_rewards(work: Work, context: Context, prompts: Sequence[Prompt]) -> None:
    config, session = context.config.policy, context.session
    model = str(context.model_directory)
    source, manifest = work.inputs["preference_model"]
    with ExitStack() as stack:
        members = [
            str(stack.enter_context(source.child(name).on_local_disk()))
            for name in ensemble_members(manifest)
        ]
        shared = config.resources.colocated
        engines = _sharing(session.sampler(model, model), shared)
        rewards = [
            _sharing(session.sampler(member, member, kind="reward"), shared) for member in members
        ]
        watch = watch_task(work, context, prompts) if is_watched(config) else None
        needed, gold = [engines] * config.resources.engines + rewards, None
        if watch is not None and GOLD in manifest.summary["levels"]:
            directory = str(stack.enter_context(source.child(GOLD).on_local_disk()))
            of_gold = _sharing(session.sampler(directory, directory, kind="reward"), shared)
            needed.append(of_gold)
            gold = Gold(of_gold, reward_of([GOLD], work, context))
        if shared is None:
            # Before the workers: an elastic group takes every device that is left.
            session.start_engines(needed)
        # Of the driver, so that it outlives an attempt; Ray starts it again should it die.
        buffer: Any = (
            ray.remote(RolloutBuffer)
            .options(num_cpus=0, max_restarts=-1, scheduling_strategy=beside_the_driver())
            .remote(buffer_settings(work, context, prompts, rewards, gold), model)
        )
        try:
            training.fit(
                train,
                {
                    "task": policy_task(work, context, watch),
                    "sampling": Sampling(
                        engines, config.resources.engines, buffer, is_colocated=shared is not None
                    ),
                },
                workers=worker_settings(context),
                storage=work.directory,
                on_metrics=lambda values: session.metrics.log("policy", values),
            )
        finally:
            ray.kill(buffer)


def _sharing(source: EngineSource, shared: ColocatedSection | None) -> EngineSource:
    """Of an engine that leaves the training worker on its device what the config says."""
    if shared is None:
        return source
    is_reward = source.spec.kind == "reward"
    fraction = shared.reward_memory_fraction if is_reward else shared.memory_fraction
    spec = replace(source.spec, memory_fraction=fraction, sleeps=shared.sleep and not is_reward)
    return replace(source, spec=spec)


def _check_gates(work: Work, context: Context) -> None:
    """Raise TrainingError for a preference model that does not pass, unless told to go on."""
    _, manifest = work.inputs["preference_model"]
    gates = check_gates(manifest.summary, context.config.preference_model.gates)
    if not context.config.policy.despite_gates:
        require_gates(gates)


def _model_card(work: Work, context: Context) -> str:
    constitution, control = context.constitution, context.config.control
    traits = "\n".join(f"- {trait.id}: {trait.statement}" for trait in constitution.traits)
    trained = "trained on" if control is None else f"a {control} control of"
    return (
        f"# {context.config.model.name}, {trained} the constitution {constitution.name!r}\n\n"
        f"Made by charactertrain from `{context.config.model.path}`; artifact fingerprint "
        f"`{work.identity.fingerprint}`. {_TRAITS_OF[control]}:\n\n"
        f"{traits}\n\n"
        "These weights were written before they were evaluated. The card with the numbers is "
        "`report/model_card.md` of the run: copy it over this file when you publish the model.\n"
    )
