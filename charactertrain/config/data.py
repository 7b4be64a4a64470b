"""Sections of the model, the engines and the data stages."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from charactertrain.config.section import (
    Count,
    Fraction,
    NodeGroup,
    PositiveFloat,
    PositiveInt,
    Section,
)
from charactertrain.languages import LANGUAGES
from charactertrain.records import PromptKind

Range = tuple[PositiveInt, PositiveInt]

MAX_CHECK_PROMPTS = 16
"""As many as `templates.CHECK_MESSAGES` holds."""
MAX_CANDIDATES = 26
"""As many as `templates.LIST_CHOICES`."""
MAX_QUESTIONS = 3
"""As many as `templates.NUM_QUESTIONS`."""


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
    traits_shown: Literal["all", "at_stake", "none"]
    """The whole character, or only the trait that the prompt is about; `none` is the neutral
    control, in which nothing of it bears on responses and rankings."""
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
    node_group: NodeGroup | None
    """Nodes that engines run on; None for any."""


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

    per_prompt: Annotated[int, Field(ge=2, le=MAX_CANDIDATES)]
    """Candidates per prompt."""
    variants: dict[Literal["none", "mild", "strong"], Count]
    """How the character is shown when they are written: each variant's parts of `per_prompt`."""
    temperature: PositiveFloat
    max_tokens: PositiveInt
    ending: Literal["natural", "fixed"]
    """`natural`: a response cut at max_tokens is a reject. `fixed`: all have max_tokens tokens."""
    max_repetition: Fraction
    """Share of repeated 4-grams above which a candidate is a loop."""
    max_reject_share: Fraction
    """Above this share of a trait's candidates the stage stops."""

    @property
    def num_by_variant(self) -> dict[str, int]:
        """Candidates per prompt of each variant; they add up to `per_prompt`."""
        parts = sum(self.variants.values())
        return {name: self.per_prompt * own // parts for name, own in self.variants.items()}

    @model_validator(mode="after")
    def _in_whole_candidates(self) -> Self:
        parts = sum(self.variants.values())
        if parts == 0 or self.per_prompt % parts:
            raise ValueError(
                f"per_prompt is {self.per_prompt} and variants have {parts} parts; give as many "
                "candidates as parts, or a multiple of them"
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

    @model_validator(mode="after")
    def _no_key_in_it(self) -> Self:
        url = urlsplit(self.base_url)
        is_plain = url.scheme in ("http", "https") and url.hostname and "@" not in url.netloc
        if not is_plain or url.query or url.fragment:
            # Not shown: what is wrong in it may be a key.
            raise ValueError(
                "base_url must be http://host/... or https://host/..., without a name, key, query "
                "or fragment in it; a key belongs in the variable that api_key_variable names"
            )
        return self


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
    """Pairs with soft labels from rankings, and comparisons of the researcher's own."""

    min_probability: Annotated[float, Field(ge=0.5, lt=1)]
    """Pairs of a ranking that are less certain than this are left out, and counted."""
    file: str | None
    """Comparisons of the researcher's own: a parquet or JSONL file, or a `datasets` directory."""
    file_use: Literal["join", "replace"]
    """Whether there are pairs of rankings beside those of `file`."""
    validation_share: Annotated[float, Field(ge=0, lt=1)]
    """Share of the families of `file` that measure the preference model, where no row says."""
    reviews: str | None
    """What people said of the rankings: a `reviews` directory of the review page, or its export."""

    @model_validator(mode="after")
    def _replacement(self) -> Self:
        if self.file is None and self.file_use == "replace":
            raise ValueError("file_use is replace and file is null; name the file of pairs")
        return self

    @model_validator(mode="after")
    def _something_to_review(self) -> Self:
        if self.reviews is not None and self.file_use == "replace":
            raise ValueError(
                "reviews are of rankings, whose pairs file_use=replace leaves out; give "
                "reviews=null, or file_use=join"
            )
        return self
