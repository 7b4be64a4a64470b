"""Where judgements come from: the model itself, another one, or an endpoint."""

from typing import Protocol

from charactertrain.config.data import EndpointSection
from charactertrain.runtime.sampling import SamplerSource
from charactertrain.stages.context import Context


class JudgeSettings(Protocol):
    """The settings of a stage that has a judge."""

    @property
    def judge_model(self) -> str | None:
        """Directory or hub id of another model."""

    @property
    def endpoint(self) -> EndpointSection | None:
        """An endpoint instead."""


def judge_name(context: Context, settings: JudgeSettings) -> str:
    """The judge in words."""
    if settings.endpoint is not None:
        return f"{settings.endpoint.model} at an endpoint"
    return settings.judge_model or f"{context.config.model.name} itself"


def judge_source(context: Context, settings: JudgeSettings) -> SamplerSource:
    """A sampler that writes and scores with the base and judges with the judge."""
    model = str(context.model_directory)
    own = context.session.sampler(model, model)
    if settings.endpoint is not None:
        from charactertrain.runtime.endpoint_sampler import EndpointSpec
        from charactertrain.runtime.judge import JudgedSource

        return JudgedSource(own, EndpointSpec(**settings.endpoint.model_dump()))
    if settings.judge_model is not None:
        from charactertrain.models import sources
        from charactertrain.runtime.judge import JudgedSource

        judge = str(sources.resolve(settings.judge_model))
        return JudgedSource(own, context.session.sampler(judge, judge))
    return own
