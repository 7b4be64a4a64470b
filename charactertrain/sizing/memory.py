"""Bytes that a training worker and an engine hold on their GPU.

P parameters, T trained ones (P, or those of adapters), W workers. In bf16 with fp32 masters, as
`runtime.zero` has DeepSpeed keep them.
"""

from dataclasses import dataclass

from charactertrain.sizing.architecture import Architecture

_BUCKET_PARAMETERS = 500_000_000
"""DeepSpeed 0.19's reduce_bucket_size and allgather_bucket_size."""
_LIVE_PARAMETERS = 1_000_000_000
"""Its stage3_max_live_parameters."""


@dataclass(frozen=True)
class Training:
    """How a model is trained."""

    workers: int
    zero_stage: int
    is_offloaded: bool
    """Optimizer state, and at stage 3 the weights, are in the host's memory."""
    adapter_rank: int | None
    has_reference: bool
    """Whether a frozen model lies beside it."""
    recomputes: bool
    tokens_per_microbatch: int
    """Of the longest row."""
    predicted_tokens: int
    """Of them, those whose logits over the vocabulary are made."""


@dataclass(frozen=True)
class TrainerMemory:
    """Of one worker, in bytes."""

    parameters: float
    gradients: float
    optimizer: float
    """fp32 masters and Adam's two moments."""
    reference: float
    buffers: float
    """What DeepSpeed gathers and reduces at a time."""
    activations: float
    logits: float
    on_host: float
    """Of the above, what is offloaded and takes no room on the GPU."""

    @property
    def total(self) -> float:
        """On the GPU."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.reference
            + self.buffers
            + self.activations
            + self.logits
            - self.on_host
        )


def trainer_memory(architecture: Architecture, training: Training) -> TrainerMemory:
    """The state of mixed-precision Adam, spread by ZeRO, and what a microbatch adds.

    Rajbhandari et al. (2020), section 3.1, https://arxiv.org/abs/1910.02054, with the gradients'
    sum in fp32: weights 2 P, gradients 2 T and their sum 4 T, masters and moments 12 T. Stage 1
    divides the last by W, stage 2 the sum too (gradients pass through a bucket), stage 3 the
    weights and the reference's as well. At stage 0 the fp32 copy is made when the step is taken.
    """
    stage, spread = training.zero_stage, training.workers
    rank = training.adapter_rank
    whole = architecture.parameters
    trained = whole if rank is None else architecture.adapter_parameters(rank)
    frozen = 2.0 * whole / (spread if stage == 3 else 1)
    parameters = frozen + (0 if rank is None else 2.0 * trained)
    gradients = 6.0 * trained if stage < 2 else 4.0 * trained / spread
    optimizer = 12.0 * trained / (spread if stage > 0 else 1)
    reference = frozen if training.has_reference else 0.0
    on_host = 0.0
    if training.is_offloaded:
        on_host = optimizer + gradients + (parameters + reference if stage == 3 else 0.0)
    return TrainerMemory(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        reference=reference,
        buffers=_buffers(whole, trained, stage),
        activations=_activations(architecture, training),
        logits=_logits(architecture, training),
        on_host=on_host,
    )


def _buffers(whole: int, trained: int, stage: int) -> float:
    """Two buckets of 2 bytes a parameter; at stage 3 the weights that are gathered at a time."""
    if stage == 0:
        return 0.0
    buckets = 2 * 2.0 * min(trained, _BUCKET_PARAMETERS)
    return buckets + (2.0 * min(whole, _LIVE_PARAMETERS) if stage == 3 else 0.0)


def _activations(architecture: Architecture, training: Training) -> float:
    """What the backward pass needs of a row of t tokens, in bf16, with fused kernels.

    2 t L (4 D + 2 H d + 2 K d + 3 F): inputs of the two norms and what they make, queries, keys,
    values, attention's output, gate, up and their product. Computed again, they are the inputs
    of the layers, 2 t L D, and one layer's whole.
    """
    a, tokens = architecture, training.tokens_per_microbatch
    layer = 2.0 * tokens * (4 * a.hidden + 2 * a.query_width + 2 * a.kv_width + 3 * a.intermediate)
    if training.recomputes:
        return 2.0 * tokens * a.layers * a.hidden + layer
    return a.layers * layer


def _logits(architecture: Architecture, training: Training) -> float:
    """Logits and their gradient in bf16: 4 n V. `objectives.logprobs` adds chunks of 32 MiB."""
    return 4.0 * training.predicted_tokens * architecture.vocabulary


@dataclass(frozen=True)
class EngineMemory:
    """Of one engine, in bytes, on all of its GPUs."""

    weights: float
    reserve: float
    """Activations of a prefill, graphs, libraries."""
    cache: float
    """KV cache that is left; below 0 the weights do not fit."""
    cache_tokens: float

    def sequences(self, tokens: float) -> float:
        """That fit the cache with so many tokens each."""
        return max(0.0, self.cache_tokens / tokens)


def engine_memory(
    architecture: Architecture, *, allowed_bytes: float, reserve_bytes: float
) -> EngineMemory:
    """What an engine may take, less weights (2 P) and a reserve, is its KV cache.

    Args:
        architecture: Of the model.
        allowed_bytes: Of all of its GPUs, that vLLM may take.
        reserve_bytes: Of all of them.
    """
    weights = 2.0 * architecture.parameters
    cache = allowed_bytes - weights - reserve_bytes
    tokens = max(0.0, cache) / architecture.kv_bytes()
    return EngineMemory(weights, reserve_bytes, cache, tokens)
