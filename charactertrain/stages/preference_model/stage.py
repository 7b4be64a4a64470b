"""preference_model: the policy's own base learns to score responses as the rankings order them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from charactertrain.artifacts import Manifest, Outcome, iter_rows, read_rows
from charactertrain.config import PolicySection, PreferenceModelSection
from charactertrain.models import loading
from charactertrain.models.lora import LoraSettings
from charactertrain.pipeline import Work
from charactertrain.records import HeldOutReward, PreferencePair, Reject, Trait, to_table
from charactertrain.runtime import training
from charactertrain.runtime.training import WorkerSettings
from charactertrain.runtime.training_engine import OptimizerSettings
from charactertrain.runtime.zero import ZeroSettings
from charactertrain.seeds import derive_seed
from charactertrain.stages.context import Context
from charactertrain.stages.preference_model import data as preference_data
from charactertrain.stages.preference_model import quality as preference_quality
from charactertrain.stages.preference_model import shortcuts
from charactertrain.stages.preference_model.data import Example
from charactertrain.stages.preference_model.gates import check_gates
from charactertrain.stages.preference_model.loop import Member, PreferenceTask, train
from charactertrain.stages.preference_model.shortcuts import EditedResponse
from charactertrain.stages.preference_model.step import PreferenceObjective, RankedPrompt

MODEL = "model"
GOLD = "gold"


@dataclass(frozen=True)
class _Data:
    """What the stage's models are trained on, chosen by and measured on."""

    trained: list[Example]
    gold: list[Example]
    selection: list[Example]
    measured: list[Example]
    edited: list[EditedResponse]
    num_general_left: int

    @property
    def held_out(self) -> list[Example]:
        return self.selection + self.measured


def run(work: Work, context: Context) -> Outcome:
    """Train the model, its ensemble and the gold model; measure them on held-out pairs."""
    config = context.config.preference_model
    data, rejects = _read(work, context)
    task = _task(data, work, context)
    if not all(work.directory.exists(f"{member.name}.json") for member in task.members):
        context.session.connect()
        context.session.make_room()
        training.fit(
            train,
            {"task": task},
            workers=worker_settings(context),
            storage=work.directory,
            on_metrics=lambda values: context.session.metrics.log("preference_model", values),
        )
    work.directory.delete("checkpoints")
    results = {
        member.name: json.loads(work.directory.read_bytes(f"{member.name}.json"))
        for member in task.members
    }
    summary = _summary(data, results, config, seed=context.config.seed)
    summary["control"] = context.config.control
    work.directory.write_bytes("quality.json", json.dumps(summary, indent=2).encode())
    name = "held_out_rewards/part-000000.parquet"
    work.directory.write_table(name, to_table(_held_out_rewards(data, results), HeldOutReward))
    files = ["quality.json", name]
    for member in task.members:
        files += [f"{member.name}.json", *work.directory.files(member.name)]
    if rejects:
        work.directory.write_table("rejects/too_long.parquet", to_table(rejects, Reject))
        files.append("rejects/too_long.parquet")
    return Outcome(tuple(files), {"too_long": len(rejects)} if rejects else {}, summary)


def worker_settings(context: Context) -> WorkerSettings:
    """The worker group that the cluster section asks for."""
    cluster = context.config.cluster
    return WorkerSettings(
        cluster.num_workers,
        cluster.cpus_per_worker,
        cluster.gpus_per_worker,
        cluster.max_failures,
        cluster.node_group,
    )


def zero_settings(section: PreferenceModelSection | PolicySection) -> ZeroSettings:
    """How a training section asks for its model to be spread and stepped."""
    return ZeroSettings(
        stage=section.deepspeed.stage,
        offload=section.deepspeed.offload,
        optimizer=OptimizerSettings(
            section.weight_decay, section.max_grad_norm, section.resources.recompute_activations
        ),
    )


def lora_settings(section: PreferenceModelSection | PolicySection) -> LoraSettings | None:
    """The adapters that a training section asks for; None for none."""
    return None if section.lora is None else LoraSettings(section.lora.rank, section.lora.alpha)


def ensemble_members(manifest: Manifest) -> list[str]:
    """Directories of the models whose rewards the policy is trained on."""
    return [name for name in manifest.summary["levels"] if name != GOLD]


def _read(work: Work, context: Context) -> tuple[_Data, list[Reject]]:
    config, seed = context.config.preference_model, context.config.seed
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    context_tokens = context.config.model.context_tokens
    pairs = (
        pair
        for batch in iter_rows(*work.inputs["pairs"], "pairs", PreferencePair)
        for pair in batch
    )
    examples, rejects = preference_data.read_examples(
        pairs, tokenizer, context_tokens=context_tokens
    )
    training_examples, num_left = preference_data.mixed(
        [example for example in examples if example.split == "train"],
        general_share=config.general_share,
        seed=seed,
    )
    trained, gold = preference_data.halves(
        training_examples, gold_share=config.gold_share, seed=seed
    )
    held_out = preference_data.mixed_held_out(
        [example for example in examples if example.split == "validation"],
        general_share=config.general_share,
        seed=seed,
    )
    selection, measured = preference_data.selection_and_measured(held_out, seed=seed)
    preference_data.check_held_out(trained, selection, measured)
    if config.objective == "plackett_luce":
        preference_data.check_lists([*trained, *gold, *selection])
    traits = {trait.trait_id: trait for trait in read_rows(*work.inputs["traits"], "traits", Trait)}
    edited = shortcuts.edited_responses(
        measured, traits, tokenizer, context_tokens=context_tokens, seed=seed
    )
    return _Data(trained, gold, selection, measured, edited, num_left), rejects


def _members(data: _Data, config: PreferenceModelSection, *, seed: int) -> tuple[Member, ...]:
    """The model, others that differ from it in their seed alone, and the gold model."""
    parts = {MODEL: (seed, data.trained)}
    for index in range(1, config.ensemble):
        parts[f"{MODEL}-{index}"] = (derive_seed(seed, "member", index), data.trained)
    if config.gold_share > 0:
        parts[GOLD] = (derive_seed(seed, GOLD), data.gold)
    return tuple(
        Member(
            name,
            member_seed,
            tuple(_labelled(example, config, seed=seed) for example in examples),
        )
        for name, (member_seed, examples) in parts.items()
    )


def _labelled(example: Example, config: PreferenceModelSection, *, seed: int) -> RankedPrompt:
    if config.labels == "shuffled":
        return preference_data.shuffled(example.ranked, seed=seed)
    return example.ranked


def _task(data: _Data, work: Work, context: Context) -> PreferenceTask:
    config, seed = context.config.preference_model, context.config.seed
    return PreferenceTask(
        model_directory=str(context.model_directory),
        precision=context.config.model.precision,
        members=_members(data, config, seed=seed),
        selection=tuple(_labelled(example, config, seed=seed) for example in data.selection),
        scored=(
            *(example.ranked.group for example in data.held_out),
            *(edited.group for edited in data.edited),
        ),
        objective=PreferenceObjective(config.objective, config.centering, config.margin),
        epochs=config.epochs,
        prompts_per_step=config.prompts_per_step,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        decay=config.decay,
        evaluations=config.evaluations,
        patience=config.patience,
        lora=lora_settings(config),
        token_budget=config.resources.tokens_per_microbatch,
        zero=zero_settings(config),
        checkpoint_every=config.resources.checkpoint_every,
        output=work.directory,
    )


def _summary(
    data: _Data,
    results: Mapping[str, Mapping[str, Any]],
    config: PreferenceModelSection,
    *,
    seed: int,
) -> dict[str, Any]:
    """Quality of the model in full, of the others in short, and what the gates say."""
    ids = [example.ranked.prompt_id for example in data.held_out]
    rewards = {
        name: dict(zip(ids, found["rewards"][: len(ids)], strict=True))
        for name, found in results.items()
    }
    edits = results[MODEL]["rewards"][len(ids) :]
    baselines = preference_quality.fit_baselines(
        [replace(example, ranked=_labelled(example, config, seed=seed)) for example in data.trained]
    )
    pairs = {
        name: preference_quality.held_out_pairs(data.measured, found)
        for name, found in rewards.items()
    }
    selection = preference_quality.held_out_pairs(data.selection, rewards[MODEL])
    quality = preference_quality.measure(selection, pairs[MODEL], baselines, seed=seed)
    quality |= {
        "length_slopes": {
            name: preference_quality.length_slope(data.held_out, found)
            for name, found in rewards.items()
        },
        "length_correlation": preference_quality.length_correlation(
            data.measured, rewards[MODEL], seed=seed
        ),
        "shortcuts": shortcuts.effects(
            data.edited, edits, data.measured, rewards[MODEL], seed=seed
        ),
        "levels": {name: _level(found) for name, found in rewards.items()},
        "others": {
            name: preference_quality.compared(found, pairs[MODEL], baselines, seed=seed)
            for name, found in pairs.items()
            if name != MODEL
        },
        "trained_prompts": {"model": len(data.trained), "gold": len(data.gold)},
        "shared_families": preference_data.shared_families(data.trained, data.gold),
        "general_left": data.num_general_left,
        "labels": config.labels,
        "objective": config.objective,
    }
    history = {
        name: {key: found[key] for key in ("history", "evaluations", "best_step")}
        for name, found in results.items()
    }
    gates = check_gates(quality, config.gates)
    return {**quality, "gates": [asdict(gate) for gate in gates], "training": history}


def _held_out_rewards(data: _Data, results: Mapping[str, Mapping[str, Any]]) -> list[HeldOutReward]:
    """Of every response that a held-out pair has, without the gold model's."""
    members = [found["rewards"] for name, found in results.items() if name != GOLD]
    return [
        HeldOutReward(
            response_id=response_id,
            prompt_id=example.ranked.prompt_id,
            trait_id=example.ranked.trait_id,
            rewards=tuple(rewards[place][number] for rewards in members),
        )
        for place, example in enumerate(data.held_out)
        for number, response_id in enumerate(example.response_ids)
    ]


def _level(rewards: Mapping[str, Sequence[float]]) -> float:
    """Mean reward of held-out responses; Bradley-Terry leaves it free."""
    values = [value for found in rewards.values() for value in found]
    return sum(values) / len(values)
