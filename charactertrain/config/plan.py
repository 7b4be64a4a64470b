"""Section of a plan: the GPUs that a run is sized for, and what is assumed of them and of texts."""

from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from charactertrain.config.run import problem_lines
from charactertrain.config.section import PositiveFloat, PositiveInt, Section
from charactertrain.exceptions import ConfigError

Share = Annotated[float, Field(gt=0, le=1)]
Shares = tuple[Share, Share]
"""The least and the most that is expected of a device's rate."""
Rates = tuple[PositiveFloat, PositiveFloat]
"""The least and the most."""


class GpuSection(Section):
    """A kind of GPU, by its data sheet."""

    name: str
    bf16_tflops: PositiveFloat
    """Of dense matrix products, in 10^12 operations a second."""
    memory_gb_per_second: PositiveFloat
    memory_gib: PositiveFloat
    """That a program finds."""
    link_gb_per_second: PositiveFloat
    """To another GPU of its node, one way."""


class PlanSection(Section):
    """What `charactertrain plan` assumes. None of it is part of a run."""

    gpu: GpuSection
    num_gpus: PositiveInt | None
    """That the plan divides between sampling and training; None: as the run's settings have it."""
    gpus_per_node: PositiveInt
    network_gb_per_second: PositiveFloat
    """Of one GPU to those of other nodes, one way."""
    storage_gb_per_second: Rates
    """At which a checkpoint of all workers is written."""
    decode_share: Shares
    """Of the roofline that an engine reaches while it writes."""
    prefill_share: Shares
    """While it reads."""
    train_share: Shares
    """Of the peak that training reaches."""
    network_share: Shares
    """Of a link's rate that the collectives of training reach."""
    update_share: Shares
    """Of a link's rate that weights on their way to engines reach."""
    start_seconds: Rates
    """For engines or workers to start."""
    engine_reserve_gib: Annotated[float, Field(ge=0)]
    """Of each GPU, beside weights and KV cache."""
    trainer_reserve_gib: Annotated[float, Field(ge=0)]
    """Of each GPU, for libraries and fragmentation."""
    reply_tokens: PositiveFloat
    """Of a reply that nothing cuts short, on average."""
    message_tokens: PositiveFloat
    """Of a user's message that a chat model writes and nothing cuts short, on average."""
    characters_per_token: PositiveFloat
    template_tokens: Annotated[float, Field(ge=0)]
    """That the chat template adds to a conversation."""
    accepted_share: Annotated[float, Field(gt=0, le=1)]
    """Of the messages that the model writes, those that pass the filters."""
    stored_bytes_per_token: PositiveFloat
    """Of a response: text, ids and log-probabilities, compressed."""
    price_per_gpu_hour: PositiveFloat | None
    """In any currency."""
    rates: str | None
    """Measured rates: a finished run's directory, or a YAML or JSON file of them; None: the
    rooflines."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, value in self:
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ValueError(f"{name} is {list(value)}; give the least first")
        return self


class RatesFile(Section):
    """Rates that were measured, for one GPU (or one engine and one worker on CPUs)."""

    parameters: PositiveInt
    """Of the model that they were measured with."""
    write_tokens_per_second: Rates | None
    """Of an engine."""
    read_tokens_per_second: Rates | None
    """Of an engine: tokens that its cache did not hold."""
    train_tokens_per_second: Rates | None
    """Of a training worker, forward and backward."""


def validate_plan(values: Any) -> PlanSection:
    """The section; raises ConfigError with a line for each problem, by its key."""
    try:
        return PlanSection.model_validate(values)
    except ValidationError as error:
        lines = [f"plan.{line}" for line in problem_lines(error)]
        raise ConfigError("the plan is not valid:\n  " + "\n  ".join(lines)) from None


def validate_rates(values: Any, source: str) -> RatesFile:
    """What a file of rates holds; raises ConfigError with a line for each problem."""
    try:
        return RatesFile.model_validate(values)
    except ValidationError as error:
        lines = problem_lines(error)
        raise ConfigError(f"plan.rates, {source}:\n  " + "\n  ".join(lines)) from None
