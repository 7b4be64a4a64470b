"""Replies of arms to scripts, turn after turn, and what they measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from charactertrain.probes import measures as probe_measures
from charactertrain.probes.measures import EVERY_TRAIT
from charactertrain.records import (
    NO_TRAIT,
    Message,
    Reject,
    Script,
    ScriptDraft,
    ScriptReply,
    Trait,
)
from charactertrain.runtime.sampling import (
    Sample,
    Sampler,
    SampleRequest,
    SamplingSettings,
    Score,
    ScoreRequest,
)
from charactertrain.seeds import derive_seed, stable_id
from charactertrain.stages.context import traits_shown
from charactertrain.templates import Shown, with_character
from charactertrain.texts import measures


@dataclass(frozen=True)
class ShownCharacter:
    """The arm that is the base with its character in front of it: how it is shown."""

    traits: Mapping[str, Trait]
    mode: str
    """`context.traits_prompted`; the whole character where no trait is at stake."""
    placement: str

    def __call__(self, script: Script, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """The conversation with the character at its beginning."""
        mode = "all" if script.trait_id == NO_TRAIT else self.mode
        traits = traits_shown(dict(self.traits), script.trait_id, mode)
        return with_character(messages, traits, placement=self.placement, turn=0)


class ScriptRunner:
    """Puts one arm through scripts: the replies of a turn at once, then the next turn's."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        arm: str,
        showing: ShownCharacter | None,
        settings: SamplingSettings,
        seed: int,
    ) -> None:
        """`showing`: None where the arm is shown the conversation alone."""
        self._sampler, self._arm, self._showing = sampler, arm, showing
        self._settings, self._seed = settings, seed

    def process(self, rows: list[Script]) -> tuple[list[ScriptDraft], list[Reject]]:
        """Replies by turn and measure, and rejects; a script ends with its first reject."""
        drafts: list[ScriptDraft] = []
        rejects: list[Reject] = []
        conversations = {script.script_id: _opened(script) for script in rows}
        for turn in range(max((len(script.turns) for script in rows), default=0)):
            asked = _say(turn, rows, conversations)
            requests = [self._request(s, conversations[s.script_id], turn) for s in asked]
            results = self._sampler.sample(requests, self._settings) if requests else []
            for script, result in zip(asked, results, strict=True):
                if isinstance(result, Sample):
                    conversation = conversations[script.script_id]
                    drafts += self._drafts(script, tuple(conversation), turn, result)
                    conversation.append(Message("assistant", result.text))
                else:
                    why = ("evaluation", result.reason, result.detail)
                    rejects.append(Reject(result.request_id, script.trait_id, *why))
                    del conversations[script.script_id]
        return drafts, rejects

    def _request(self, script: Script, conversation: Sequence[Message], turn: int) -> SampleRequest:
        messages = tuple(conversation)
        if self._showing is not None:
            messages = self._showing(script, messages)
        # The same seeds in all arms, so that they differ by their weights and what they are shown.
        return SampleRequest(
            stable_id(self._arm, script.script_id, turn),
            Shown(messages, ""),
            derive_seed(self._seed, "probes", script.script_id, turn),
        )

    def _drafts(
        self, script: Script, messages: tuple[Message, ...], turn: int, sample: Sample
    ) -> list[ScriptDraft]:
        """One for each measure of the script, or one without."""
        return [
            ScriptDraft(
                sample_id=stable_id(self._arm, script.script_id, turn, measure),
                script_id=script.script_id,
                probe=script.probe,
                condition=script.condition,
                cluster=script.cluster,
                trait_id=script.trait_id,
                arm=self._arm,
                turn=turn,
                messages=messages,
                text=sample.text,
                num_tokens=len(sample.token_ids),
                finish_reason=sample.finish_reason,
                contrast=None,
                detected=None,
                measure=measure,
                score=(
                    probe_measures.score(measure, sample.text, script.accepted, script.mistaken)
                    if measure
                    else None
                ),
                token_ids=sample.token_ids,
            )
            for measure in script.measures or ("",)
        ]


def _opened(script: Script) -> list[Message]:
    return [Message("system", script.system)] if script.system else []


def _say(
    turn: int, scripts: Sequence[Script], conversations: Mapping[str, list[Message]]
) -> list[Script]:
    """The user's part of a turn, and replies that are given; returns who is to reply itself."""
    asked = []
    for script in scripts:
        conversation = conversations.get(script.script_id)
        if conversation is None or turn >= len(script.turns):
            continue
        conversation.append(Message("user", script.turns[turn]))
        if turn < len(script.given_replies):
            conversation.append(Message("assistant", script.given_replies[turn]))
        else:
            asked.append(script)
    return asked


class ScriptScorer:
    """Measures replies for the traits that are at stake, under the frozen base."""

    def __init__(self, sampler: Sampler, *, traits: Mapping[str, Trait], placement: str) -> None:
        """`sampler` holds the base's weights."""
        self._sampler, self._traits, self._placement = sampler, traits, placement

    def process(self, rows: list[ScriptDraft]) -> tuple[list[ScriptReply], list[Reject]]:
        """Replies with contrast and detector, one for each trait of `EVERY_TRAIT`'s."""
        requests = [request for draft in rows for request in self._requests(draft)]
        scores = iter(self._sampler.score(requests) if requests else [])
        replies, rejects = [], []
        for draft in rows:
            traits = self._at_stake(draft)
            if not traits:
                replies.append(_without_tokens(draft))
                continue
            if not draft.token_ids:
                why = ("evaluation", "empty", "the reply has no tokens")
                rejects.append(Reject(draft.sample_id, draft.trait_id, *why))
                continue
            plain, *shown = [next(scores) for _ in range(len(traits) + 1)]
            for trait, under_trait in zip(traits, shown, strict=True):
                if isinstance(plain, Score) and isinstance(under_trait, Score):
                    contrast = sum(under_trait.logprobs) - sum(plain.logprobs)
                    replies.append(_measured(draft, trait, contrast / len(draft.token_ids)))
                else:
                    why = ("evaluation", "not_scored", f"{under_trait} {plain}"[:200])
                    rejects.append(Reject(draft.sample_id, trait.trait_id, *why))
        return replies, rejects

    def _at_stake(self, draft: ScriptDraft) -> list[Trait]:
        if draft.measure == EVERY_TRAIT:
            return list(self._traits.values())
        return [] if draft.trait_id == NO_TRAIT else [self._traits[draft.trait_id]]

    def _requests(self, draft: ScriptDraft) -> list[ScoreRequest]:
        traits = self._at_stake(draft) if draft.token_ids else []
        if not traits:
            return []
        # With the last of the user's messages, so that each turn is as far from the trait as the
        # first and a slope over turns is not one of distance.
        shown = [
            with_character(draft.messages, [trait], placement=self._placement, turn=-1)
            for trait in traits
        ]
        return [
            ScoreRequest(draft.sample_id, Shown(messages, ""), draft.token_ids)
            for messages in (draft.messages, *shown)
        ]


def _without_tokens(draft: ScriptDraft) -> ScriptReply:
    return ScriptReply(**{f.name: getattr(draft, f.name) for f in fields(ScriptReply)})


def _measured(draft: ScriptDraft, trait: Trait, contrast: float) -> ScriptReply:
    detector = trait.detector
    return replace(
        _without_tokens(draft),
        sample_id=stable_id(draft.sample_id, trait.trait_id),
        trait_id=trait.trait_id,
        contrast=contrast,
        detected=measures.detector_matches(detector, draft.text) if detector else None,
        measure="" if draft.measure == EVERY_TRAIT else draft.measure,
    )
