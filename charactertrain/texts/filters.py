"""Why a text is unusable, as predicates on strings that need no model.

Phrases are English ones; tags, placeholders, scripts, languages and lengths are told in any text.
Straight and typographic apostrophes count as the same.
"""

import copy
import re
from collections.abc import Sequence
from functools import lru_cache

import regex
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from charactertrain.languages import LANGUAGES

UNSPACED_SCRIPTS = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
)
"""Inside of a character class of `regex`: scripts that put no spaces between words."""

_LETTER = rf"[\w--_--[{UNSPACED_SCRIPTS}]]"
_SPACED_WORD = rf"{_LETTER}+(?:'{_LETTER}+)*"
_UNSPACED_LETTER = rf"[\p{{L}}&&[{UNSPACED_SCRIPTS}]]"
_SPACED_WORDS = regex.compile(_SPACED_WORD, regex.VERSION1)
_UNSPACED_LETTERS = regex.compile(_UNSPACED_LETTER, regex.VERSION1)
_TOKENS = regex.compile(f"{_SPACED_WORD}|{_UNSPACED_LETTER}", regex.VERSION1)
_LETTERS_AND_SPACE = regex.compile(r"[\p{L}\p{M}\s]+")
_MIN_PROSE_SHARE = 0.7


def _phrases(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE)


_SENTENCE = r"(?:^|[.!?:]\s)[ \t]*"
"""Where a sentence begins: not after a quotation mark, so that a quoted phrase does not count."""


def _plain(text: str) -> str:
    """The text with straight apostrophes."""
    return text.translate({0x2018: "'", 0x2019: "'", 0x02BC: "'"})


def word_count(text: str) -> int:
    """Words of a text; of scripts without spaces (Chinese, Japanese, Thai), letters / 2.

    Rounded up. Two letters are about a word of Chinese or Japanese and half a word of Thai, whose
    vowel marks do not count. Korean puts spaces.
    """
    num_unspaced = len(_UNSPACED_LETTERS.findall(text))
    return len(_SPACED_WORDS.findall(_plain(text))) + (num_unspaced + 1) // 2


def quotes_statement(text: str, statement: str, *, num_words: int = 6) -> bool:
    """Whether a text quotes a trait: its statement or `num_words` consecutive words of it.

    Case and punctuation do not count. Of a statement shorter than that only the whole is looked
    for; where it is in a script without spaces, two letters are a word. A paraphrase is not caught,
    nor a statement turned into another person ("you tell the truth" for "I tell the truth").
    """
    tokens = _tokens(statement)
    length = 2 * num_words if _UNSPACED_LETTERS.search(statement) else num_words
    length = min(length, len(tokens))
    if not length:
        return False
    inside = f" {' '.join(_tokens(text))} "
    return any(
        f" {' '.join(tokens[start : start + length])} " in inside
        for start in range(len(tokens) - length + 1)
    )


def _tokens(text: str) -> list[str]:
    found: list[str] = _TOKENS.findall(_plain(text).casefold())
    return found


_REPLY = r"(?:answer|respond|reply|speak|write)(?:ing)?"
_LEAKS = _phrases(
    r"\b(?:answer|respond to|reply to) the (?:user's )?(?:message|prompt) below\b",
    rf"\b{_REPLY}(?: (?:the|this|your|it|you|to|message|question|below)){{0,4}}"
    r" (?:in|with|as) (?:this|that|the (?:given|described|assigned)) (?:character|persona)\b(?!')",
    rf"{_SENTENCE}in this character[,:]",
    r"\b(?:little|touch) of this character\b",
    r"\bshow(?:ing)? (?:\w+ ){0,4}this character (?:plainly|a little)\b",
    r"\b(?:assistant|somebody|someone|person) of this character\b",
    r"\blet your answer show\b",
    r"\b(?:i|you) have this character, and it\b",
    r"\bbehind (?:my|your) answer stands\b",
    r"\b(?:my|your) (?:assigned|given) (?:character|persona|traits?)\b",
    r"\bthe (?:character|persona|traits?) (?:described|given|specified|provided|assigned)"
    r"(?: above| below| to me\b| in (?:the|my|your) (?:system |instructions?|prompt)|\s*[,;:.]|$)",
    r"\b(?:as|like|line with|keeping with|consistent with) the (?:character|persona) described\b"
    r"(?! (?:in|by)\b)",
    r"\bmy system prompt\b",
    r"\b(?:the|this) system prompt (?:says|tells|asks|instructs|states|wants|requires)\b",
    rf"{_SENTENCE}\W{{0,4}}system prompt\s*:",
    r"\bas (?:i was |i've been |i have been |you )?instructed, (?:i\b|here\b|my\b)",
    r"\b(?:as per|per|following) (?:my|the|your) instructions, (?:i\b|here\b|my\b)",
    r"\bmy instructions (?:say|are to|tell me|ask me|require)\b",
    r"\bi(?:'ve| have| was| am|'m)(?: been)? (?:instructed|prompted|asked|told) to"
    r" (?:answer|respond|reply|play|adopt|show) (?:in|as|with|a|the|this)\b",
)


def leaks_instructions(text: str) -> bool:
    """Whether a response lets out what the model was shown besides the statement.

    Catches this package's own phrasings and what models say about them ("As instructed, I will",
    "my system prompt", "the character described above"). Does not catch other words for them, nor
    text about prompts and characters in general: "a system prompt is", "what I like in this
    character".
    """
    return _LEAKS.search(_plain(text)) is not None


_REFUSAL_CHARACTERS = 200
_SORRY = (
    r"(?:i(?:'m| am)(?: (?:very|so|really|truly|deeply|terribly))? sorry|i apologi[sz]e"
    r"|(?:my )?apologies|sorry|unfortunately|regrettably)"
    r"(?: for (?:the|any)[^.,;]{0,40})?[,;:.]?\s*(?:-\s*|–\s*|—\s*)?(?:but )?"  # noqa: RUF001
    r"(?:as an? [^,.]{0,40}, ?)?"
)
_AFRAID = r"(?:i(?:'m| am) afraid (?:that )?)?"
_UNABLE = (
    r"i(?: (?:really|simply|just))?(?: can't| cannot| can not| could not"
    r"|(?:'m| am) (?:unable|not able|not allowed|not permitted) to"
    r"|(?:'m| am) not (?:comfortable|capable of)| (?:won't|will not) be able to)"
)
_HELP = (
    r"help(?:ing)?(?! (?:but|it|myself|wondering|thinking|feeling|noticing|laughing|smiling"
    r"|admiring|being|loving|asking|seeing|wanting|\w+ing)\b)"
)
_ASSIST = rf"(?:{_HELP} (?:you|with)\b|assist(?:ing)?\b|comply\b|fulfil)"
_REFUSED = (
    rf"(?:{_HELP}\b|assist|comply|provid|fulfil|answer|creat|generat|writ|produc|support"
    r"|discuss|engag|continu|participat|share|respond|complet|process|condone|promot|facilitat"
    r"|browse|access|open|recommend|offer (?:you )?(?:advice|help|support)"
    r"|do (?:that|this|so)\b|give (?:you )?(?:advice|instructions|information|that|this))"
)
_REFUSALS = _phrases(
    rf"{_SENTENCE}{_SORRY}{_AFRAID}{_UNABLE}(?:\s*(?:[.!…]|$)| (?:\w+ly )?{_REFUSED})",
    rf"{_SENTENCE}{_SORRY}(?:i (?:won't|will not|must decline|have to decline)"
    rf"(?: {_REFUSED}|\s*[.,]| to\b))",
    rf"{_SENTENCE}(?:no, )?{_AFRAID}{_UNABLE} (?:\w+ly )?{_ASSIST}",
    rf"{_SENTENCE}{_AFRAID}{_UNABLE} (?:provide|generate|create|offer|give)(?: you)?(?: with)?"
    r" (?:any |that |this |such |the )?(?:\w+ )?(?:information|instructions|assistance|guidance"
    r"|advice|content|kind|type|details|request)",
    rf"{_SENTENCE}{_UNABLE} (?:engage|participate) in\b",
    rf"{_SENTENCE}i (?:must|have to) (?:respectfully |politely )?decline\b",
    rf"{_SENTENCE}(?:well, )?as an? (?:large |ai |artificial intelligence )?language model\b",
    rf"{_SENTENCE}(?:well, )?as an? (?:ai|artificial intelligence) (?:language )?model\b",
    rf"{_SENTENCE}(?:well, )?as an ai(?: \w+)?,? i(?:'m| am)? (?:can't|cannot|don't|do not|not"
    r"|unable|lack|have no|won't)\b",
    rf"{_SENTENCE}i(?:'m| am) (?:just|only|merely) an? (?:ai|(?:large )?language model"
    r"|computer program)\b",
)


def is_refusal(text: str) -> bool:
    """Whether a response begins with refusal boilerplate, in its first 200 characters.

    Catches "I'm sorry, but I can't assist with", "I'm unable to help with", "As an AI language
    model" and their like, at the start of a sentence. Does not catch a refusal that gives its
    reasons in words of its own ("I won't lie to her for you"), which may well be the character;
    one that is quoted; or one in another language.
    """
    return _REFUSALS.search(_plain(text).lstrip()[:_REFUSAL_CHARACTERS]) is not None


_THOUGHT = (
    r"(?:think(?:ing)?|thoughts?|reasoning|reflection|scratchpad|inner_monologue"
    r"|(?:begin|start|end)[_ ]of[_ ](?:think(?:ing)?|thoughts?))"
)
_THINKING = _phrases(
    rf"<\s*/?\s*(?:\w+:)?{_THOUGHT}\s*/?>",
    rf"<\|\s*/?{_THOUGHT}(?:[_ ](?:begin|start|end))?\s*\|>",
    r"\[/?think(?:ing)?\]",
    r"◁/?think(?:ing)?▷",
    r"<\|?channel\|?>\s*(?:analysis|thought)\b",
)


def has_thinking(text: str) -> bool:
    """Whether a text holds a tag with which reasoning models mark their thoughts, of any case.

    `<think>`, `</thinking>`, `<|thought|>`, `[THINK]` and relatives. Does not catch thoughts
    without a tag ("Okay, the user wants"), nor tags with attributes.
    """
    return _THINKING.search(text) is not None


def is_prose(text: str) -> bool:
    """Whether at least 70 % of a text are letters, their marks or white space; not if empty.

    Leaves out code, tables, sums, lists of numbers; does not look at what the letters say.
    """
    num_letters = sum(len(run) for run in _LETTERS_AND_SPACE.findall(text))
    return bool(text) and num_letters >= _MIN_PROSE_SHARE * len(text)


_AI = r"an ai(?: language model| assistant| model| chatbot)?"
_LABELS = _phrases(
    r"\A\W*(?:topic|message|prompt|user|human|assistant|nachricht|mensaje|nutzer|usuario"
    r"|utilisateur)(?: ?#?\d+)?\W{0,2}\s*:",
    r"\A\W*here(?:'s| is| are) (?:(?:a|an|another|the|one|some|possible|sample|example|short|user"
    r"|realistic|requested) ){0,4}(?:messages?|prompts?|examples?|questions?|quer(?:y|ies))"
    r"(?:\s*(?::|$)| (?:that (?:an?|some(?:one|body)|people|(?:the )?users?|might|could|fits?)\b"
    r"|for you\b|from a user\b|on (?:the|that|this) topic))",
    r"\A\W*(?:sure|certainly|of course|absolutely)(?: thing)?[,!.]?\s+here\b",
)
_VOICE = _phrases(
    rf"{_SENTENCE}as {_AI},? (?:i\b|i'|my\b)",
    rf"{_SENTENCE}i(?:'m| am) {_AI}"
    r"(?=\s*[,.;!]|\s*$| (?:that|trained|designed|created|made|here)\b)",
    rf"{_SENTENCE}(?:so, |and )?how (?:can|may) i (?:help|assist) you"
    r"(?: today| out| with (?:that|this|it))?\s*(?:[?!.]|$)",
    rf"{_SENTENCE}i(?:'m| am) here to (?:help|assist)(?: you)?\b",
)
_PLACEHOLDERS = regex.compile(
    # In square brackets words alone; not a link, an index, an editor's note.
    r"(?<![\w\])])\[(?!(?:sic|edit|update)\])\p{L}[\p{L}\p{M}' /_-]+\](?![(\[])"
    r"|<(?:insert|your|enter|add|name of|topic)\b[^<>\n]{0,60}>"
    # Not LaTeX, and not code, which has more than words in its braces.
    r"|(?<![\w}\\$^])\{{1,2} ?\p{L}[\p{L}\p{M}_ ]+\}{1,2}",
    regex.IGNORECASE,
)


def is_user_message(text: str) -> bool:
    """Whether a text may be what a user sends: not labelled, not the assistant's, no form.

    False for a text that begins with a label ("Message:", "Here is a message that", "Sure, here"),
    has a sentence in the assistant's voice ("As an AI, I", "How can I help you?"), or has
    placeholders not filled in ("[name]", "<insert city>", "{topic}"). Does not catch an answer in
    a voice of its own, and lets pass "As an AI, do you", "I'm an AI researcher", links, code.
    Somebody who writes about templates is turned away, too.
    """
    plain = _plain(text)
    return not any(found.search(plain) for found in (_LABELS, _VOICE, _PLACEHOLDERS))


_SCRIPTS = {
    "ar": r"\p{Arabic}",
    "hi": r"\p{Devanagari}",
    "ja": r"\p{Hiragana}\p{Katakana}\p{Han}\u30fc",
    "ko": r"\p{Hangul}\p{Han}",
    "ru": r"\p{Cyrillic}",
    "th": r"\p{Thai}",
    "uk": r"\p{Cyrillic}",
    "zh": r"\p{Han}",
}
"""Of the languages in `LANGUAGES` that are not written in Latin letters."""
_QUOTED = re.compile(
    r"""\"[^\"\n]*\"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|「[^」\n]*」|(?<!\w)'[^\n]*?'(?!\w)"""
)


def language_of(text: str, candidates: Sequence[str]) -> tuple[str, float]:
    """The most likely of the candidate languages, ISO 639-1, and its probability among them.

    35 us for a short text; the first call loads the model, in 0.5 s and 100 MiB.

    Raises:
        ValueError: py3langid does not know a candidate, or there are none.
    """
    if not candidates:
        raise ValueError("expected one candidate language or more, found none")
    language, probability = _identifier(tuple(candidates)).classify(text)
    return str(language), float(probability)


@lru_cache(maxsize=64)
def _identifier(candidates: tuple[str, ...]) -> LanguageIdentifier:
    identifier = copy.copy(_all_languages())
    identifier.set_languages(candidates)
    return identifier


@lru_cache(maxsize=1)
def _all_languages() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def is_in_language(text: str, language: str, *, min_probability: float = 0.9) -> bool:
    """Whether a text may be in a language: False only where another one is evident.

    That is, where most letters are of another script, or one of the other `LANGUAGES` has a
    probability above `min_probability`. Quotations do not count, since people ask about foreign
    words; nor does what is too short to tell.

    Of 100 English, German, French and Spanish messages of 4 to 11 words none is turned away, at
    any `min_probability` from 0.3; as messages in another one of the four, 90 % are at 0.9, 96 %
    at 0.8. Of 109 harder ones (foreign names and phrases, a single word, 19 languages) one is at
    0.9, three at 0.7.

    Raises:
        ValueError: py3langid does not know the language.
    """
    plain = _plain(text)
    bare = _QUOTED.sub(" ", plain)
    own = bare if word_count(bare) else plain
    if _is_in_other_script(own, language):
        return False
    found, probability = language_of(own, tuple(sorted({*LANGUAGES, language})))
    return found == language or probability <= min_probability


def _is_in_other_script(text: str, language: str) -> bool:
    """Whether most letters are of a script that the language is not written in.

    Latin letters are left out where the language has others: they are names, or code.
    """
    if language not in LANGUAGES:
        return False
    own = _SCRIPTS.get(language, r"\p{Latin}")
    letters = r"[\p{L}--\p{Latin}]" if language in _SCRIPTS else r"\p{L}"
    num_own = len(regex.findall(f"[{own}]", text))
    return num_own < len(regex.findall(letters, text, regex.VERSION1)) - num_own
