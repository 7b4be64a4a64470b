"""What replies are worth: contrast and KL under the frozen base, rewards of preference models."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from charactertrain import chat
from charactertrain.models import loading
from charactertrain.records import EvaluationSample, Reject, Reply, Trait
from charactertrain.runtime.sampling import Sampler, Score, ScoreRequest
from charactertrain.templates import (
    REFERENCE_VARIANT,
    plain_conversation,
    response_conversation,
)
from charactertrain.texts import measures

RewardColumn = Literal["reward", "gold_reward"]


class ReplyScorer:
    """Scores replies under the base, with and without the trait."""

    def __init__(self, sampler: Sampler, *, traits: Mapping[str, Trait], placement: str) -> None:
        """`sampler` holds the base's weights."""
        self._sampler, self._traits, self._placement = sampler, traits, placement

    def process(self, rows: list[Reply]) -> tuple[list[EvaluationSample], list[Reject]]:
        """Samples with contrast, detector and KL; rewards are filled in later."""
        rejects = [
            Reject(row.sample_id, row.trait_id, "evaluation", "empty", "the reply has no tokens")
            for row in rows
            if not row.token_ids
        ]
        replies = [row for row in rows if row.token_ids]
        scores = iter(self._sampler.score([r for reply in replies for r in self._requests(reply)]))
        samples = []
        for reply in replies:
            shown, plain = next(scores), next(scores)
            if not isinstance(shown, Score) or not isinstance(plain, Score):
                why = ("evaluation", "not_scored", f"{shown} {plain}"[:200])
                rejects.append(Reject(reply.sample_id, reply.trait_id, *why))
                continue
            samples.append(self._sample(reply, sum(shown.logprobs), sum(plain.logprobs)))
        return samples, rejects

    def _requests(self, reply: Reply) -> list[ScoreRequest]:
        trait = self._traits[reply.trait_id]
        shown = response_conversation(
            reply.prompt, [trait], variant=REFERENCE_VARIANT, placement=self._placement
        )
        # Also the base's own replies, although they were drawn with these probabilities: in bf16
        # decoding and prefill differ, and an arm measured another way would differ by that.
        plain = plain_conversation(reply.prompt)
        return [ScoreRequest(reply.sample_id, each, reply.token_ids) for each in (shown, plain)]

    def _sample(self, reply: Reply, under_trait: float, under_base: float) -> EvaluationSample:
        """`under_trait` and `under_base`: the reply's log-probability under the base, in nats."""
        detector = self._traits[reply.trait_id].detector
        length = len(reply.token_ids)
        return EvaluationSample(
            sample_id=reply.sample_id,
            prompt_id=reply.prompt_id,
            trait_id=reply.trait_id,
            kind=reply.kind,
            arm=reply.arm,
            prompt=reply.prompt,
            text=reply.text,
            num_tokens=length,
            finish_reason=reply.finish_reason,
            contrast=(under_trait - under_base) / length,
            detected=measures.detector_matches(detector, reply.text) if detector else None,
            reward=0.0,
            gold_reward=None,
            kl=(reply.sequence_logprob - under_base) / length,
        )


class Rewarder:
    """Fills in a preference model's reward."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        tokenizer_directory: str,
        column: RewardColumn,
    ) -> None:
        """`sampler` serves the model; `column` is what its reward is called."""
        self._sampler, self._column = sampler, column
        self._tokenizer: Any = loading.load_tokenizer(Path(tokenizer_directory))

    def process(self, rows: list[EvaluationSample]) -> tuple[list[EvaluationSample], list[Reject]]:
        """The same samples with rewards; none is rejected."""
        sequences = [chat.encode_exchange(row.prompt, row.text, self._tokenizer) for row in rows]
        rewards = self._sampler.rewards(sequences)
        # mypy cannot know that the name is a field's.
        filled: list[Any] = [{self._column: reward} for reward in rewards]
        return [replace(row, **values) for row, values in zip(rows, filled, strict=True)], []
