"""responses: the model answers each prompt several ways, the character shown more or less."""

from collections.abc import Sequence
from functools import partial

from charactertrain.artifacts import Outcome, read_rows
from charactertrain.config import ResponsesSection, RunConfig
from charactertrain.pipeline import Work
from charactertrain.records import Prompt, Reject, Response, Trait
from charactertrain.runtime.chunks import FileSource, Source
from charactertrain.runtime.dataflow import ChunkJob
from charactertrain.runtime.sampling import (
    Failure,
    Sample,
    Sampler,
    SampleRequest,
    SamplerSource,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.context import Context, response_settings, traits_shown
from charactertrain.storage import Directory
from charactertrain.templates import NUM_PHRASINGS, response_conversation
from charactertrain.texts import filters as text_filters
from charactertrain.texts import measures

_LOOP_NGRAM = 4


def run(work: Work, context: Context) -> Outcome:
    """Sample the candidates of every training and validation prompt."""
    directory, manifest = work.inputs["prompts"]
    model = str(context.model_directory)
    job = response_job(
        context.config,
        read_rows(*work.inputs["traits"], "traits", Trait),
        prompts=FileSource(directory, tuple(manifest.table("prompts")), Prompt, whole_files=False),
        sampler=context.session.sampler(model, model),
        target=work.directory,
    )
    produced = context.session.run(job)
    return Outcome(
        files=(*produced.files, *produced.reject_files),
        rejects=produced.rejects,
        summary={"engines": produced.engines},
    )


def response_job(
    config: RunConfig,
    traits: Sequence[Trait],
    *,
    prompts: Source,
    sampler: SamplerSource,
    target: Directory,
) -> ChunkJob:
    """The stage's pass over the prompts."""
    return ChunkJob(
        name="responses",
        source=prompts,
        target=target,
        table="responses",
        result_type=Response,
        make_processor=partial(
            ResponseWriter,
            traits={trait.trait_id: trait for trait in traits},
            section=config.responses,
            placement=config.model.trait_placement,
            shown=config.model.traits_shown,
            seed=config.seed,
        ),
        sampler=sampler,
        max_reject_share=config.responses.max_reject_share,
        requests_per_row=config.responses.per_prompt,
    )


class ResponseWriter:
    """Samples the candidates of prompts and rejects those that nobody could learn from."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        traits: dict[str, Trait],
        section: ResponsesSection,
        placement: str,
        shown: str,
        seed: int,
    ) -> None:
        """`placement` and `shown`: where and how much of the character the model is shown."""
        self._sampler, self._traits, self._section = sampler, traits, section
        self._placement, self._shown, self._seed = placement, shown, seed
        self._settings = response_settings(
            temperature=section.temperature, max_tokens=section.max_tokens, ending=section.ending
        )

    def process(self, rows: list[Prompt]) -> tuple[list[Response], list[Reject]]:
        """Candidates and rejects for the given prompts; test prompts are left alone."""
        requests, origins = [], []
        for prompt in rows:
            if prompt.split == "test":
                continue
            # A prompt's candidates together: they share most of what the model is shown.
            for variant, count in self._section.num_by_variant.items():
                for index in range(count):
                    phrasing = self._phrasing(prompt, variant, index)
                    response_id = stable_id(prompt.prompt_id, variant, index)
                    requests.append(self._request(prompt, variant, phrasing, response_id))
                    origins.append((prompt, variant, phrasing))
        responses, rejects = [], []
        results = self._sampler.sample(requests, self._settings)
        for origin, request, result in zip(origins, requests, results, strict=True):
            prompt, variant, phrasing = origin
            reason = self._reason(prompt, result)
            if reason is None and isinstance(result, Sample):
                responses.append(_response(prompt, variant, phrasing, result))
            else:
                detail = result.detail if isinstance(result, Failure) else result.text[:200]
                why = ("responses", reason or "", detail)
                rejects.append(Reject(request.request_id, prompt.trait_id, *why))
        return responses, rejects

    def _phrasing(self, prompt: Prompt, variant: str, index: int) -> int:
        """All wordings in turn, from a different one for each prompt."""
        if variant == "none":
            return 0
        first = derive_seed(self._seed, "phrasing", prompt.prompt_id, variant)
        return (first + index) % NUM_PHRASINGS

    def _request(
        self, prompt: Prompt, variant: str, phrasing: int, response_id: str
    ) -> SampleRequest:
        shown = response_conversation(
            prompt.text,
            traits_shown(self._traits, prompt.trait_id, self._shown),
            variant=variant,
            placement=self._placement,
            phrasing=phrasing,
        )
        return SampleRequest(response_id, shown, derive_seed(self._seed, response_id))

    def _reason(self, prompt: Prompt, result: Sample | Failure) -> str | None:
        if isinstance(result, Failure):
            return result.reason
        if result.finish_reason == "length" and self._section.ending == "natural":
            return "truncated"
        repetition = measures.repetition_fraction(result.token_ids, _LOOP_NGRAM)
        if repetition > self._section.max_repetition:
            return "loop"
        statements = [
            trait.statement for trait in traits_shown(self._traits, prompt.trait_id, self._shown)
        ]
        return unusable(result.text, statements)


def unusable(text: str, statements: Sequence[str]) -> str | None:
    """Why nobody could learn from a response, or None if one may.

    Args:
        text: The response.
        statements: Of the traits that the model was shown.
    """
    if not text.strip():
        return "empty"
    if text_filters.has_thinking(text):
        return "thinking"
    if any(text_filters.quotes_statement(text, statement) for statement in statements):
        return "trait_quoted"
    if text_filters.leaks_instructions(text):
        return "instructions_leaked"
    if text_filters.is_refusal(text):
        return "refusal"
    return None


def _response(prompt: Prompt, variant: str, phrasing: int, sample: Sample) -> Response:
    return Response(
        response_id=sample.request_id,
        prompt_id=prompt.prompt_id,
        trait_id=prompt.trait_id,
        family=prompt.family,
        split=prompt.split,
        prompt=prompt.text,
        variant=variant,
        phrasing=phrasing,
        text=sample.text,
        token_ids=sample.token_ids,
        logprobs=sample.logprobs,
        sequence_logprob=sample.sequence_logprob,
        finish_reason=sample.finish_reason,
    )
