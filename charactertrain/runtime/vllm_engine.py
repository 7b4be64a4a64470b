"""One vLLM engine as a long-lived Ray actor: writes, scores, judges, rewards, takes new weights.

The async engine overlaps whatever calls are in flight, so the tail of one batch never leaves it
idle. vllm is imported in the actor alone, after the actor's environment is set.
"""

import asyncio
import functools
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ParamSpec, TypeVar
from uuid import uuid4

from charactertrain import chat
from charactertrain.exceptions import SamplingError
from charactertrain.runtime.engine_spec import EngineCounts, EngineSpec
from charactertrain.runtime.sampling import (
    ABORTED,
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.runtime.weight_sync.updates import WeightUpdates

_WATCH_SECONDS = 1.0
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _ends_with_its_engine(
    method: Callable[Arguments, Awaitable[Result]],
) -> Callable[Arguments, Awaitable[Result]]:
    """Ends this process if the engine's own process has died, so that Ray sees it."""

    @functools.wraps(method)
    async def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await method(*args, **kwargs)
        except EngineDeadError:
            os._exit(1)

    return guarded


class VllmEngine:
    """The actor. Every method takes plain records and returns plain records."""

    def __init__(self, spec: EngineSpec, weights: str) -> None:
        """Start the engine on `weights`, a directory or hub id with the spec's architecture."""
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from charactertrain.runtime.vllm_arguments import engine_arguments
        from charactertrain.runtime.vllm_counters import CountingLogger

        def counting_logger(*args: Any) -> CountingLogger:
            self._counters = CountingLogger(*args)
            return self._counters

        try:
            self._engine = AsyncLLM.from_engine_args(
                AsyncEngineArgs(**engine_arguments(spec, weights)),
                stat_loggers=[counting_logger],
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise SamplingError(
                f"the vLLM engine for {weights} did not start: {error}. If memory ran out: lower "
                "sampler.resources.memory_fraction, kv_cache_gib or max_num_seqs, or raise "
                "tensor_parallel_size."
            ) from error
        self._spec = spec
        self._updates = WeightUpdates(self._engine)
        self._is_closing = False
        threading.Thread(target=self._watch, name="engine-watch", daemon=True).start()

    def _watch(self) -> None:
        """End this process with the engine's own: vLLM never answers calls that wait for it."""
        while not self._is_closing:
            if self._engine.errored:
                os._exit(1)
            time.sleep(_WATCH_SECONDS)

    async def ready(self) -> bool:
        """True once the engine has started."""
        return True

    async def counts(self) -> EngineCounts:
        """What the engine did since it was started."""
        return self._counters.counts

    # Writing and scoring

    async def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Draw one text per request."""
        return list(await asyncio.gather(*(self._sample(r, settings) for r in requests)))

    async def _sample(self, request: SampleRequest, settings: SamplingSettings) -> Sample | Failure:
        from vllm import SamplingParams

        prompt_ids = chat.encode(request.shown, self._engine.get_tokenizer())
        room = self._spec.context_tokens - len(prompt_ids)
        if room < settings.max_tokens:
            return _too_long(request.request_id, len(prompt_ids), settings.max_tokens, self._spec)
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_tokens=settings.max_tokens,
            min_tokens=settings.min_tokens,
            stop=list(settings.stop),
            seed=request.seed,
            logprobs=0,
            flat_logprobs=True,
        )
        output = await self._answer(request.request_id, prompt_ids, params)
        if isinstance(output, Failure):
            return output
        completion = output.outputs[0]
        if completion.finish_reason == "abort":
            return Failure(request.request_id, ABORTED, "an update of the weights ended it")
        # The first entry of each position is the token that was drawn.
        flat = completion.logprobs
        return Sample(
            request_id=request.request_id,
            text=completion.text,
            prompt_token_ids=tuple(prompt_ids),
            token_ids=tuple(completion.token_ids),
            logprobs=tuple(flat.logprobs[start] for start in flat.start_indices),
            finish_reason="length" if completion.finish_reason == "length" else "stop",
            weight_versions=tuple((s.version, s.start) for s in completion.weight_versions or ()),
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Log-probabilities of given texts."""
        return list(await asyncio.gather(*(self._score(request) for request in requests)))

    async def _score(self, request: ScoreRequest) -> Score | Failure:
        prompt_ids = chat.encode(request.shown, self._engine.get_tokenizer())
        if len(prompt_ids) + len(request.token_ids) >= self._spec.context_tokens:
            length = len(request.token_ids)
            return _too_long(request.request_id, len(prompt_ids), length, self._spec)
        score = await self._score_ids(request, prompt_ids, use_cache=True)
        if score is None:
            score = await self._score_ids(request, prompt_ids, use_cache=False)
        assert score is not None, "a score without the prefix cache covers every token"
        return score

    async def _score_ids(
        self, request: ScoreRequest, prompt_ids: Sequence[int], *, use_cache: bool
    ) -> Score | Failure | None:
        """The score; None if the prefix cache hid some of the text's tokens.

        vLLM leaves the rows of cached tokens unset. They are harmless as long as they belong to
        the prompt, which all responses to it share; a response scored before may itself be
        cached, and is then scored again without the cache. Texts are not detokenised, since
        unset rows hold no token.
        """
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1,
            prompt_logprobs=0,
            detokenize=False,
            skip_reading_prefix_cache=not use_cache,
        )
        token_ids = request.token_ids
        output = await self._answer(request.request_id, [*prompt_ids, *token_ids], params)
        if isinstance(output, Failure):
            return output
        cached_tokens = output.num_cached_tokens or 0
        if cached_tokens >= len(prompt_ids):
            return None
        # From the end: one of vLLM's runners leaves cached tokens out, the other leaves them empty.
        entries = output.prompt_logprobs[len(output.prompt_logprobs) - len(token_ids) :]
        return Score(
            request_id=request.request_id,
            logprobs=tuple(
                float(entry[token].logprob) for entry, token in zip(entries, token_ids, strict=True)
            ),
            prompt_tokens=len(prompt_ids) + len(token_ids),
            cached_tokens=cached_tokens,
        )

    async def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens."""
        return list(await asyncio.gather(*(self._choose(request) for request in requests)))

    async def _choose(self, request: ChoiceRequest) -> Choice | Failure:
        from vllm import SamplingParams

        tokenizer = self._engine.get_tokenizer()
        prompt_ids, choice_ids = chat.encode_choices(request.shown, request.choices, tokenizer)
        if len(prompt_ids) >= self._spec.context_tokens:
            return _too_long(request.request_id, len(prompt_ids), 1, self._spec)
        params = SamplingParams(temperature=1.0, max_tokens=1, logprob_token_ids=choice_ids)
        output = await self._answer(request.request_id, prompt_ids, params)
        if isinstance(output, Failure):
            return output
        entry = output.outputs[0].logprobs[0]
        return Choice(
            request_id=request.request_id,
            logprobs=tuple(float(entry[i].logprob) for i in choice_ids),
            prompt_tokens=len(prompt_ids),
            cached_tokens=output.num_cached_tokens or 0,
        )

    async def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """The preference model's scalar for each whole sequence."""
        return list(await asyncio.gather(*(self._reward(ids) for ids in token_ids)))

    @_ends_with_its_engine
    async def _reward(self, token_ids: Sequence[int]) -> float:
        from vllm import PoolingParams

        params = PoolingParams(task="classify", use_activation=False)
        prompt = {"prompt_token_ids": list(token_ids)}
        last = None
        async for output in self._engine.encode(prompt, params, request_id=uuid4().hex):
            last = output
        assert last is not None, "the engine ended a request without an output"
        return float(last.outputs.data.reshape(-1)[0])

    async def _answer(
        self, request_id: str, prompt_ids: Sequence[int], params: Any
    ) -> Any | Failure:
        """VLLM's output; a Failure where vLLM refuses this one request."""
        try:
            return await self._run(prompt_ids, params)
        except ValueError as error:
            return Failure(request_id, "refused_by_engine", str(error)[:500])

    @_ends_with_its_engine
    async def _run(self, prompt_ids: Sequence[int], params: Any) -> Any:
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        prompt = {"prompt_token_ids": list(prompt_ids)}
        last = None
        async for output in self._engine.generate(prompt, params, request_id=uuid4().hex):
            last = output
        assert last is not None, "the engine ended a request without an output"
        return last

    # Weights

    @_ends_with_its_engine
    async def load(self, weights: str, version: str) -> None:
        """Take the weights of a directory with this engine's architecture."""
        await self._updates.reload(weights, version)

    @_ends_with_its_engine
    async def init_weight_transfer_engine(self, request: Any) -> None:
        """First phase of vLLM's weight transfer: rendezvous."""
        await self._updates.meet(request)

    @_ends_with_its_engine
    async def start_weight_update(self) -> None:
        """Second phase: requests wait where they are until the update is finished."""
        await self._updates.start()

    @_ends_with_its_engine
    async def update_weights(self, request: Any) -> None:
        """Third phase: receive and load."""
        await self._updates.receive(request)

    @_ends_with_its_engine
    async def finish_weight_update(self, version: str) -> None:
        """Fourth phase: the new weights count, under this name; every sample carries it."""
        await self._updates.finish(version)

    async def received_sums(self) -> list[dict[str, tuple[int, int, int]]]:
        """Checksums of what each tensor-parallel rank has received in this update."""
        sums: list[dict[str, Any]] = await self._engine.collective_rpc("received_sums")
        # vLLM's messages make lists of tuples.
        return [{name: tuple(values) for name, values in rank.items()} for rank in sums]

    @_ends_with_its_engine
    async def sleep(self) -> None:
        """Give the device's memory back: weights go to the host, and caches are forgotten."""
        # Level 2 would drop what is no weight and no buffer of a module, and that no update brings.
        await self._engine.sleep(level=1)

    @_ends_with_its_engine
    async def wake(self) -> None:
        """Take it again."""
        await self._engine.wake_up()

    @_ends_with_its_engine
    async def rest(self) -> None:
        """Between stages: give back memory that the last requests took."""
        await self._engine.collective_rpc("trim_heap")

    async def forget_prefixes(self) -> None:
        """Empty the prefix cache, for measurements that start from nothing."""
        await self._engine.reset_prefix_cache()

    async def shutdown(self) -> None:
        """Stop the engine and its processes."""
        self._is_closing = True
        self._engine.shutdown()


def _too_long(request_id: str, prompt: int, response: int, spec: EngineSpec) -> Failure:
    return Failure(
        request_id,
        "too_long",
        f"{prompt} prompt tokens and {response} response tokens exceed model.context_tokens "
        f"{spec.context_tokens}",
    )
