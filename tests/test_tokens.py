"Masks, cuts, hostile text, batches: a dialogue on its way to numbers, under five chat templates."

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny import TEMPLATES, shared, tiny_tokenizer

from personal_llm.base.core import Dialogue, InputError
from personal_llm.base.models import load_model
from personal_llm.base.tokens import MAX_CHARACTERS_PER_TOKEN, encode_dialogue, encode_prompt, make_batches
from personal_llm.base.tokens import split_template

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
WHOLE = 100_000  # tokens: room for everything


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request):
    return tiny_tokenizer(request.param)


@pytest.fixture(scope="module")
def trimming():
    return tiny_tokenizer("trimming")


def learned(sample):
    return [token for token in sample["labels"] if token != -100]


# ---- text of users


def test_text_that_looks_like_our_placeholders(trimming):
    d = Dialogue("\ue0000\ue001 and \ue0001\ue001", "\ue0001\ue001")
    assert trimming.decode(encode_dialogue(trimming, d)["input_ids"]).count("\ue0001\ue001") == 2


def test_lone_surrogates_are_read_as_a_mark(trimming):
    "Half an emoji comes out of files that were cut; no tokenizer takes it."
    d = Dialogue("half \ud83d here", "\udc00 and whole \U0001f600", history=[("user", "\ud800"), ("assistant", "ok")])
    read = trimming.decode(encode_dialogue(trimming, d)["input_ids"])
    assert "half � here" in read and "� and whole \U0001f600" in read
    assert trimming.decode(encode_prompt(trimming, d, WHOLE)["input_ids"]).count("�") == 2


@pytest.mark.parametrize("template", ["m['content'] + m['content']", "raise_exception('only system here')"])
def test_templates_that_repeat_or_refuse_a_message_are_refused(template, trimming, monkeypatch):
    monkeypatch.setattr(trimming, "chat_template", "{% for m in messages %}{{ " + template + " }}{% endfor %}")
    with pytest.raises(InputError, match="template"):
        encode_dialogue(trimming, Dialogue("a", "b"))


class PanicException(BaseException):
    "Like that of a library in Rust, which is no `Exception`."


@pytest.mark.parametrize(
    "error, line",
    [
        (PanicException("index out of bounds: the len is 3"), "a library stopped .index out of bounds"),
        (MemoryError(), r"refuses this dialogue \(MemoryError\)"),
    ],
    ids=("a panic", "without words"),
)
def test_an_error_of_the_tokenizer_is_one_line(error, line, trimming, monkeypatch):
    def fail(*given, **options):
        raise error

    monkeypatch.setattr(trimming, "apply_chat_template", fail)
    with pytest.raises(InputError, match=line):
        encode_dialogue(trimming, Dialogue("a", "b"))


# ---- the mask


@pytest.mark.parametrize("template", ["plain", "chatml-marked"])
@given(TEXTS, TEXTS)
@settings(max_examples=40, deadline=None)
def test_mask_is_that_of_transformers(template, prompt, response):
    "Where the template marks the assistant's words, transformers computes the mask itself."
    tokenizer = shared("gpt2" if template == "plain" else "smollm", template).tokenizer
    marks = tokenizer.all_special_tokens  # transformers reads them in a text as control tokens, and we as text
    assume(not any(mark in text for mark in marks for text in (prompt, response)))
    d = Dialogue(prompt, response)
    theirs = tokenizer.apply_chat_template(d.messages(), return_dict=True, return_assistant_tokens_mask=True)
    ours = encode_dialogue(tokenizer, d)
    n = len(ours["input_ids"])
    assert ours["input_ids"] == list(theirs["input_ids"])[:n] and not any(theirs["assistant_masks"][n:])
    assert [int(label != -100) for label in ours["labels"]] == list(theirs["assistant_masks"])[:n]
    assert all(label in (-100, i) for i, label in zip(ours["input_ids"], ours["labels"]))


# ---- cuts


@given(length=st.integers(12, 120), words=st.integers(0, 60), pairs=st.integers(0, 4), system=st.booleans())
@example(length=36, words=57, pairs=0, system=False)  # two characters clipped, and the seam
@settings(max_examples=40, deadline=None)
def test_old_turns_go_first_then_the_prompt_then_the_answer(tokenizer, length, words, pairs, system):
    history = [("system", "rule")] * system + [
        (role, f"{role[0]}{n} " * 9) for n in range(pairs) for role in ("user", "assistant")
    ]
    d = Dialogue("word " * words + "last?", "The answer.", history=history)
    whole = encode_dialogue(tokenizer, d, WHOLE)
    alone = encode_dialogue(tokenizer, Dialogue(d.prompt, d.response), WHOLE)
    bare = len(encode_dialogue(tokenizer, Dialogue("x", d.response), WHOLE)["input_ids"]) - len(learned(whole)) - 1
    try:
        sample = encode_dialogue(tokenizer, d, length)
    except InputError:
        assert length <= bare + 1  # the template's own words fill it
        return
    read, size = tokenizer.decode(sample["input_ids"]), len(sample["input_ids"])
    gone = len(whole["input_ids"]) - size
    assert whole["num_truncated"] == 0 and size <= length
    is_clipped = len(d.prompt) > MAX_CHARACTERS_PER_TOKEN * length  # within a word, before any token is counted
    assert 0 < sample["num_truncated"] <= gone + 1 + is_clipped or sample["num_truncated"] == gone == 0, (
        "what is left may need a token more at the seam, and one where characters were clipped"
    )
    kept = [n for n in range(pairs) if f"u{n} " in read]
    assert kept == list(range(pairs))[pairs - len(kept) :], "the oldest go first"
    assert all(read.count(f"{who}{n} ") == 9 for n in kept for who in "ua"), "turns are whole, questions with answers"
    assert not any(f"a{n} " in read for n in range(pairs) if n not in kept), "no answer without its question"
    if read.count("word") < words:
        assert not kept and "rule" not in read and len(alone["input_ids"]) > length, "the prompt goes after the turns"
    if learned(sample) != learned(whole):
        assert "word" not in read, "the answer goes last"
        assert learned(sample) == learned(whole)[: len(learned(sample))]
    if len(whole["input_ids"]) <= length:
        assert sample == whole


class Seen:
    "A tokenizer that counts the characters it was given."

    def __init__(self, tokenizer):
        self.tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, text, **settings):
        self.characters += len(text)
        return self.tokenizer(text, **settings)


ROLES = ("user", "assistant")


class Turns(tuple):
    "A history that counts the turns somebody looked at."

    looks = 0

    def __getitem__(self, place):
        Turns.looks += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("answer", [True, False])
def test_what_cannot_fit_is_never_looked_at(answer, trimming):
    "8,000 turns and messages of ten megabytes: the tokenizer sees what could fit, no more."
    megabytes, pairs = "x y " * 2_500_000, [(role, text) for text in ("", "as I said", "so " * 3000) for role in ROLES]
    chats = [Turns(pairs[n : n + 2] * 4000) for n in (0, 2, 4)] + [Turns([("user", megabytes)])]
    dialogues = [Dialogue(megabytes, "so."), Dialogue("and?", megabytes), *(Dialogue("and?", "so.") for _ in chats)]
    for dialogue, turns in zip(dialogues[2:], chats):
        object.__setattr__(dialogue, "history", turns)
    for dialogue in dialogues:
        Turns.looks, seen = 0, Seen(trimming)
        sample = encode_dialogue(seen, dialogue, 64) if answer else encode_prompt(seen, dialogue, 64)
        assert len(sample["input_ids"]) <= 64 and Turns.looks < 300
        assert seen.characters < 16 * 64 * MAX_CHARACTERS_PER_TOKEN
        assert sample["num_truncated"] > 0 or (dialogue.response == megabytes and not answer)


# ---- batches


@given(st.lists(st.integers(1, 90), max_size=400), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_batches_are_bounded_by_tokens(lengths, tokens):
    found = make_batches(lengths, tokens)
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
        assert max(batch) - min(batch) < 128, "near the original order"


@pytest.mark.parametrize(
    "dialogue, max_length, line",
    [
        (Dialogue("a", ""), 64, "its response is empty, so there is nothing to learn"),
        (Dialogue("word " * 60, "The answer."), 1, "no response token fits into 1 tokens; raise max_length"),
        ("a text", 64, "str isn't a dialogue; make one with Dialogue"),
        (Dialogue("a", "b"), 0, "max_length is 0; give a whole number of tokens, 1 or more"),
    ],
)
def test_what_cannot_be_a_sample_is_one_line(dialogue, max_length, line, trimming):
    with pytest.raises(InputError, match=line):
        encode_dialogue(trimming, dialogue, max_length)


class Forgetful:
    "A tokenizer whose template writes the last message alone."

    def apply_chat_template(self, messages, **settings):
        return messages[-1]["content"]


class Strict:
    "A tokenizer whose template takes users and assistants in turn, the user first."

    chat_template = ""

    def apply_chat_template(self, messages, **settings):
        for i, message in enumerate(messages):
            if message["role"] != ("user", "assistant")[i % 2]:
                raise ValueError("roles must alternate")
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)


THINKS = """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|><think>
{% endif %}"""


@pytest.mark.parametrize("mark", ["<think>", "[THINK]", "◁think▷", "<seed:think>"])
def test_a_template_that_begins_with_a_thought_asks_as_it_trains(mark):
    model = load_model("pocket", chat_template=THINKS.replace("<think>", mark))
    d = Dialogue("Is it?", "Yes.", [("user", "Hi"), ("assistant", "Hello")])
    sample = model.encode(d)
    first = next(place for place, label in enumerate(sample["labels"]) if label != -100)
    before = model.tokenizer.decode(sample["input_ids"][:first])
    assert before.endswith(f"{mark}\n\n{mark[0]}/{mark[1:]}\n\n")
    assert before == model.tokenizer.decode(model.encode_prompts([d], 200)[0])
    assert model.tokenizer.decode([label for label in sample["labels"] if label != -100]).startswith("Yes.")


def test_a_thought_whose_end_is_unknown_is_refused():
    model = load_model("pocket", chat_template=THINKS.replace("<think>", "<|begin_of_thought|>"))
    with pytest.raises(InputError, match="begin with a thought .*; give load_model another chat_template"):
        model.encode_prompts(["Hi"], 200)


def test_a_strict_template_gets_turns_that_alternate_and_each_content_keeps_its_owner():
    turns = [("system", "Be kind."), ("assistant", "Welcome!"), ("user", "Hi"), ("user", "You there?")]
    talk = Dialogue("And now?", "Now it rains.", history=[*turns, ("assistant", "Hello.")])
    pieces = split_template(Strict(), talk.messages())
    assert "".join(text for text, _ in pieces) == (
        "<user>Be kind.\n\nHi\n\nYou there?<assistant>Hello.<user>And now?<assistant>Now it rains."
    )
    assert [owner for _, owner in pieces if owner is not None] == [0, 2, 3, 4, 5, 6]
    with pytest.raises(InputError, match="drops or repeats the system message; give load_model another chat_template"):
        split_template(Forgetful(), talk.messages())
