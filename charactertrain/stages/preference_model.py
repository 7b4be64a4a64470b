"""preference_model: the policy's own base learns to score responses as the rankings order them."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from charactertrain import calibration, chat
from charactertrain.artifacts import Outcome, iter_rows
from charactertrain.exceptions import TrainingError
from charactertrain.models import loading
from charactertrain.models.packing import PromptGroup
from charactertrain.pipeline import Work
from charactertrain.records import PreferencePair
from charactertrain.runtime import training
from charactertrain.runtime.training import WorkerSettings
from charactertrain.stages.context import Context
from charactertrain.stages.preference_loop import PreferenceTask, RankedPrompt, train
from charactertrain.statistics import cluster_bootstrap_mean

_NUM_BINS = 10
_NUM_RESAMPLES = 2000


def run(work: Work, context: Context) -> Outcome:
    """Train, calibrate on half of the held-out pairs, and measure on the other half."""
    config = context.config.preference_model
    groups = _pairs_by_prompt(work)
    prompts = _ranked_prompts(groups, context)
    _check_held_out(prompts["validation"])
    context.session.connect()
    task = PreferenceTask(
        model_directory=str(context.model_directory),
        precision=context.config.model.precision,
        context_tokens=context.config.model.context_tokens,
        train=tuple(prompts["train"]),
        validation=tuple(prompts["validation"]),
        epochs=config.epochs,
        prompts_per_step=config.prompts_per_step,
        microbatch_size=config.resources.microbatch_size,
        learning_rate=config.learning_rate,
        warmup_share=config.warmup_share,
        centering=config.centering,
        zero_stage=config.deepspeed.stage,
        offload=config.deepspeed.offload,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        checkpoint_every=config.resources.checkpoint_every,
        seed=context.config.seed,
        output=work.directory,
    )
    if not work.directory.exists("results.json"):
        context.session.make_room()
        training.fit(
            train,
            {"task": task},
            workers=worker_settings(context),
            storage=work.directory,
            on_metrics=lambda values: context.session.metrics.log("preference_model", values),
        )
    work.directory.delete("checkpoints")
    results = json.loads(work.directory.read_bytes("results.json"))
    rewards = results["validation_rewards"]
    lengths = {pairs[0].prompt_id: sampled_lengths(pairs) for pairs in groups}
    quality = measure(task.validation, rewards, lengths, seed=context.config.seed)
    quality["length_slope"] = length_slope(task.validation, rewards, lengths)
    work.directory.write_bytes("calibration.json", json.dumps(quality, indent=2).encode())
    _check_accuracy(quality, config.min_accuracy)
    files = ("results.json", "calibration.json", *work.directory.files("model"))
    return Outcome(files=files, summary={**quality, "history": results["history"]})


def worker_settings(context: Context) -> WorkerSettings:
    """The worker group that the cluster section asks for."""
    cluster = context.config.cluster
    return WorkerSettings(
        cluster.num_workers, cluster.cpus_per_worker, cluster.gpus_per_worker, cluster.max_failures
    )


def _pairs_by_prompt(work: Work) -> list[list[PreferencePair]]:
    pairs_by_prompt: dict[str, list[PreferencePair]] = defaultdict(list)
    for batch in iter_rows(*work.inputs["pairs"], "pairs", PreferencePair):
        for pair in batch:
            pairs_by_prompt[pair.prompt_id].append(pair)
    return list(pairs_by_prompt.values())


def _ranked_prompts(
    groups: Sequence[list[PreferencePair]], context: Context
) -> dict[str, list[RankedPrompt]]:
    """Prompts by split, with their responses as token ids."""
    tokenizer: Any = loading.load_tokenizer(context.model_directory)
    prompts: dict[str, list[RankedPrompt]] = {"train": [], "validation": []}
    for pairs in groups:
        prompts[pairs[0].split].append(_ranked_prompt(pairs, tokenizer))
    return prompts


def _ranked_prompt(pairs: list[PreferencePair], tokenizer: chat.Tokenizer) -> RankedPrompt:
    prompt = pairs[0].prompt[-1].content
    prompt_ids = tuple(chat.encode_exchange(prompt, "", tokenizer))
    found = _responses(pairs)
    position = {response_id: index for index, response_id in enumerate(found)}
    responses = tuple(
        tuple(chat.encode_exchange(prompt, text, tokenizer)[len(prompt_ids) :])
        for text, _ in found.values()
    )
    return RankedPrompt(
        prompt_id=pairs[0].prompt_id,
        trait_id=pairs[0].trait_id,
        group=PromptGroup(prompt_ids, responses),
        pairs=tuple(
            (position[p.chosen_id], position[p.rejected_id], p.probability, p.weight) for p in pairs
        ),
    )


def _responses(pairs: Sequence[PreferencePair]) -> dict[str, tuple[str, int]]:
    """Text and length of each response of a prompt's pairs, by id, in order of appearance."""
    found: dict[str, tuple[str, int]] = {}
    for pair in pairs:
        found[pair.chosen_id] = (pair.chosen[0].content, pair.chosen_tokens)
        found[pair.rejected_id] = (pair.rejected[0].content, pair.rejected_tokens)
    return found


def sampled_lengths(pairs: Sequence[PreferencePair]) -> list[int]:
    """Lengths in tokens as sampled of a prompt's responses, in the order of its `RankedPrompt`.

    Not those of the token ids there: a text encoded again may have more or fewer tokens than it
    was written with, and the policy's lengths are of what it writes.
    """
    return [num_tokens for _, num_tokens in _responses(pairs).values()]


def _check_held_out(prompts: Sequence[RankedPrompt]) -> None:
    """Raise TrainingError, before anything is trained, if a trait could not be measured."""
    counts = Counter(prompt.trait_id for prompt in prompts)
    if not counts or min(counts.values()) < 2:
        raise TrainingError(
            f"held-out prompts by trait: {dict(counts) or 'none'}; an interval needs two at least. "
            "Raise prompts.attempts_per_facet or prompts.validation_share"
        )


def measure(
    prompts: Sequence[RankedPrompt],
    rewards: dict[str, list[float]],
    lengths: dict[str, list[int]],
    *,
    seed: int,
) -> dict[str, Any]:
    """Held-out accuracy with intervals, and calibration before and after a temperature.

    Prompts are split into two halves: the temperature is fitted on one, and both calibrations
    are measured on the other.

    Args:
        prompts: Held-out prompts with their pairs.
        rewards: By prompt id, in the order of the prompt's responses.
        lengths: Tokens as sampled, likewise.
        seed: Of the bootstrap.
    """
    rows = [
        (
            prompt,
            rewards[prompt.prompt_id][i] - rewards[prompt.prompt_id][j],
            p,
            lengths[prompt.prompt_id][i] - lengths[prompt.prompt_id][j],
        )
        for prompt in prompts
        for i, j, p, _ in prompt.pairs
    ]
    ordered = sorted({row[0].prompt_id for row in rows})
    fitting = set(ordered[::2])
    fit_rows = [row for row in rows if row[0].prompt_id in fitting]
    test_rows = [row for row in rows if row[0].prompt_id not in fitting] or fit_rows
    temperature = calibration.fit_temperature([r[1] for r in fit_rows], [r[2] for r in fit_rows])
    return {
        "accuracy": _accuracy(rows, seed),
        "accuracy_by_trait": {
            trait_id: _accuracy([row for row in rows if row[0].trait_id == trait_id], seed)
            for trait_id in sorted({row[0].trait_id for row in rows})
        },
        "temperature": temperature,
        "before_temperature": _calibration(test_rows, 1.0),
        "after_temperature": _calibration(test_rows, temperature),
        "num_pairs": len(rows),
    }


Row = tuple[RankedPrompt, float, float, int]


def _accuracy(rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Accuracy of the reward and of length alone (longer is better), by prompt clusters."""
    by_prompt: dict[str, list[float]] = defaultdict(list)
    by_length: dict[str, list[float]] = defaultdict(list)
    for prompt, margin, _, extra_tokens in rows:
        by_prompt[prompt.prompt_id].append(_hit(margin))
        by_length[prompt.prompt_id].append(_hit(extra_tokens))
    interval = cluster_bootstrap_mean(by_prompt, num_resamples=_NUM_RESAMPLES, seed=seed)
    length = [hit for hits in by_length.values() for hit in hits]
    longer = sum(length) / len(length)
    return {**asdict(interval), "length_only": max(longer, 1 - longer)}


def _hit(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0


def _calibration(rows: Sequence[Row], temperature: float) -> dict[str, Any]:
    probabilities = calibration.probabilities([row[1] for row in rows], temperature)
    targets = [row[2] for row in rows]
    # Pairs are stored with the better first; a probability has to be judged from both sides.
    both = [*probabilities, *(1 - p for p in probabilities)]
    both_targets = [*targets, *(1 - t for t in targets)]
    bins = calibration.reliability_bins(both, both_targets, num_bins=_NUM_BINS)
    return {
        "bins": [asdict(entry) for entry in bins],
        "ece": calibration.expected_calibration_error(both, both_targets, num_bins=_NUM_BINS),
        "brier": calibration.brier_score(both, both_targets),
    }


def length_slope(
    prompts: Sequence[RankedPrompt],
    rewards: dict[str, list[float]],
    lengths: dict[str, list[int]],
) -> float:
    """Reward per token of response length as sampled, within prompts, by least squares.

    The policy stage takes it off the reward, so that length earns nothing by itself.
    """
    products = squares = 0.0
    for prompt in prompts:
        tokens, values = lengths[prompt.prompt_id], rewards[prompt.prompt_id]
        mean_length, mean_value = sum(tokens) / len(tokens), sum(values) / len(values)
        for length, value in zip(tokens, values, strict=True):
            products += (length - mean_length) * (value - mean_value)
            squares += (length - mean_length) ** 2
    return products / squares if squares > 0 else 0.0


def _check_accuracy(quality: dict[str, Any], min_accuracy: float) -> None:
    accuracy = quality["accuracy"]
    if accuracy["estimate"] < min_accuracy:
        raise TrainingError(
            f"the preference model's held-out accuracy is {accuracy['estimate']:.3f} "
            f"[{accuracy['ci_low']:.3f}, {accuracy['ci_high']:.3f}] over {quality['num_pairs']} "
            f"pairs, below preference_model.min_accuracy {min_accuracy}: a policy trained on it "
            "would follow noise. More prompts, another learning rate, or better rankings help."
        )
