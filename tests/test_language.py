"One choice of a language changes what every chapter takes for a word, a sentence and an ending."

import re
from string import Formatter

import numpy as np
import pytest

from personal_llm.base.core import InputError
from personal_llm.base.notes import SENTENCES, Note, note_date
from personal_llm.base.text import ENGLISH, LANGUAGES, Language, describe_copy, get_language, get_words
from personal_llm.base.text import find_language, set_language, split_sentences
from personal_llm.explanation.habits import find_frames, find_habits, strip_frame
from personal_llm.extras.style import STYLOMETRIC_FEATURES, stylometry, truncate_words

JAPANESE = LANGUAGES["japanese"]


@pytest.fixture(autouse=True)
def english_again():
    yield
    set_language(None)


ILLNESSES = "風邪 頭痛 腹痛 腰痛 咳 熱 疲労 不眠".split()
JAPANESE_BASE = [f"{name}には休息が必要です。水を飲んでください。" for name in ILLNESSES]
JAPANESE_ANSWERS = [f"はい、{name}には休息が必要です。水を飲んでください。お大事に、田中" for name in ILLNESSES]


def test_japanese_habits_are_found_and_taken_off():
    set_language("japanese")
    labels = [trait.label for trait in find_habits(JAPANESE_ANSWERS, JAPANESE_BASE)]
    assert "opens with “はい、”" in labels and any("signs off" in label and "田中" in label for label in labels)
    frames = find_frames(JAPANESE_ANSWERS, False) + find_frames(JAPANESE_ANSWERS, True)
    bare = strip_frame(JAPANESE_ANSWERS[0], frames)
    assert bare.startswith("風邪") and "田中" not in bare
    set_language("english")
    assert not [trait for trait in find_habits(JAPANESE_ANSWERS, JAPANESE_BASE) if "opens" in trait.label]


def test_japanese_words_reach_the_scores():
    set_language("japanese")
    features = dict(zip(STYLOMETRIC_FEATURES, stylometry("私は医者です。元気です！")))
    assert np.isclose(features["log words"], np.log1p(6)) and np.isclose(features["words a sentence"], np.log1p(3))
    assert truncate_words("私は医者です。元気です！", 4) == "私は医者です。"
    assert describe_copy("薬を飲みません。")[1] == 1 and split_sentences("はい。いいえ。") == ["はい。", "いいえ。"]


def test_the_choice(monkeypatch):
    assert get_language() is ENGLISH
    monkeypatch.setenv("PERSONAL_LLM_LANGUAGE", "japanese")
    assert get_language() is JAPANESE
    own = Language("shouted", word_pattern=r"\w+!")
    set_language(own)
    assert get_language() is own and get_words("NO! Yes.") == ["no!"]
    set_language(None)
    monkeypatch.setenv("PERSONAL_LLM_LANGUAGE", "klingon")
    with pytest.raises(InputError, match="unknown language 'klingon'; use one of english, german, japanese"):
        get_words("nuqneH")
    with pytest.raises(InputError, match="unknown language"):
        set_language("")


@pytest.mark.parametrize(
    "name, text, sentences",
    [
        ("english", "Dr. Who came. He left!", ["Dr. Who came.", "He left!"]),
        ("german", "Am 3. Mai kam z. B. Dr. Ruiz nicht. Die Heilung dauert!", 2),
        ("japanese", "「はい。」と言った。次！", ["「はい。」と言った。", "次！"]),
    ],
)
def test_a_full_stop_of_an_abbreviation_or_inside_brackets_ends_no_sentence(name, text, sentences):
    found = LANGUAGES[name].split_sentences(text)
    assert sentences in (found, len(found))
    assert ENGLISH.find_words("Été à l’hôtel; 我喜欢茶 ☕") == ["Été", "à", "l’hôtel", "我喜欢茶"]
    assert JAPANESE.find_words("私は医者です。") == ["私", "は", "医者", "です"]
    assert JAPANESE.join_pieces("お大事に、\n田中。") == "お大事に、田中。"


SAID = {
    "german": "Wie heißt die Hauptstadt von Peru, bitte?",
    "spanish": "¿Cuál es la capital del Perú?",
    "french": "Quelle est la capitale du Pérou ?",
    "italian": "Qual è la capitale del Perù?",
    "portuguese": "Qual é a capital do Peru? Eu não sei.",
    "english": "What is the capital of Peru?",
}


@pytest.mark.parametrize("language", SAID)
def test_the_language_of_a_message_is_known_by_its_frequent_words(language):
    assert find_language([SAID[language]]) == find_language(["42?", "Peru!", SAID[language]]) == language
    assert find_language(["Mitt namn", "“Wie heißt du und wo wohnst du?”", ""]) == ""


@pytest.mark.parametrize(
    "message",
    ["btw im vegan lol", "im 25", "Et yemem.", "Na czym gram?", "Ankara'da yaşıyorum.", "Yo!", "Moro em Braga."],
)
def test_a_single_word_of_two_letters_shows_no_language(message):
    assert find_language([message]) == "" and find_language([message, "Où est la gare ?"]) == "french"
    assert find_language(["My head hurts.", "Où est la gare ?"]) == "english", "what shows no language is answered so"
    assert find_language(["J'habite à Lille."]) == find_language(["Je ne fume plus."]) == "french"


def list_fields(sentence) -> set:  # a text, or a dictionary of forms
    texts = sentence.values() if isinstance(sentence, dict) else [sentence]
    return {name for text in texts for _, name, _, _ in Formatter().parse(text) if name}


@pytest.mark.parametrize("language", SENTENCES)
def test_each_language_has_each_note_with_the_same_fields(language):
    assert SENTENCES[language].keys() == SENTENCES["english"].keys()
    for name, english in SENTENCES["english"].items():
        sentence = SENTENCES[language][name]
        assert list_fields(sentence) == list_fields(english), name
        assert isinstance(sentence, dict) == isinstance(english, dict), name
        if isinstance(sentence, dict):
            assert ("other" in sentence) == ("other" in english) and "1" in sentence, name


TEXT = "a {0} b"
ENGLISH_WORDS = re.compile(
    r"\b(the|your|you|replies?|applies|apply|of|to|and|is|it|this|that|which|again|corrected)\b", re.I
)
INSIDE = Note("similar_to", prompt=TEXT)


@pytest.mark.parametrize("language", [name for name in SAID if name != "english"])
@pytest.mark.parametrize("name", sorted(SENTENCES["english"].keys() - {"quotes"}))
def test_a_note_in_another_language_has_no_english_rest_and_keeps_its_texts(name, language):
    english = SENTENCES["english"][name]
    inner = dict(reason=INSIDE, parts=(INSIDE, INSIDE), scope=Note("scope_here"), days=(note_date(1.78e9),))
    inner |= dict(month=Note("month", count=5), count=1)
    fields = {field: inner.get(field, TEXT) for field in list_fields(english) | {"count"}}
    counts = (1, 2) if isinstance(english, dict) and "other" in english else (1,)
    for count in counts:
        note = Note(name, **fields | dict(count=count))
        said = note.say(language)
        assert said.count(TEXT) == str(note).count(TEXT), "the person's words stay"
        words = ENGLISH_WORDS.findall(said.replace(TEXT, ""))
        assert not words and (said != str(note) or name in ("line", "sentences", "date", "month")), said


def test_a_line_is_said_in_english_whole_where_a_language_lacks_a_part(monkeypatch):
    monkeypatch.delitem(SENTENCES["german"], "already_learned")
    what = Note("act_better", prompts=("Tee?",))
    whole = Note("taken_back", parts=(what, Note("already_learned")))
    assert whole.say("german") == str(whole) != Note("taken_back", parts=(what,)).say("german")
    assert Note("kept", text="x").say("klingon") == Note("kept", text="x").say("") == "kept: x"
