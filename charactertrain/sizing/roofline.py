"""Seconds that engines and trainers take at the rates of a device: a roofline, not a measurement.

What is computed takes its operations by the peak rate of matrix products, what is read from memory
its bytes by the memory's rate, whichever is longer (Williams et al., 2009,
https://doi.org/10.1145/1498765.1498785). Nothing reaches a roofline: callers divide by the shares
that are expected.
"""

from dataclasses import dataclass

from charactertrain.sizing.architecture import Architecture
from charactertrain.sizing.ranges import Range


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet."""

    operations_per_second: float
    """Of dense bf16 matrix products."""
    memory_bytes_per_second: float
    memory_bytes: float
    link_bytes_per_second: float
    """To another GPU of its node, one way."""
    network_bytes_per_second: float
    """To a GPU of another node, one way."""

    def times(self, count: int) -> "Device":
        """Several that work as one, as the ranks of a tensor-parallel engine do."""
        return Device(
            self.operations_per_second * count,
            self.memory_bytes_per_second * count,
            self.memory_bytes * count,
            self.link_bytes_per_second,
            self.network_bytes_per_second,
        )


def decode_step_seconds(
    architecture: Architecture, device: Device, *, sequences: float, context: float
) -> float:
    """One token for each of so many sequences.

    max( (2 M + n c kv) / memory rate, n f(c) / peak ): every step reads the weights (2 bytes of M
    multiplied parameters) and the KV cache of n sequences of c tokens, kv bytes each; f are the
    operations of a token's forward pass.
    """
    cache = sequences * context * architecture.kv_bytes()
    moved = 2 * architecture.multiplied_parameters + cache
    operations = sequences * architecture.forward_operations(context)
    return max(moved / device.memory_bytes_per_second, operations / device.operations_per_second)


@dataclass(frozen=True)
class Texts:
    """What an engine is to write."""

    count: float
    shown: float
    """Tokens before each text."""
    written: float
    """Tokens of each, on average."""
    longest: float
    """Tokens that one may have."""


def decode_seconds(
    architecture: Architecture, device: Device, texts: Texts, *, most_at_once: float
) -> float:
    """All texts, so many at a time, and the last of them alone.

    (count / n) w step(n) + (longest - w) step(1), with n = min(count, most_at_once) and w tokens a
    text: each step writes a token of n texts; the longest of the last ones runs on by itself.
    """
    if texts.count <= 0 or texts.written <= 0:
        return 0.0
    at_once = min(texts.count, most_at_once)
    context = texts.shown + texts.written / 2
    step = decode_step_seconds(architecture, device, sequences=at_once, context=context)
    tail = decode_step_seconds(
        architecture, device, sequences=1, context=texts.shown + texts.longest
    )
    steps = max(texts.count / at_once, 1) * texts.written
    return steps * step + max(0.0, texts.longest - texts.written) * tail


def prefill_seconds(
    architecture: Architecture,
    device: Device,
    *,
    tokens: float,
    context: float,
    predicted_share: float,
) -> float:
    """Tokens that are read and not found in a cache: tokens f(c) / peak.

    Args:
        architecture: Of the model.
        device: Of the engine.
        tokens: Computed.
        context: Tokens that each attends to, on average.
        predicted_share: Share of them that pass the output layer.
    """
    operations = architecture.forward_operations(context, predicted_share=predicted_share)
    return tokens * operations / device.operations_per_second


@dataclass(frozen=True)
class Passes:
    """How often a training step takes each token through the model, in forward passes."""

    trained: float
    """3: forward, and backward to inputs and weights; 2 where adapters are trained."""
    recomputed: float
    """1 where activations are computed again."""
    frozen: float
    """1 where a reference reads the same tokens."""

    @property
    def total(self) -> float:
        """All of them."""
        return self.trained + self.recomputed + self.frozen


def training_passes(*, has_adapters: bool, recomputes: bool, has_reference: bool) -> Passes:
    """Of a step that learns."""
    return Passes(
        trained=2.0 if has_adapters else 3.0,
        recomputed=float(recomputes),
        frozen=float(has_reference),
    )


@dataclass(frozen=True)
class Step:
    """An optimizer step on groups of texts, of which each is computed by one worker."""

    groups: float
    tokens_per_group: float
    predicted_share: float
    """Share of tokens that pass the output layer."""
    context: float
    passes: Passes


@dataclass(frozen=True)
class Workers:
    """Those that share a step."""

    count: int
    per_node: int
    zero_stage: int
    tokens_per_microbatch: int
    parameters: int
    """Of the model."""
    trained: int
    """Of them, or of the adapters on them, those that have gradients."""

    def busiest_tokens(self, step: Step) -> float:
        """Tokens of the worker with most of them: no group is divided.

        ceil(groups / workers) groups: of 32 groups 64 workers compute no faster than 32.
        """
        return -(-step.groups // self.count) * step.tokens_per_group


def step_operation_seconds(
    architecture: Architecture, device: Device, step: Step, workers: Workers
) -> float:
    """Tokens of the busiest worker, times passes, times the operations of a forward pass."""
    operations = architecture.forward_operations(step.context, predicted_share=step.predicted_share)
    tokens = workers.busiest_tokens(step)
    return tokens * step.passes.total * operations / device.operations_per_second


def step_network_seconds(device: Device, step: Step, workers: Workers) -> float:
    """What workers exchange in a step, over the slower of the links that they use.

    (W - 1) / W of 2 bytes a parameter and exchange (Rajbhandari et al., 2020, section 7,
    https://arxiv.org/abs/1910.02054). In every microbatch: at stage 3 the weights for the forward
    pass, again for the backward one and for the reference, and the gradients; at 1 and 2 the
    gradients; at 0 these twice, to sum and to hand out. At 1 and 2 the weights once a step. Of
    adapters alone there are gradients, and new weights to hand out; stage 3 gathers the others too.
    """
    if workers.count == 1:
        return 0.0
    microbatches = max(1.0, workers.busiest_tokens(step) / workers.tokens_per_microbatch)
    if workers.zero_stage == 3:
        gathered = (2 + step.passes.frozen) * workers.parameters
        exchanged = microbatches * (gathered + workers.trained)
    elif workers.zero_stage == 0:
        exchanged = microbatches * 2 * workers.trained
    else:
        exchanged = (microbatches + 1) * workers.trained
    is_one_node = workers.count <= workers.per_node
    rate = device.link_bytes_per_second if is_one_node else device.network_bytes_per_second
    moved = 2 * exchanged * (workers.count - 1) / workers.count
    return moved / rate


def beside_each_other(computing: Range, moving: Range) -> Range:
    """Computing and exchanging: at best one hides behind the other, at worst neither does."""
    return Range(max(computing.low, moving.low), computing.high + moving.high)
