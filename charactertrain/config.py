"""Types, units and ranges of every setting. Values live in conf/; nothing here has a default.

Each stage's section holds what decides its result (its identity), under `resources` where and how
it runs, and gates that stop it: neither of these is identity.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from charactertrain.exceptions import ConfigError
from charactertrain.languages import LANGUAGES
from charactertrain.records import PromptKind

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Range = tuple[PositiveInt, PositiveInt]

MAX_CHECK_PROMPTS = 16
"""As many as `templates.CHECK_MESSAGES` holds."""
MAX_CANDIDATES = 26
"""As many as `templates.LIST_CHOICES`."""
MAX_QUESTIONS = 3
"""As many as `templates.NUM_QUESTIONS`."""

_GATES = {
    "max_reject_share",
    "min_accepted_share",
    "min_accuracy",
    "min_trait_shift",
    "sync_tolerance",
}
"""Settings that stop a stage and change no row of what it makes."""

_EXECUTION = {
    "resources",
    "deepspeed",
    # An endpoint's model decides; where and how it is asked does not.
    "base_url",
    "api_key_variable",
    "max_in_flight",
    "timeout_seconds",
    "max_retries",
    # By their contents, where a stage is defined.
    "file",
    "judge_model",
}
"""Settings that say where and how, and not what."""


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class RunSection(Section):
    """What this invocation does; none of it is identity."""

    dir: str
    """Run directory: a local path or a URI that pyarrow opens."""
    only: str | None
    """Run this stage alone."""
    until: str | None
    """Run up to and including this stage."""
    dry: bool
    """Print the plan and stop."""


class ModelSection(Section):
    """The chat model whose character is trained, and how it wants to be asked."""

    name: str
    path: str
    """`embedded:<name>`, `tiny_random`, a local directory, or a hub id."""
    precision: Literal["auto", "bf16", "fp32"]
    """`auto`: bf16 where the hardware computes in it, fp32 elsewhere."""
    context_tokens: PositiveInt
    """Longest prompt and response together."""
    trait_placement: Literal["system", "user_turn"]
    """Where the character is shown. Small models ignore the system prompt."""
    traits_shown: Literal["all", "at_stake"]
    """The whole character, or only the trait that the prompt is about."""
    prompt_synthesis: Literal["chat", "completion"]
    """Asked in chat, or as a completion after worked lines (small models)."""
    messages_per_call: Annotated[int, Field(ge=1, le=20)]
    """Messages that one call asks for; 1 for a completion."""

    @model_validator(mode="after")
    def _one_line(self) -> Self:
        if self.prompt_synthesis == "completion" and self.messages_per_call != 1:
            raise ValueError(
                f"messages_per_call is {self.messages_per_call}, and a completion writes one; "
                "give 1, or prompt_synthesis=chat"
            )
        return self


class SamplerResources(Section):
    """How engines run."""

    num_engines: Range
    """Fewest and most engines of the autoscaling pool."""
    tensor_parallel_size: PositiveInt
    max_num_seqs: PositiveInt
    """Sequences that one engine runs at a time."""
    memory_fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of an accelerator's memory that an engine may take."""
    kv_cache_gib: PositiveFloat
    """KV cache of an engine that runs on CPU, in GiB."""
    eager: bool
    """Skip compilation: a quicker start, slower tokens."""
    rows_per_chunk: PositiveInt
    """Rows that are sampled, written and resumed as one."""
    cpus_per_engine: PositiveFloat
    gpus_per_engine: Annotated[float, Field(ge=0)]


class LatencySection(Section):
    """How long the fake sampler takes, to simulate engines at scale."""

    prefill_tokens_per_second: PositiveFloat
    """Prompt tokens that an engine reads in a second."""
    seconds_per_step: PositiveFloat
    """One decoding step of a single sequence."""
    seconds_per_sequence: Annotated[float, Field(ge=0)]
    """What every further sequence adds to a step."""


class SamplerSection(Section):
    """Who writes and scores text."""

    kind: Literal["vllm", "fake"]
    latency: LatencySection | None
    """Of the fake sampler; None answers at once."""
    resources: SamplerResources

    @model_validator(mode="after")
    def _only_simulated(self) -> Self:
        if self.kind == "vllm" and self.latency is not None:
            raise ValueError("latency is the fake sampler's, and kind is vllm; give latency=null")
        return self


class ClusterSection(Section):
    """Where Ray runs; none of it is identity."""

    address: Literal["local", "auto"]
    """`local` starts Ray on this machine; `auto` joins the cluster this process is part of."""
    num_cpus: PositiveInt | None
    """Logical CPUs of a local cluster; None counts the cores."""
    num_workers: PositiveInt
    """Training workers."""
    cpus_per_worker: PositiveFloat
    gpus_per_worker: Annotated[float, Field(ge=0)]
    max_failures: Count
    """Times a training run is restarted from its last checkpoint."""


class PromptsSection(Section):
    """Synthesis of the messages for which a trait matters."""

    per_trait: PositiveInt
    """Messages wanted for each trait, over all kinds, after the filters."""
    kinds: dict[PromptKind, Annotated[float, Field(ge=0)]]
    """Weight of each kind of message, relative to the others; 0 leaves a kind out."""
    facets_per_trait: Annotated[int, Field(ge=3, le=64)]
    """Situations that are looked for where the trait file names none."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes, used in turn."""
    max_top_ups: Count
    """Rounds that ask for more where the filters left too few."""
    file: str | None
    """Prompts of the researcher's own: a parquet or JSONL file, or a `datasets` directory."""
    file_use: Literal["join", "replace"]
    """Whether the model writes prompts beside those of `file`."""
    validation_share: Fraction
    """Share of scenario families that measure the preference model."""
    test_share: Fraction
    """Share of scenario families that measure the policy."""
    temperature: PositiveFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    max_tokens: PositiveInt
    min_words: PositiveInt
    max_words: PositiveInt
    max_similarity: Annotated[float, Field(gt=0, le=1)]
    """Jaccard similarity of word sets above which a message is a near-duplicate."""
    min_accepted_share: Fraction
    """Below this share of a trait's messages the stage stops and says why."""
    min_trait_shift: float
    """Template check: least rise of the contrast, in nats per token, when the trait is shown."""
    check_prompts: Annotated[int, Field(gt=0, le=MAX_CHECK_PROMPTS)]
    """Messages per trait in the template check and the ranker check."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must leave a share for training")
        if self.min_words > self.max_words:
            raise ValueError(f"min_words {self.min_words} exceeds max_words {self.max_words}")
        return self

    @property
    def kind_shares(self) -> dict[PromptKind, float]:
        """Share of each kind that is wanted; they add up to 1."""
        total = sum(self.kinds.values())
        return {kind: weight / total for kind, weight in self.kinds.items() if weight > 0}

    @model_validator(mode="after")
    def _kinds(self) -> Self:
        if not self.kinds.get("trait"):
            raise ValueError("kinds: the weight of kind trait must be above 0")
        return self

    @model_validator(mode="after")
    def _languages_known(self) -> Self:
        unknown = [code for code in self.languages if code not in LANGUAGES]
        if unknown or len(set(self.languages)) < len(self.languages):
            raise ValueError(
                f"languages {list(self.languages)}: expected different ISO 639-1 codes out of "
                f"{', '.join(LANGUAGES)}"
            )
        return self

    @model_validator(mode="after")
    def _replacement(self) -> Self:
        if self.file is None and self.file_use == "replace":
            raise ValueError("file_use is replace and file is null; name the file of prompts")
        return self


class ResponsesSection(Section):
    """Candidates per prompt, and when a candidate is a reject."""

    variants: dict[Literal["none", "mild", "strong"], Count]
    """Candidates per prompt by variant: how the character is shown when they are written."""
    temperature: PositiveFloat
    max_tokens: PositiveInt
    ending: Literal["natural", "fixed"]
    """`natural`: a response cut at max_tokens is a reject. `fixed`: all have max_tokens tokens."""
    max_repetition: Fraction
    """Share of repeated 4-grams above which a candidate is a loop."""
    max_reject_share: Fraction
    """Above this share of a trait's candidates the stage stops."""

    @property
    def per_prompt(self) -> int:
        """Candidates per prompt."""
        return sum(self.variants.values())

    @model_validator(mode="after")
    def _at_least_two(self) -> Self:
        if self.per_prompt < 2:
            raise ValueError(f"variants give {self.per_prompt} candidates; a ranking needs 2")
        if self.per_prompt > MAX_CANDIDATES:
            raise ValueError(
                f"variants give {self.per_prompt} candidates; a judge has {MAX_CANDIDATES} letters"
            )
        return self


RankerName = Literal["judge", "judge_listwise", "contrast", "rating"]


class EndpointSection(Section):
    """A judge behind an OpenAI-compatible chat endpoint."""

    base_url: str
    model: str
    """The name that the endpoint knows it by."""
    api_key_variable: str | None
    """Environment variable that holds the key, on every node; None for a server without keys."""
    max_in_flight: Annotated[int, Field(gt=0, le=1000)]
    """Requests at a time, of one worker."""
    timeout_seconds: PositiveFloat
    max_retries: Count


class RankingsSection(Section):
    """The model ranks its own responses."""

    ranker: Literal["auto", "ensemble", RankerName]
    orders: Literal["both", "random"]
    """Judge: each pair in both orders, or in a random one at half the cost."""
    ties: bool
    """Judge: a third letter says that neither response fits better."""
    num_permutations: PositiveInt
    """Judge of lists: random orders per prompt."""
    num_questions: Annotated[int, Field(ge=1, le=MAX_QUESTIONS)]
    """Wordings of the question, of every ranker but the contrast, averaged."""
    contrast_temperature: PositiveFloat
    """Nats per token of difference that make a preference of sigmoid(1) = 0.73."""
    ensemble: tuple[RankerName, ...]
    """Rankers whose probabilities ranker=ensemble averages."""
    judge_model: str | None
    """Another model as the judge: a directory or hub id. None: the model judges itself."""
    endpoint: EndpointSection | None
    """A judge behind an endpoint instead."""
    second_opinions: tuple[RankerName, ...]
    """Rankers whose agreement with the chosen one is measured."""
    second_opinion_prompts: Count
    """Prompts on which it is."""
    utility_prior: PositiveFloat
    """Precision of the Gaussian prior on Bradley-Terry utilities."""
    min_accuracy: Fraction
    """Ranker check: least accuracy on pairs whose truth is known."""
    min_judge_accuracy: Fraction
    """`auto` takes a judge whose accuracy is this, at the lower end of its 95 % interval."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.judge_model is not None and self.endpoint is not None:
            raise ValueError("judge_model and endpoint are both given; give one judge")
        if self.ranker == "contrast" and (self.judge_model or self.endpoint):
            raise ValueError(
                "ranker is contrast, which asks no judge; leave out judge_model and endpoint"
            )
        if self.ranker == "ensemble" and len(set(self.ensemble)) < 2:
            raise ValueError(f"ensemble is {list(self.ensemble)}; give two rankers or more")
        return self

    @model_validator(mode="after")
    def _judge_passes(self) -> Self:
        if self.ranker == "auto" and self.min_judge_accuracy < self.min_accuracy:
            raise ValueError(
                f"min_judge_accuracy {self.min_judge_accuracy} is below min_accuracy "
                f"{self.min_accuracy}: ranker=auto would take a judge that is then refused"
            )
        return self


class PairsSection(Section):
    """Pairs with soft labels from rankings."""

    min_probability: Annotated[float, Field(ge=0.5, lt=1)]
    """Pairs less certain than this are left out, and counted."""


class TrainingResources(Section):
    """How a training stage runs; none of it decides what is learnt."""

    microbatch_size: PositiveInt
    """Prompts (with all their responses) that one worker runs at a time."""
    checkpoint_every: PositiveInt
    """Steps between checkpoints."""


class DeepSpeedSection(Section):
    """ZeRO: how the training state is spread; the result does not depend on it."""

    stage: Literal[0, 1, 2, 3]
    offload: bool
    """Keep optimizer state (and, at stage 3, parameters) in host memory."""


class PreferenceModelSection(Section):
    """The scalar model that learns the rankings."""

    epochs: PositiveInt
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat
    warmup_share: Fraction
    """Share of steps over which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    centering: Annotated[float, Field(ge=0)]
    """Weight of the squared-reward penalty that keeps rewards near zero."""
    min_accuracy: Fraction
    """Held-out accuracy below which the policy stage is not worth its cost: the run stops."""
    deepspeed: DeepSpeedSection
    resources: TrainingResources


class WarmStartSection(Section):
    """A supervised pass over the top-ranked responses, the trait not shown."""

    epochs: Count
    """0 leaves the warm start out."""
    prompts_per_step: PositiveInt
    learning_rate: PositiveFloat


class ObjectiveSection(Section):
    """The policy objective."""

    name: Literal["grpo", "centered", "rloo"]
    """How advantages are made from a group's rewards."""
    clip_low: Annotated[float, Field(gt=0, lt=1)]
    clip_high: PositiveFloat
    kl_coef: Annotated[float, Field(ge=0)]
    """Weight of the per-token KL to the reference, in units of advantage per nat."""
    without_kl: bool
    """Must be true for kl_coef 0: an unanchored policy is asked for by name."""

    @model_validator(mode="after")
    def _anchored(self) -> Self:
        if (self.kl_coef == 0) != self.without_kl:
            raise ValueError(
                f"kl_coef is {self.kl_coef} and without_kl is {self.without_kl}: a policy with "
                "no KL to the reference drifts into hacks of its reward; ask for it by setting "
                "both kl_coef=0 and without_kl=true"
            )
        return self


class PolicySection(Section):
    """Optimisation of the policy against the preference model."""

    warm_start: WarmStartSection
    objective: ObjectiveSection
    num_steps: PositiveInt
    prompts_per_step: PositiveInt
    group_size: Annotated[int, Field(ge=2)]
    """Responses per prompt."""
    max_tokens: PositiveInt
    ending: Literal["natural", "fixed"]
    learning_rate: PositiveFloat
    warmup_steps: Count
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: PositiveFloat
    sync_tolerance: PositiveFloat
    """Largest mean difference between the sampler's and the trainer's probe logprobs, in nats."""
    deepspeed: DeepSpeedSection
    resources: TrainingResources


class EvaluationSection(Section):
    """Base against policy on held-out prompts."""

    responses_per_prompt: PositiveInt
    max_tokens: PositiveInt
    length_prompts: Count
    """Prompts on which the natural length is measured, without the limit above; 0 for none."""
    length_max_tokens: PositiveInt
    num_resamples: Annotated[int, Field(ge=100)]
    """Of the cluster bootstrap."""

    @model_validator(mode="after")
    def _interval(self) -> Self:
        if self.length_prompts == 1:
            raise ValueError("length_prompts is 1, and an interval needs 2; give 0 to leave it out")
        return self


class LoggingSection(Section):
    """Where metrics go besides the console and the run directory."""

    wandb: Literal["off", "offline", "online"]
    project: str


class RunConfig(Section):
    """Everything one run is made from."""

    run: RunSection
    seed: Count
    constitution: str
    """A name shipped in constitutions/, or a path."""
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
            *_batch_problems(self),
            *_sampler_problems(self),
            *_language_problems(self),
            *_directory_problems(self),
            *_device_problems(self),
            *_worker_problems(self),
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self


def _sequence_problems(config: RunConfig) -> list[str]:
    lengths = {
        "prompts.max_tokens": config.prompts.max_tokens,
        "responses.max_tokens": config.responses.max_tokens,
        "policy.max_tokens": config.policy.max_tokens,
        "evaluation.max_tokens": config.evaluation.max_tokens,
    }
    if config.evaluation.length_prompts:
        lengths["evaluation.length_max_tokens"] = config.evaluation.length_max_tokens
    context = config.model.context_tokens
    return [
        f"{key} is {tokens} tokens and leaves no room for a prompt in model.context_tokens "
        f"{context}; lower the one or raise the other"
        for key, tokens in lengths.items()
        if tokens >= context
    ]


def _batch_problems(config: RunConfig) -> list[str]:
    batches = {
        "preference_model": (
            config.preference_model.prompts_per_step,
            config.preference_model.resources.microbatch_size,
        ),
        "policy": (config.policy.prompts_per_step, config.policy.resources.microbatch_size),
        "policy.warm_start": (
            config.policy.warm_start.prompts_per_step,
            config.policy.resources.microbatch_size,
        ),
    }
    workers = config.cluster.num_workers
    return [
        f"{key}.prompts_per_step {prompts} is not a multiple of workers x microbatch_size = "
        f"{workers} x {microbatch}; every worker must get the same number of microbatches"
        for key, (prompts, microbatch) in batches.items()
        if prompts % (workers * microbatch)
    ]


def _sampler_problems(config: RunConfig) -> list[str]:
    problems = []
    if config.responses.ending != config.policy.ending:
        problems.append(
            f"responses.ending is {config.responses.ending} and policy.ending is "
            f"{config.policy.ending}: the policy would be trained on responses that end otherwise "
            "than those it was prepared for; give both the same"
        )
    if not _optimises_policy(config):
        return problems
    if config.sampler.kind == "fake":
        problems.append(
            "sampler.kind is fake, and the policy stage needs engines that take new weights; use "
            "sampler=vllm, or stop before it with run.until=preference_model"
        )
    if config.sampler.resources.tensor_parallel_size > 1:
        problems.append(
            "sampler.resources.tensor_parallel_size is "
            f"{config.sampler.resources.tensor_parallel_size}, and weights are sent to engines of "
            "one GPU; use 1, or stop before the policy with run.until=preference_model"
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


def _optimises_policy(config: RunConfig) -> bool:
    """Whether this invocation may come to the stages that need a policy on engines."""
    chosen = config.run.only or config.run.until
    before = ("traits", "prompts", "responses", "rankings", "pairs", "preference_model")
    return chosen not in before and config.run.only != "report"


def _directory_problems(config: RunConfig) -> list[str]:
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


def _device_problems(config: RunConfig) -> list[str]:
    problems = []
    engines = config.sampler.resources
    if (config.cluster.gpus_per_worker > 0) != (engines.gpus_per_engine > 0):
        problems.append(
            f"cluster.gpus_per_worker is {config.cluster.gpus_per_worker} and sampler.resources."
            f"gpus_per_engine is {engines.gpus_per_engine}: weights go from workers to engines of "
            "the same kind of device; give both GPUs (sampler=vllm_gpu) or neither"
        )
    if engines.gpus_per_engine >= 1 and engines.gpus_per_engine != engines.tensor_parallel_size:
        problems.append(
            f"sampler.resources: gpus_per_engine {engines.gpus_per_engine} and "
            f"tensor_parallel_size {engines.tensor_parallel_size} differ; an engine takes one GPU "
            "per tensor-parallel rank"
        )
    return problems


def _worker_problems(config: RunConfig) -> list[str]:
    problems = []
    fewest, most = config.sampler.resources.num_engines
    if fewest > most:
        problems.append(f"sampler.resources.num_engines is ({fewest}, {most}); give (fewest, most)")
    cluster = config.cluster
    needed = cluster.num_workers * cluster.cpus_per_worker
    if cluster.address == "local" and cluster.num_cpus is not None and needed > cluster.num_cpus:
        problems.append(
            f"cluster: {cluster.num_workers} workers of {cluster.cpus_per_worker} CPUs need "
            f"{needed}, and cluster.num_cpus is {cluster.num_cpus}"
        )
    return problems


def validate(values: Mapping[str, Any]) -> RunConfig:
    """The config as a frozen object; raises ConfigError that lists every problem by its key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            shown = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
            lines.append(f"{key}: {message}{shown}" if key else f"{message}{shown}")
        raise ConfigError("the configuration is not valid:\n  " + "\n  ".join(lines)) from None


def identity(section: Section) -> dict[str, Any]:
    """The part of a section that decides results: not resources, ZeRO settings, or gates."""
    return {
        name: identity(value) if isinstance(value, Section) else value
        for name, value in section
        if name not in _EXECUTION | _GATES
    }
