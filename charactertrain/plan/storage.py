"""Bytes that a run leaves, by artifact, and those that it needs for a while."""

from dataclasses import dataclass

from charactertrain.config import RunConfig
from charactertrain.config.plan import PlanSection
from charactertrain.config.training import PolicySection, PreferenceModelSection
from charactertrain.plan.lengths import Lengths
from charactertrain.plan.training_work import is_watched, num_gold, of_section, trained_parameters
from charactertrain.plan.work import StageWork
from charactertrain.sizing.architecture import Architecture
from charactertrain.stages.counts import Counts

_ROW_BYTES = 64.0
"""Of a row's ids and numbers, compressed."""


@dataclass(frozen=True)
class Stored:
    """Of one artifact."""

    left: float
    """Bytes of the finished artifact."""
    passing: float
    """The most that is there besides while it is made: checkpoints, weights that may be kept."""


def checkpoint_bytes(
    architecture: Architecture, section: PreferenceModelSection | PolicySection
) -> float:
    """Of all workers: masters and Adam's moments in fp32, 12 T, and the weights in bf16, 2 P."""
    trained = trained_parameters(architecture, section)
    return 12.0 * trained + 2.0 * of_section(architecture, section).parameters


def stored(
    config: RunConfig,
    plan: PlanSection,
    counts: Counts,
    lengths: Lengths,
    work: dict[str, StageWork],
) -> dict[str, float]:
    """Bytes of the rows of the data stages and of the evaluation.

    Texts with token ids and log-probabilities, `stored_bytes_per_token` of them, and what else a
    row has. Responses and replies are stored as they are written; a pair has two texts without
    ids, which are half of that.
    """
    per_token = plan.stored_bytes_per_token
    reply = lengths.reply(config.responses.max_tokens, is_fixed=config.responses.ending == "fixed")
    message = lengths.message * per_token / 2
    texts = counts.responses * (reply * per_token + message + _ROW_BYTES)
    pair = (2 * reply * per_token / 2 + message + _ROW_BYTES) * counts.pairs
    evaluation = work["evaluation"]
    replies = sum(job.requests for job in evaluation.jobs if job.written > 1)
    return {
        "prompts": (counts.wanted + counts.general) * (message + 2 * _ROW_BYTES),
        "responses": texts,
        "rankings": counts.answered * counts.pairs_per_prompt * _ROW_BYTES,
        "pairs": pair,
        "evaluation": evaluation.tokens_written * per_token + replies * (message + _ROW_BYTES),
    }


def models_stored(config: RunConfig, architecture: Architecture) -> dict[str, Stored]:
    """Bytes of the models: each 2 a parameter, and its checkpoints while it is trained.

    One checkpoint is kept, and the next is written before it goes.
    """
    model = 2.0 * architecture.parameters
    members = config.preference_model.ensemble + num_gold(config)
    warm = int(config.policy.warm_start.epochs > 0)
    # The best so far, and the one that the last checkpoint calls the best.
    best = 2 * model if is_watched(config) else 0.0
    return {
        "preference_model": Stored(
            members * 2.0 * of_section(architecture, config.preference_model).parameters,
            2 * checkpoint_bytes(architecture, config.preference_model),
        ),
        "policy": Stored(
            (1 + warm) * model, 2 * checkpoint_bytes(architecture, config.policy) + best
        ),
    }
