"""A judge behind an OpenAI-compatible chat endpoint: another model than the one that is trained."""

import asyncio
import json
import math
import os
import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import openai
from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion_token_logprob import TopLogprob

from charactertrain.exceptions import SamplingError
from charactertrain.runtime.sampling import (
    Choice,
    ChoiceRequest,
    Failure,
    Sample,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)

_NUM_ALTERNATIVES = 20
"""The most that the chat completions API gives, and `vllm serve` without --max-logprobs."""
_NUM_SHOWN_ALTERNATIVES = 5
_UNKNOWN_LOGPROB = -9999.0
"""What the API writes for a token that is not among the likeliest."""
_MAX_DETAIL_CHARACTERS = 500

_REFUSED_STATUSES = (400, 413, 422)
_PARAMETERS_OF_ALL = ("logprobs", "max_completion_tokens", "model", "temperature", "top_logprobs")
"""What every request has alike: refused in one, it would be refused in all."""


_STRUCTURE = re.compile(
    r"<(?=\|[^|<>\s]+\|>|/?(?:s|bos|eos|unk|pad|(?:start|end)_of_turn|(?:im|turn)_(?:start|end))>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\])"
    r"|<(?=</?SYS>>)",
    re.IGNORECASE,
)
"""How the turns of chat templates begin and end, in the families of models that are served so."""


def _defused(text: str) -> str:
    """`text` in which nothing ends its own turn; the endpoint's tokenizer is not known here."""
    return _STRUCTURE.sub(lambda found: f"{found.group()} ", text)


@dataclass(frozen=True)
class EndpointSpec:
    """Where the judge is and how it is asked; travels to any process, without the key."""

    base_url: str
    """Up to what `/chat/completions` is added to, so mostly ending in `/v1`."""
    model: str
    """As the endpoint calls it."""
    api_key_variable: str | None
    """The environment variable that holds the key; None for servers without keys."""
    max_in_flight: int
    """Requests that one sampler has open at a time."""
    timeout_seconds: float
    """Of one try: to connect, and between two parts of the answer."""
    max_retries: int
    """Tries after the first, on 408, 409, 429, 5xx, timeouts and connection errors."""

    def open(self) -> "EndpointSampler":
        """A sampler for this process; close it after use."""
        return EndpointSampler(self)


class EndpointSampler:
    """Asks for letters only; may be called from several threads at a time."""

    def __init__(self, spec: EndpointSpec) -> None:
        """Read the key from this process's environment and start a thread for the requests."""
        self._spec = spec
        self._key = None if spec.api_key_variable is None else _read_key(spec.api_key_variable)
        # By itself the client would send what it finds in OPENAI_API_KEY, OPENAI_ORG_ID,
        # OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, to whatever server this is.
        key = self._key or "none"
        self._client = openai.AsyncOpenAI(
            base_url=spec.base_url,
            api_key=key,
            default_headers=_without_ambient_headers({"Authorization": f"Bearer {key}"}),
            timeout=spec.timeout_seconds,
            max_retries=spec.max_retries,
        )
        self._client.organization = self._client.project = None
        self._free_slots = asyncio.Semaphore(spec.max_in_flight)
        self._closing = asyncio.Event()
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._run, name="endpoint-sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._runner:
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        async with self._client:
            await self._closing.wait()
            # Calls of other threads, which would wait for ever.
            calls = asyncio.all_tasks() - {asyncio.current_task()}
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    def close(self) -> None:
        """End what is still in flight, the connections and the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    # Judging

    def choose(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        """Log-probabilities of given next tokens; -inf for those that the endpoint leaves out."""
        if self._loop.is_closed():
            raise SamplingError(f"{self._name()} was asked after it was closed: open another one")
        answers = asyncio.run_coroutine_threadsafe(self._choose_all(requests), self._loop)
        try:
            return answers.result()
        except CancelledError:
            raise SamplingError(f"{self._name()} was closed while it was being asked") from None

    async def _choose_all(self, requests: Sequence[ChoiceRequest]) -> list[Choice | Failure]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._choose(request)) for request in requests]
        except ExceptionGroup as group_error:
            # The first that failed; the others failed alike or were cancelled.
            raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _choose(self, request: ChoiceRequest) -> Choice | Failure:
        # `shown.text`, how the reply begins, is left out: few endpoints continue a reply, and the
        # question itself asks for the letter alone.
        messages = [
            {"role": message.role, "content": _defused(message.content)}
            for message in request.shown.messages
        ]
        try:
            async with self._free_slots:
                answer = await self._client.chat.completions.create(
                    model=self._spec.model,
                    messages=cast(Any, messages),
                    temperature=1.0,
                    max_completion_tokens=1,
                    logprobs=True,
                    top_logprobs=_NUM_ALTERNATIVES,
                )
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            if _is_about_one_request(error):
                detail = self._without_key(str(error))[:_MAX_DETAIL_CHARACTERS]
                return Failure(request.request_id, "refused_by_endpoint", detail)
            # Not `from error`: its text may hold the key, and a traceback would show it.
            raise SamplingError(self._explain(error)) from None
        return self._read(request, answer)

    def _read(self, request: ChoiceRequest, answer: object) -> Choice | Failure:
        # The client takes whatever comes with status 200, a web page too.
        if not isinstance(answer, ChatCompletion) or not answer.choices:
            found = self._without_key(repr(answer))[:_MAX_DETAIL_CHARACTERS]
            raise SamplingError(
                f"{self._name()}: expected a chat completion, found {found}. Check base_url, which "
                "mostly ends in /v1."
            )
        alternatives = self._alternatives(answer)
        logprobs = tuple(_logprob(choice, alternatives) for choice in request.choices)
        if max(logprobs) == -math.inf:
            likeliest = sorted(alternatives, key=lambda token: token.logprob, reverse=True)
            found = ", ".join(
                f"{token.token!r} {math.exp(token.logprob):.3f}"
                for token in likeliest[:_NUM_SHOWN_ALTERNATIVES]
            )
            detail = f"expected one of {', '.join(request.choices)}; likeliest: {found}"
            return Failure(request.request_id, "no_choice", detail)
        usage = answer.usage
        details = usage.prompt_tokens_details if usage else None
        return Choice(
            request_id=request.request_id,
            logprobs=logprobs,
            prompt_tokens=(usage.prompt_tokens or 0) if usage else 0,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
        )

    def _alternatives(self, completion: ChatCompletion) -> list[TopLogprob]:
        """Of the first token, as far as the endpoint gives them."""
        logprobs = completion.choices[0].logprobs
        if logprobs is None or not logprobs.content or not logprobs.content[0].top_logprobs:
            raise SamplingError(
                f"{self._name()}: expected the log-probabilities of the {_NUM_ALTERNATIVES} "
                "likeliest first tokens (logprobs, top_logprobs), found none in the answer. The "
                "judge needs them: choose a model or server that gives them."
            )
        return logprobs.content[0].top_logprobs

    # What went wrong

    def _explain(self, error: Exception) -> str:
        found = f"{type(error).__name__}: {error}"
        if error.__cause__ is not None:
            # Its class too: the text of many network errors is empty.
            found += f" ({type(error.__cause__).__name__}: {error.__cause__})"
        found = self._without_key(found)[:_MAX_DETAIL_CHARACTERS]
        advice = _advice(error, self._spec)
        return f"{self._name()}: expected a chat completion, found {found}. {advice}"

    def _without_key(self, text: str) -> str:
        return text if self._key is None else text.replace(self._key, "***")

    def _name(self) -> str:
        return f"judge {self._spec.model!r} at {self._spec.base_url}"

    # What an endpoint cannot do

    def sample(
        self, requests: Sequence[SampleRequest], settings: SamplingSettings
    ) -> list[Sample | Failure]:
        """Raise: only the judge's letters come from an endpoint."""
        self._refuse("writes no responses")

    def score(self, requests: Sequence[ScoreRequest]) -> list[Score | Failure]:
        """Raise: an endpoint gives no log-probabilities of given texts."""
        self._refuse("gives no log-probabilities of given texts")

    def rewards(self, token_ids: Sequence[Sequence[int]]) -> list[float]:
        """Raise: an endpoint holds no preference model of ours."""
        self._refuse("gives no rewards")

    def _refuse(self, what: str) -> NoReturn:
        raise SamplingError(
            f"{self._name()} {what}, only the log-probabilities of letters: use a judge ranker"
        )


def _without_ambient_headers(headers: dict[str, str]) -> dict[str, str]:
    """These headers, and the removal of those that OPENAI_CUSTOM_HEADERS adds to them."""
    ambient = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names = {line.partition(":")[0].strip().title() for line in ambient if ":" in line}
    # The client's own value for "leave this header out", which its type for headers lacks.
    return dict.fromkeys(names - headers.keys(), cast(str, openai.Omit())) | headers


def _read_key(variable: str) -> str:
    # A key read from a file often ends in a line break, which no header may hold.
    key = os.environ.get(variable, "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    found = "other characters" if key else "none"
    raise SamplingError(
        f"expected the endpoint's key, in printable ASCII, in the environment variable {variable}; "
        f"found {found}. Set it in the environment of every process that asks the judge."
    )


def _logprob(choice: str, alternatives: Iterable[TopLogprob]) -> float:
    """Log of the summed probability of the tokens that are this choice but for white space."""
    logprobs = [
        token.logprob
        for token in alternatives
        if token.token.strip() == choice and token.logprob > _UNKNOWN_LOGPROB
    ]
    top = max(logprobs, default=-math.inf)
    if top == -math.inf:
        return top
    return top + math.log(math.fsum(math.exp(logprob - top) for logprob in logprobs))


def _is_about_one_request(error: Exception) -> bool:
    return (
        isinstance(error, openai.APIStatusError)
        and error.status_code in _REFUSED_STATUSES
        and error.param not in _PARAMETERS_OF_ALL
    )


def _advice(error: Exception, spec: EndpointSpec) -> str:
    key = spec.api_key_variable
    match error:
        case openai.APITimeoutError():
            return (
                f"Raise timeout_seconds ({spec.timeout_seconds:g}) or lower max_in_flight "
                f"({spec.max_in_flight})."
            )
        case openai.APIConnectionError():
            return "Check base_url, and that the server runs and can be reached from this machine."
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            if key is None:
                return "Name the environment variable that holds the key in api_key_variable."
            return f"Put a key that may use this model into the environment variable {key}."
        case openai.NotFoundError():
            return "Check model, and base_url, which mostly ends in /v1."
        case openai.RateLimitError():
            return (
                f"Lower max_in_flight ({spec.max_in_flight}), raise max_retries "
                f"({spec.max_retries}), or raise the account's limit."
            )
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return "Choose a model or server that takes this parameter: the judge needs it."
        case _:
            return "Look at the server's log, and run again when it answers."
