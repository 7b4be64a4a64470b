"""Why a text is unusable: examples of what each predicate catches, and of what it must not."""

import pytest

from charactertrain.records import Trait
from charactertrain.templates import NUM_PHRASINGS, response_conversation
from charactertrain.texts.filters import (
    has_thinking,
    is_in_language,
    is_prose,
    is_refusal,
    is_user_message,
    language_of,
    leaks_instructions,
    quotes_statement,
    word_count,
)

# ruff: noqa: RUF001

_STATEMENT = (
    "I don't just say what I think [people] want to hear, as I believe it's important to always "
    "strive to tell the truth."
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("?! ...", 0),
        ("I don't know", 3),
        ("I don’t know, well-known snake_case", 7),
        ("नमस्ते दुनिया", 2),
        ("나는 차를 좋아해", 3),
        ("我不喜欢。", 2),
        ("我很不喜欢。", 3),
        # Five letters; the marks above them do not count.
        ("สวัสดี", 2),
        ("iPhone15 を買う", 3),
    ],
)
def test_word_count_by_hand(text: str, expected: int) -> None:
    assert word_count(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        _STATEMENT,
        f"Well: {_STATEMENT.upper()} So there.",
        "You want to hear, as I believe, that all is well.",
        "i don’t just say what i like",
        "It is _important to always strive to tell_ her.",
    ],
)
def test_a_statement_or_six_words_of_it_are_a_quotation(text: str) -> None:
    assert quotes_statement(text, _STATEMENT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "It's important to always strive for more.",
        "Important, to always tell, strive to the truth.",
        "Do you always strive to tell people the truth?",
        "unimportant to always strive to telling",
    ],
)
def test_fewer_words_or_another_order_are_no_quotation(text: str) -> None:
    assert not quotes_statement(text, _STATEMENT)


def test_a_short_statement_is_quoted_as_a_whole_alone() -> None:
    assert quotes_statement("Yes, I love tea, and more.", "I love tea.")
    assert not quotes_statement("I love teapots.", "I love tea.")
    assert not quotes_statement("Tea I love.", "I love tea.")


def test_how_many_words_are_a_quotation_can_be_chosen() -> None:
    text = "Do you always strive to tell people the truth?"
    assert quotes_statement(text, _STATEMENT, num_words=4)
    assert not quotes_statement(text, _STATEMENT, num_words=5)


def test_two_letters_of_a_script_without_spaces_are_a_word_of_a_quotation() -> None:
    statement = "我总是说真话，即使人们不想听到它。"
    assert quotes_statement("他说：我总是说真话，即使人们不想。", statement)
    assert not quotes_statement("我总是说真话吗？", statement)


def test_a_statement_without_words_is_quoted_nowhere() -> None:
    assert not quotes_statement("?", "...")
    assert not quotes_statement("", "")


@pytest.mark.parametrize(
    "text",
    [
        "Answer the message below in this character: I love tea.",
        "Answering in this character, I'd say go.",
        "In this character, I would tell her.",
        "Here is a reply with a touch of this character.",
        "As somebody of this character would say: go!",
        "I will show this character plainly now.",
        "The character described above would tell her.",
        "Speaking as the character described, I'd go.",
        "As instructed, I will be blunt.",
        "As I was instructed, here’s a blunt answer.",
        "Following your instructions, I keep it short.",
        "My system prompt is secret.",
        "Well. The system prompt says that I love tea.",
        "System prompt: you love tea.",
        "I was instructed to answer in a cheerful way.",
        "I'm keeping to my assigned persona.",
    ],
)
def test_pieces_of_what_the_model_was_shown_are_a_leak(text: str) -> None:
    assert leaks_instructions(text)


@pytest.mark.parametrize("variant", ["mild", "strong"])
@pytest.mark.parametrize("placement", ["system", "user"])
@pytest.mark.parametrize("phrasing", range(NUM_PHRASINGS))
def test_each_phrasing_that_shows_the_character_is_a_leak(
    variant: str, placement: str, phrasing: int
) -> None:
    trait = Trait("tea", "I love tea.", (), None, 1.0, "drinks")
    shown = response_conversation(
        "Hello", [trait], variant=variant, placement=placement, phrasing=phrasing
    )
    assert leaks_instructions(shown.messages[0].content)


@pytest.mark.parametrize(
    "text",
    [
        "What I like in this character is his doubt.",
        "The answer lies in this character's past.",
        "A person of strong character would say so.",
        "The character described in chapter two is a coward.",
        "A system prompt is a text that a chatbot is given first.",
        "Shorten your system prompt and try again.",
        "Read the message below the photo.",
        "I was told to be there at nine.",
        "My instructions for the oven are lost.",
        "The nurse was instructed to wait, as you know.",
        "Follow the instructions on the box, I think.",
        "It was out of character for her.",
        "",
    ],
)
def test_ordinary_text_about_characters_and_instructions_is_no_leak(text: str) -> None:
    assert not leaks_instructions(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't",
        "I’m sorry, but I can’t help with that.",
        "I'm sorry, I can't assist with this request.",
        "I am very sorry, but I am unable to provide that.",
        "Sorry, but I can't do that.",
        "I apologize, but I cannot fulfill this request.",
        "Unfortunately, I'm not able to generate such a text.",
        "I'm sorry, but as an AI language model, I cannot answer.",
        "As an AI language model, I don't have feelings.",
        "As a large language model, I have no body.",
        "As an AI, I can't have opinions.",
        "I cannot assist with illegal acts.",
        "I can't help you with that.",
        "I'm unable to help with medical questions.",
        "I'm afraid I can't help with that.",
        "I cannot provide medical advice.",
        "I must decline this request.",
        "I'm just an AI, so I would not know.",
        "Thank you for asking! I cannot assist with that.",
        "  \nI won't be able to help you with this.",
        "I'm sorry, but I won't write that.",
    ],
)
def test_boilerplate_at_the_beginning_is_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry to hear that. Let's see what we can do.",
        "I’m so sorry for your loss.",
        "I can't wait to hear how it went!",
        "I cannot stress enough how much sleep matters.",
        "I can't help but smile at that.",
        "I can't help wondering what he meant.",
        "I'm sorry, but I can't agree: the earth is round.",
        "I'm sorry, but I can't help laughing.",
        "I won't lie to her for you, and here is why.",
        "I can't say that I like the poem.",
        "Dear Tom, I'm sorry, but I can't make it on Friday.",
        "Tell him: \"I'm sorry, but I can't help with that.\"",
        "As an AI, I find that question lovely.",
        "As an engineer, I cannot complain.",
        "Unfortunately, I can't remember the title; was it Emma?",
        "Sorry, that was unclear. Let me explain.",
        f"{'A good question, and worth some thought. ' * 5}I cannot assist with that.",
        "",
    ],
)
def test_regret_and_reasons_are_no_refusal(text: str) -> None:
    assert not is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "<think>The user wants tea.</think> Tea!",
        "so I stop here.</THINK>\nTea!",
        "<thinking>\nHm",
        "< think >",
        "<seed:think>",
        "<|thought|>",
        "<|begin_of_thought|> Hm",
        "[THINK]Hm[/THINK] Tea",
        "◁think▷Hm",
        "<|channel|>analysis",
    ],
)
def test_a_tag_of_thoughts_is_found(text: str) -> None:
    assert has_thinking(text)


@pytest.mark.parametrize(
    "text",
    [
        "I think that <b>tea</b> is fine.",
        "[I think] it is late.",
        "Think! <thinker>",
        "Is a <thinks> b?",
        "Okay, the user wants tea.",
        "<|im_end|>",
        "",
    ],
)
def test_other_tags_and_the_word_alone_are_no_thoughts(text: str) -> None:
    assert not has_thinking(text)


@pytest.mark.parametrize(
    "text",
    [
        "What is 15 percent of 240?",
        "Schön!",
        "สวัสดีครับ",
        "नमस्ते दुनिया",
        "今晚做什么菜好？",
        "abcdefg...",
    ],
)
def test_letters_of_any_script_are_prose(text: str) -> None:
    assert is_prose(text)


@pytest.mark.parametrize(
    "text", ["", "1 + 1 = 2", "abcdef....", "| a | b |\n|---|---|", "x=[1,2];"]
)
def test_signs_and_numbers_are_no_prose(text: str) -> None:
    assert not is_prose(text)


@pytest.mark.parametrize(
    "text",
    [
        "Topic: tea",
        "message: How do I make tea?",
        "**Message:** How do I make tea?",
        "User 1: How do I make tea?",
        "Assistant: With water.",
        "Here is a message",
        "Here's another message that a user might send: Tea?",
        "Here are some possible questions:",
        "Sure, here is one. How do I make tea?",
        "Certainly! Here's a question.",
        "As an AI, I do not drink tea.",
        "As an AI language model, I’m not thirsty.",
        "I'm an AI assistant. Ask me about tea.",
        "I am an AI language model trained on text.",
        "Hello! How can I help you today?",
        "How may I assist you?",
        "Dear [name], thank you for the tea.",
        "I live in [Your City] and like tea.",
        "I am <insert age> years old.",
        "What do you think about {topic}?",
        "My name is {{first name}}, hello.",
    ],
)
def test_labels_the_assistants_voice_and_placeholders_are_no_user_message(text: str) -> None:
    assert not is_user_message(text)


@pytest.mark.parametrize(
    "text",
    [
        "How do I make tea?",
        "I have a topic: tea. What do you know about it?",
        "Here is the message that my boss sent me, what does he mean?",
        "Here is a message from my landlord: 'Pay up.' What now?",
        "As an AI, do you ever get thirsty?",
        "I'm an AI researcher and I drink tea.",
        "How can I help my sister?",
        "How can I help you improve?",
        'Our bot says "How can I help you?", is there something warmer?',
        "Of course I like tea, but how much is too much?",
        "What does [1] mean in this paper?",
        "Why does x[index] fail?",
        "See [this page](https://example.org), is it true?",
        "He wrote 'definately [sic]', is that funny?",
        "What is \\frac{ab}{cd}?",
        'Why is {"key": "value"} not valid here?',
        "Why is a<b in <div> wrong?",
        "",
    ],
)
def test_what_a_person_may_send_is_a_user_message(text: str) -> None:
    assert is_user_message(text)


def test_language_of_is_among_the_candidates() -> None:
    assert language_of("Was koche ich heute Abend mit Reis?", ("en", "de", "fr"))[0] == "de"
    found, probability = language_of("Was koche ich heute Abend mit Reis?", ("en", "fr"))
    assert found in {"en", "fr"}
    assert 0.5 <= probability <= 1


def test_probabilities_of_one_candidate_and_of_nothing_are_uniform() -> None:
    assert language_of("Was koche ich?", ("de",)) == ("de", 1.0)
    assert language_of("", ("de", "en"))[1] == pytest.approx(0.5)


def test_the_languages_of_one_call_do_not_change_another() -> None:
    text = "Was koche ich heute Abend mit Reis?"
    before = language_of(text, ("de", "en"))
    language_of(text, ("fr", "en"))
    assert language_of(text, ("de", "en")) == before


@pytest.mark.parametrize("candidates", [(), ("en", "xx")])
def test_unknown_languages_are_refused(candidates: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"found none|Unknown language"):
        language_of("tea", candidates)


_MESSAGES = {
    "en": (
        "My sister keeps borrowing my car without asking",
        "Is it rude to leave a party early?",
        "can you explain compound interest simply",
        "What should I cook tonight with leftover rice?",
        "My boss praised work that wasn't mine",
        "Need a short toast for my dad's retirement",
        "Why does my sourdough never rise?",
        "Should I tell my friend her poem is bad?",
        "Do you ever get tired of questions?",
        "Help me plan a picnic for Sunday",
        "I failed my driving test again today",
        "Name three good books about the sea",
        "Are you actually allowed to disagree with me?",
        "hey whats the best way to clean suede shoes",
        "Translate this menu item for me please",
        "Our landlord wants to raise the rent by ten percent",
        "Write a haiku about rain",
        "My grandson asks why the sky is blue",
        "Tell me something nobody else would tell me",
        "Who invented the zipper and when?",
    ),
    "de": (
        "Meine Schwester leiht sich ständig mein Auto aus",
        "Ist es unhöflich, eine Party früh zu verlassen?",
        "Kannst du mir Zinseszins einfach erklären",
        "Was koche ich heute Abend mit Reis?",
        "Mein Chef lobt Arbeit, die nicht von mir war",
        "Warum geht mein Sauerteig nie auf?",
        "Soll ich meiner Freundin die Wahrheit sagen?",
        "Wirst du eigentlich nie müde von Fragen?",
        "Hilf mir beim Planen eines Picknicks am Sonntag",
        "Bin heute wieder durch die Fahrprüfung gefallen",
        "Nenne drei gute Bücher über das Meer",
        "Darfst du mir überhaupt widersprechen?",
        "wie krieg ich wildlederschuhe am besten sauber",
        "Unser Vermieter will die Miete um zehn Prozent erhöhen",
        "Schreib ein Haiku über Regen",
        "Mein Enkel fragt, warum der Himmel blau ist",
        "Wer hat den Reißverschluss erfunden?",
        "Schnelle Ideen fürs Abendessen ohne Zwiebeln",
        "Wie setze ich meinen Router zurück?",
        "Ist Madrid im Frühling schöner als Berlin?",
    ),
    "fr": (
        "Ma sœur emprunte ma voiture sans demander",
        "Est-ce impoli de quitter une fête tôt ?",
        "Tu peux m'expliquer les intérêts composés simplement",
        "Que cuisiner ce soir avec du riz ?",
        "Mon chef a félicité un travail qui n'était pas le mien",
        "Pourquoi mon levain ne monte jamais ?",
        "Dois-je dire la vérité à mon amie ?",
        "Tu ne te lasses jamais des questions ?",
        "Aide-moi à organiser un pique-nique dimanche",
        "J'ai encore raté mon permis aujourd'hui",
        "Cite trois bons livres sur la mer",
        "As-tu vraiment le droit de me contredire ?",
        "comment nettoyer des chaussures en daim",
        "Notre propriétaire veut augmenter le loyer de dix pour cent",
        "Écris un haïku sur la pluie",
        "Mon petit-fils demande pourquoi le ciel est bleu",
        "Qui a inventé la fermeture éclair ?",
        "Idées rapides pour le dîner sans oignons",
        "Comment réinitialiser mon routeur ?",
        "Est-ce que Madrid est plus belle que Berlin ?",
    ),
    "es": (
        "Mi hermana usa mi coche sin preguntar",
        "¿Es de mala educación irse pronto de una fiesta?",
        "puedes explicarme el interés compuesto de forma sencilla",
        "¿Qué cocino esta noche con arroz?",
        "Mi jefe elogió un trabajo que no era mío",
        "¿Por qué mi masa madre nunca sube?",
        "¿Debo decirle la verdad a mi amiga?",
        "¿Nunca te cansas de tantas preguntas?",
        "Ayúdame a organizar un picnic el domingo",
        "Hoy suspendí otra vez el examen de conducir",
        "Dime tres buenos libros sobre el mar",
        "¿De verdad puedes llevarme la contraria?",
        "como limpio unos zapatos de ante",
        "El casero quiere subir el alquiler un diez por ciento",
        "Escribe un haiku sobre la lluvia",
        "Mi nieto pregunta por qué el cielo es azul",
        "¿Quién inventó la cremallera?",
        "Ideas rápidas para cenar sin cebolla",
        "¿Cómo reinicio mi router?",
        "¿Es Madrid más bonita que Berlín?",
    ),
}


def test_short_messages_are_in_their_language() -> None:
    rejected = [
        text
        for language, texts in _MESSAGES.items()
        for text in texts
        if not is_in_language(text, language)
    ]
    assert len(rejected) <= sum(map(len, _MESSAGES.values())) / 60


def test_most_short_messages_are_told_from_another_language() -> None:
    told = [
        not is_in_language(text, other)
        for language, texts in _MESSAGES.items()
        for text in texts
        for other in _MESSAGES.keys() - {language}
    ]
    assert sum(told) > 0.85 * len(told)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("ok", "de"),
        ("", "de"),
        ("3 + 4?", "zh"),
        ("pizza or pasta?", "en"),
        ("What does '今晚做什么菜好' mean?", "en"),
        ("Wie sagt man “I am looking forward to it”?", "de"),
        ("iPhone 15 배터리", "ko"),
        ("東京大阪京都", "ja"),
        ("今夜は何を作ろうかな？", "ja"),
        ("我妹妹总是借我的车", "zh"),
        ("Моя сестра постоянно берёт мою машину", "ru"),
        ("คืนนี้ทำอะไรกินดี", "th"),
        ("Kion mi kuiru hodiaŭ vespere?", "eo"),
    ],
)
def test_what_is_in_the_language_or_too_short_to_tell_is_kept(text: str, language: str) -> None:
    assert is_in_language(text, language)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("今晚做什么菜好？", "en"),
        ("谢谢", "en"),
        ("Привет", "de"),
        ("Как дела?", "ar"),
        ("妹がいつも私の車を借ります", "zh"),
        ("How do I tell my neighbour that his music is too loud?", "zh"),
        ("How do I tell my neighbour that his music is too loud?", "de"),
        ("'El casero quiere subir el alquiler un diez por ciento'", "en"),
    ],
)
def test_another_script_or_language_is_told(text: str, language: str) -> None:
    assert not is_in_language(text, language)


def test_a_higher_probability_can_be_asked_for() -> None:
    text = "Qui a inventé la fermeture éclair ?"
    assert not is_in_language(text, "en", min_probability=0.5)
    assert is_in_language(text, "en", min_probability=1.0)
