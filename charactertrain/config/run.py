"""The whole config of a run, and the checks of its sections against one another."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from charactertrain.config.control import (
    Control,
    control_of,
    neutral_problems,
    placebo_problems,
)
from charactertrain.config.data import (
    ModelSection,
    PairsSection,
    PromptsSection,
    RankingsSection,
    ResponsesSection,
    SamplerSection,
)
from charactertrain.config.devices import device_problems, optimises_policy
from charactertrain.config.evaluation import EvaluationSection
from charactertrain.config.objective import KINDS
from charactertrain.config.section import Count, NodeGroup, PositiveFloat, PositiveInt, Section
from charactertrain.config.training import PolicySection, PreferenceModelSection
from charactertrain.exceptions import ConfigError

MAX_LIST = 10
"""Responses of a prompt that `objectives.preference.plackett_luce_loss` takes."""


class RunSection(Section):
    """What this invocation does; none of it is identity."""

    dir: Annotated[str, Field(min_length=1)]
    """Run directory: a local path or a URI that pyarrow opens."""
    only: str | None
    """Run this stage alone."""
    until: str | None
    """Run this stage and those that it is made of."""
    dry: bool
    """Print the plan and stop."""
    share: str | None
    """A directory on a local or shared disk in which runs have artifacts in common: one that
    another run made, or is making, of the same settings and inputs is not made again."""


class ClusterSection(Section):
    """Where Ray runs; none of it is identity."""

    address: Literal["local", "auto"]
    """`local` starts Ray on this machine; `auto` joins the cluster this process is part of."""
    num_cpus: PositiveInt | None
    """Logical CPUs of a local cluster; None: the cores, or more where the stages need them."""
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt]
    """Training workers; or the fewest and the most, as the cluster has room."""
    cpus_per_worker: PositiveFloat
    gpus_per_worker: Annotated[float, Field(ge=0)]
    node_group: NodeGroup | None
    """Nodes that training workers run on; None for any."""
    max_failures: Count
    """Times a training run is restarted from its last checkpoint."""


class LoggingSection(Section):
    """Where metrics go besides the console, the run directory and Ray; none of it is identity."""

    wandb: Literal["off", "offline", "online"]
    project: Annotated[str, Field(min_length=1)]
    group: Annotated[str, Field(min_length=1, max_length=128)] | None
    """What runs belong to that are looked at together; None: the sweep, or else constitution and
    model, which a run has in common with its controls."""
    upload: tuple[str, ...]
    """Stages whose files wandb is sent; of the others it is told names, checksums and places."""


class RunConfig(Section):
    """Everything one run is made from."""

    run: RunSection
    seed: Count
    constitution: str
    """A name shipped in constitutions/, or a path."""
    ablate: tuple[str, ...]
    """Traits whose prompts and comparisons no training sees; the evaluation measures them too."""
    model: ModelSection
    sampler: SamplerSection
    cluster: ClusterSection
    prompts: PromptsSection
    responses: ResponsesSection
    rankings: RankingsSection
    pairs: PairsSection
    preference_model: PreferenceModelSection
    policy: PolicySection
    evaluation: EvaluationSection
    logging: LoggingSection

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [
            *_sequence_problems(self),
            *_list_problems(self),
            *_general_problems(self),
            *_policy_problems(self),
            *_sampler_problems(self),
            *_language_problems(self),
            *_directory_problems(self),
            *device_problems(self),
            *_control_problems(self),
            *_logging_problems(self),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @property
    def control(self) -> Control | None:
        """Which control this run is; None for one that is to take on the traits."""
        return control_of(self.model, self.preference_model)


def _sequence_problems(config: RunConfig) -> list[str]:
    lengths = {
        "prompts.max_tokens": config.prompts.max_tokens,
        "responses.max_tokens": config.responses.max_tokens,
        "policy.max_tokens": config.policy.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
        "evaluation.probes.max_tokens": config.evaluation.probes.max_tokens,
    }
    if config.evaluation.length_prompts:
        lengths["evaluation.length_max_tokens"] = config.evaluation.length_max_tokens
    if config.evaluation.preferences.pairs_per_trait:
        lengths["evaluation.preferences.max_tokens"] = config.evaluation.preferences.max_tokens
    context = config.model.context_tokens
    return [
        f"{key} is {tokens} tokens and leaves no room for a prompt in model.context_tokens "
        f"{context}; lower the one or raise the other"
        for key, tokens in lengths.items()
        if tokens >= context
    ]


def _list_problems(config: RunConfig) -> list[str]:
    longest = config.responses.per_prompt
    if config.preference_model.objective != "plackett_luce" or longest <= MAX_LIST:
        return []
    return [
        f"preference_model.objective plackett_luce sums over all subsets of a prompt's responses, "
        f"of which responses.per_prompt asks for {longest}; give {MAX_LIST} at most, or objective "
        "bradley_terry"
    ]


def _general_problems(config: RunConfig) -> list[str]:
    if config.preference_model.general_share == 0 or config.pairs.file is not None:
        return []
    return [
        f"preference_model.general_share is {config.preference_model.general_share}, and general "
        "comparisons come from pairs.file alone, which is null; name a file, or give 0"
    ]


def _policy_problems(config: RunConfig) -> list[str]:
    problems = []
    engines, (_, most) = config.policy.resources.engines, config.sampler.resources.num_engines
    if engines > most:
        problems.append(
            f"policy.resources.engines is {engines}, and sampler.resources.num_engines allows "
            f"{most}; raise the one or lower the other"
        )
    share, written = config.policy.general_share, config.prompts.kind_shares.get("general", 0)
    if share > 0 and written == 0 and config.prompts.file is None:
        problems.append(
            f"policy.general_share is {share}, and no general prompts are written: give "
            "prompts.kinds.general a weight, or general_share 0"
        )
    return problems


def _sampler_problems(config: RunConfig) -> list[str]:
    problems = []
    if config.responses.ending != config.policy.ending:
        problems.append(
            f"responses.ending is {config.responses.ending} and policy.ending is "
            f"{config.policy.ending}: the policy would be trained on responses that end otherwise "
            "than those it was prepared for; give both the same"
        )
    if not optimises_policy(config):
        return problems
    if config.sampler.kind == "fake":
        problems.append(
            "sampler.kind is fake, and the policy stage needs engines that take new weights; use "
            "sampler=vllm, or stop before it with run.until=preference_model"
        )
    return problems


def _language_problems(config: RunConfig) -> list[str]:
    is_shown = config.model.prompt_synthesis == "chat"
    if is_shown or config.prompts.languages == ("en",):
        return []
    return [
        f"prompts.languages is {list(config.prompts.languages)}, and the worked lines of "
        "model.prompt_synthesis=completion are English; use [en], or a model that is asked in chat"
    ]


def _directory_problems(config: RunConfig) -> list[str]:
    return [*_run_directory_problems(config), *_share_problems(config)]


def _share_problems(config: RunConfig) -> list[str]:
    share, directory = config.run.share, config.run.dir
    if share is None:
        return []
    if "://" in share or "://" in directory:
        return [
            f"run.share is {share!r} and run.dir is {directory!r}: artifacts are shared between "
            "directories of one file system or of mounted ones, by an operation that is not to be "
            "had for URIs; give paths for both, or run.share=null"
        ]
    if config.cluster.address != "local" and not share.startswith("/"):
        return [
            f"run.share {share!r} is relative, and on a cluster it would resolve inside each "
            "job's own working directory; give an absolute path that all nodes share"
        ]
    return []


def _run_directory_problems(config: RunConfig) -> list[str]:
    directory = config.run.dir
    if config.cluster.address == "local" or directory.startswith("/"):
        return []
    if "://" in directory:
        return [
            f"run.dir is a URI ({directory.split(':')[0]}://...), and engines and workers on "
            "other nodes need the models in it as files; give an absolute path on storage that "
            "all nodes share"
        ]
    return [
        f"run.dir {directory!r} is relative, and on a cluster it would resolve inside each "
        "job's own working directory; give an absolute path that all nodes share"
    ]


def _control_problems(config: RunConfig) -> list[str]:
    problems = neutral_problems(config.model, config.responses, config.rankings)
    # Up to the preference model a placebo has nothing that could teach a policy.
    if optimises_policy(config):
        problems += placebo_problems(config.model, config.preference_model, config.policy)
    return problems


def _logging_problems(config: RunConfig) -> list[str]:
    logging = config.logging
    if not logging.upload:
        return []
    if logging.wandb == "off":
        return [
            f"logging.upload is {list(logging.upload)}, and logging.wandb is off: nothing is sent; "
            "give [], or wandb offline or online"
        ]
    if "://" in config.run.dir:
        return [
            f"logging.upload is {list(logging.upload)}, and run.dir is a URI "
            f"({config.run.dir.split(':')[0]}://...): wandb sends files that are on this machine; "
            "give [], which tells it where they are"
        ]
    return []


def validate(values: Mapping[str, Any]) -> RunConfig:
    """The config as a frozen object; raises ConfigError that lists every problem by its key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            "the configuration is not valid:\n  " + "\n  ".join(problem_lines(error))
        ) from None


def problem_lines(error: ValidationError) -> list[str]:
    """A line for each problem, by its key."""
    lines = []
    for problem in error.errors():
        # Where a section is one of several kinds, the kind is no key.
        key = ".".join(str(part) for part in problem["loc"] if part not in KINDS)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_not_found":
            key, message = f"{key}.kind", "Field required"
        shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
        lines.append(f"{key}: {message}{shown}" if key else f"{message}{shown}")
    return lines
