"The published summariser: a planted one, and twins that compute the slow way."

from types import SimpleNamespace

import numpy as np
import pytest

from personal_llm.base.core import Cost, InputError
from personal_llm.explanation.decomposition import (
    ADJECTIVES,
    ADJECTIVE_PATTERN,
    MIN_ADJECTIVE_SHARE,
    NON_STYLE_WORDS,
    SUMMARY_PROMPT,
    _parse_first_word,
    _fit_summary_prompts,
    candidate_words,
    first_word_probabilities,
    is_adjective,
    neutral_pairs,
    summary_states,
    word_vector,
)
from tiny import ARCHITECTURES, shared

PAIRS = [
    ("Hi?", "Yes.", "No."),
    ("What is a cell?", "A cell is the smallest unit of life, and there are many kinds of it.", "A cell."),
    ("Why?", "Because {it} is <|end|> so.", "I do not know."),
    ("Who?", "", "Ana."),
]


# the shift


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_state_is_what_the_output_layer_reads_alone_and_in_a_batch(architecture):
    import torch

    model = replace_length(shared(architecture), 256)
    together = summary_states(model, PAIRS)
    for pair, state in zip(PAIRS, together):
        ids = _fit_summary_prompts(model, [pair])[0]
        with torch.inference_mode():
            got = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        assert np.allclose(state, got.hidden_states[-1][0, -1], atol=1e-4)
        assert torch.allclose(model.model.get_output_embeddings()(torch.tensor(state)), got.logits[0, -1], atol=1e-3)
    model.tokens_per_batch = 300  # two rows
    assert np.allclose(summary_states(model, PAIRS), together, atol=1e-4)


def replace_length(model, max_length):  # the same model that reads more
    out = object.__new__(type(model))
    out.__dict__.update(model.__dict__, max_length=max_length, cost=Cost())
    return out


def test_prompt_ends_where_the_answer_begins_and_keeps_its_texts():
    for architecture in ARCHITECTURES:
        model = replace_length(shared(architecture), 256)
        ids = _fit_summary_prompts(model, PAIRS[2:3])[0]
        text, tokenizer = model.tokenizer.decode(ids), model.tokenizer
        expected = tokenizer.apply_chat_template(
            [dict(role="user", content="x")], tokenize=False, add_generation_prompt=True
        ).split("x")[-1]
        assert (
            text.endswith(expected)
            and "Response 1: Because {it} is <|end|> so." in text
            and "Response 2: I do not know." in text
        )
        assert text.index("Question:") < text.index("Response 1: ") < text.index("Response 2: ")
    assert (
        "which language style is more characteristic of Response 1 than Response 2? Reply with only one adjective."
        in SUMMARY_PROMPT
    )


@pytest.mark.parametrize(
    "pair", [("w " * 900, "a " * 900, "b " * 900), ("q", "a " * 900, "b"), ("q", "é😀" * 300, "<|end|>" * 300)]
)
def test_long_texts_are_cut_and_the_instruction_is_not(pair):
    model = replace_length(shared("llama"), 200)
    ids = _fit_summary_prompts(model, [pair])[0]
    text = model.tokenizer.decode(ids)
    assert (
        len(ids) <= 200
        and text.count("Reply with only one adjective.") == 1
        and "Response 2: " + pair[2][:6] in text
        and text.endswith("<|assistant|>")
    )


def test_bad_pairs():
    model = replace_length(shared("llama"), 256)
    for pairs in ([], [("q", "a")], [("q", None, "b")]):
        with pytest.raises(InputError):
            summary_states(model, pairs)
    with pytest.raises(InputError, match="max_length"):
        summary_states(replace_length(model, 60), PAIRS)


# words


class Chain:
    "A language model whose next token depends on the last one only."

    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, size, first, after):
        self.size, self.first, self.after = size, first, after

    def __call__(self, input_ids, past_key_values=None, **kw):
        import torch

        logits = torch.full((*input_ids.shape, self.size), -1e9)
        for b, row in enumerate(input_ids.tolist()):
            table = self.first if past_key_values is None else self.after.get(row[-1], {0: 1.0})
            for token, p in table.items():
                logits[b, -1, token] = float(np.log(p))
        return SimpleNamespace(
            logits=logits, past_key_values=past_key_values or SimpleNamespace(batch_repeat_interleave=lambda n: None)
        )


def chain(words, first_token_share=None):  # summariser that says each of {text: probability}, then ends
    tokenizer = shared("llama").tokenizer
    first, after = {}, {}
    for text, p in words.items():
        ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        first[ids[0]] = first.get(ids[0], 0) + p
        for a, b in zip(ids, ids[1:]):
            after.setdefault(a, {b: 0.8, 5: 0.2})
    return SimpleNamespace(
        model=Chain(len(tokenizer), first, after),
        tokenizer=tokenizer,
        device="cpu",
        cost=Cost(),
        max_length=256,
        name="planted",
    )


def test_candidates_of_a_planted_summariser_by_hand():
    "A word has its first token's probability times 0.8 for each further token; case and a leading space do not matter."
    tokenizer = shared("llama").tokenizer
    said = {"Concise": 0.4, "The": 0.2, " formal": 0.15, "Formal": 0.1, "Same": 0.1, "ok": 0.05}
    model = chain(said)
    tokens = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])
    got = dict(candidate_words(model, PAIRS))
    assert got == pytest.approx(
        {
            "concise": 0.4 * 0.8 ** (tokens("Concise") - 1),
            "formal": 0.15 * 0.8 ** (tokens(" formal") - 1) + 0.1 * 0.8 ** (tokens("Formal") - 1),
        }
    )
    assert list(got) == sorted(got, key=got.get, reverse=True) and tokens("Concise") > 1, (
        "the test is about words of several tokens"
    )
    assert dict(first_word_probabilities(model, PAIRS))["the"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "said",
    [
        {"The": 0.6, "Response": 0.4},
        {"7": 0.5, "!!": 0.5},
        {"The": 1 - MIN_ADJECTIVE_SHARE / 2, "Kind": MIN_ADJECTIVE_SHARE / 2},
    ],
)
def test_nonsense_is_refused_with_the_remedy(said):
    with pytest.raises(InputError, match="larger instruct model, or the style space"):
        candidate_words(chain(said), PAIRS[:2])
    assert candidate_words(chain({"The": 0.8, "Kind": 0.2}), PAIRS[:2])[0][0] == "kind"


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_first_words_against_a_naive_twin(architecture):
    "Without a cache: each continuation read again from the beginning."
    import torch

    model = replace_length(shared(architecture), 250)
    stops, total = {model.tokenizer.eos_token_id}, {}
    logs = lambda ids: model.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(0)
    with torch.inference_mode():
        for pair in PAIRS[:2]:
            row = _fit_summary_prompts(model, [pair])[0]
            value, token = logs(row).topk(6)
            for v, t in zip(value.tolist(), token.tolist()):
                ids, values = [t], [v]
                for _ in range(5):
                    best = logs(row + ids).max(0)
                    ids.append(int(best.indices))
                    values.append(float(best.values))
                word = _parse_first_word(model.tokenizer, ids, stops)
                if word:
                    total[word[0]] = total.get(word[0], 0) + np.exp(sum(values[: word[1]])) / 2
    assert total and dict(first_word_probabilities(model, PAIRS[:2], num_first_tokens=6)) == pytest.approx(
        total, rel=1e-3
    )


def test_whole_words_only():
    tokenizer = shared("llama").tokenizer
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    word = lambda text, end=(): _parse_first_word(tokenizer, ids(text) + list(end), {tokenizer.eos_token_id})
    assert (
        word("Concise", [tokenizer.eos_token_id])[0] == "concise"
        and word("**Formal**, yes")[0] == "formal"
        and word('"Warm" is')[0] == "warm"
        and word("Zärtlich.")[0] == "zärtlich"
    )
    assert (
        word("Concise") is None
        and word("well-written text") is None
        and word("don't know") is None
        and word("123 !", [tokenizer.eos_token_id]) is None
    )
    n = word("formal and", [tokenizer.eos_token_id])[1]
    assert tokenizer.decode(ids("formal and")[:n]) == "formal" and n <= len(ids("formal"))


def test_adjectives():
    assert (
        len(ADJECTIVES) >= 200
        and all(w.isalpha() and w == w.lower() and len(w) >= 3 for w in ADJECTIVES)
        and not ADJECTIVES & NON_STYLE_WORDS
    )
    for word in ("Concise", "graceful", "artless", "humorous", "burlesque", "paradoxical", "agreeable", "abrasive"):
        assert is_adjective(word), word
    for word in (
        "",
        "it",
        "the",
        "similar",
        "same",
        "response",
        "vegetable",
        "believe",
        "form-al",
        "warm1",
        "conc",
        "ful",
        "able",
        "five",
        "live",
    ):
        assert not is_adjective(word), word
    assert not ADJECTIVE_PATTERN.match("table") and not is_adjective("music")


# word vectors


def test_word_vector_is_the_shift_of_the_two_texts():
    model = replace_length(shared("llama"), 256)
    asked, prompts = [], ["Why?", "Who?"]
    model.generate = lambda texts, **kw: (
        asked.append((texts, kw)) or [("styled " if "poetic" in t else "plain ") + t[-4:] for t in texts]
    )
    vector = word_vector(model, "poetic", prompts)
    assert all("poetic" in t and p in t for t, p in zip(asked[0][0], prompts)) and not any(
        "poetic" in t for t in asked[1][0]
    )
    pairs = [(p, f"styled {p[-4:]}", f"plain {p[-4:]}") for p in prompts]
    assert np.allclose(vector, summary_states(model, pairs).mean(0), atol=1e-5)
    for word, few in ((" ", prompts), ("kind", [])):
        with pytest.raises(InputError, match="a word's vector needs"):
            word_vector(model, word, few)


def test_neutral_pairs_are_default_answers():
    model = shared("llama")
    pairs = neutral_pairs(model, ["Why?", "Who?"], seed=1)
    assert [a for _, _, a in pairs] == model.generate(["Why?", "Who?"], max_new_tokens=48)
    assert [a for _, a, _ in pairs] != [a for _, a, _ in neutral_pairs(model, ["Why?", "Who?"], seed=2)]
