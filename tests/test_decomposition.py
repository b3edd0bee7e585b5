"The published basis: planted vectors, and a twin that follows the paper's sentences."

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Cost, Dialogue, InputError
from personal_llm.explanation.decomposition import SharedBasis, decompose, explain_as_published
from personal_llm.explanation import decomposition
from personal_llm.explanation.decomposition import (
    SUMMARY_PROMPT,
    _fit_summary_prompts,
    candidate_words,
    is_adjective,
    neutral_pairs,
    next_word_probabilities,
    summary_states,
    word_vector,
)
from tiny import ARCHITECTURES, shared


# decomposition


def replace_length(model, max_length):  # the same model that reads more
    out = object.__new__(type(model))
    out.__dict__.update(model.__dict__, max_length=max_length, cost=Cost())
    return out


def problem(seed, width, count):  # a shift and candidates that lean on each other
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, width)) * rng.uniform(0.1, 9, (count, 1))
    vectors[1::3] += 3 * vectors[0]
    return rng.normal(size=width), [f"w{i}" for i in range(count)], vectors


def naive(V, words, vectors, gate, stop):  # the paper's sentences, one after the other
    kept = []
    for word, v in zip(words, vectors):
        v = v / np.sqrt((v**2).sum())
        left = V - sum((V @ u) * u for _, u in kept)
        if np.sqrt((left**2).sum()) < stop * np.sqrt((V**2).sum()):
            break
        if all(abs(v @ u) < gate for _, u in kept):
            kept.append((word, v))
    return kept


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 200),
    st.integers(1, 40),
    st.sampled_from([0.02, 0.1, 0.5]),
    st.sampled_from([0.05, 0.2, 0.6]),
)
def test_decomposition_invariants(seed, width, count, gate, stop):
    V, words, vectors = problem(seed, width, count)
    got = decompose(V, words, vectors, gate, stop)
    k, length = len(got.words), np.linalg.norm(V)
    kept = naive(V, words, vectors, gate, stop)
    assert got.words == tuple(w for w, _ in kept) and np.allclose(got.vectors, [v for _, v in kept])
    gram = got.vectors @ got.vectors.T
    assert np.allclose(np.diag(gram), 1) and (np.abs(gram - np.eye(k)) < gate + 1e-9).all(), (
        "unit vectors, pairwise below the gate"
    )
    assert np.allclose(got.coordinates, V @ got.vectors.T) and len(got.residuals) == k + 1 and got.residuals[0] == 1
    assert np.isclose(got.residuals[-1], np.linalg.norm(V - got.coordinates @ got.vectors) / length)
    assert (
        got.is_complete == (got.residuals[-1] < stop)
        and all(r >= stop for r in got.residuals[:-1])
        and got.num_candidates_tried <= count
    )
    for n, r in enumerate(got.residuals):
        assert r <= max(1, gate * (n - 1)) + 1e-9, "never above the length of V up to 1 + 1/gate vectors"
    again = decompose(V * 7, words, vectors * 3, gate, stop)
    assert again.words == got.words and np.allclose(again.coordinates, 7 * got.coordinates), (
        "scales of words do not matter, that of the shift is kept"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_planted_orthogonal_words_are_recovered_exactly(seed, count):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(24, 24)))[0][:count]
    z = rng.normal(size=count) + np.sign(rng.normal(size=count))
    got = decompose(z @ axes, range(count), axes * rng.uniform(0.1, 9, (count, 1)), stop=1e-6)
    assert got.is_complete and np.allclose(got.coordinates, z[list(got.words)]) and got.words == tuple(range(count))
    assert all(b <= a + 1e-12 for a, b in zip(got.residuals, got.residuals[1:])), (
        "at right angles the residual never grows"
    )
    assert np.allclose(got.coordinates @ got.vectors, z @ axes), "a shift in the span is reproduced"
    beyond = np.linalg.qr(np.vstack([axes, rng.normal(size=24)]).T)[0].T[-1]
    lost = decompose(beyond, range(count), axes)
    assert not lost.is_complete and lost.residuals[-1] > 0.99 and "ran out" in str(lost)


def test_the_gate_and_the_stop_are_strict_by_hand():
    V = np.array([3, 4, 12.0])
    got = decompose(
        V, ["long", "lengthy", "warm", "formal", "odd"], [(0, 0, 2), (0, 5, 5), (0, 10, 0), (7, 0, 0), (1, 1, 1)]
    )
    assert (
        got.words == ("long", "warm", "formal")
        and got.coordinates.tolist() == [12, 4, 3]
        and got.num_candidates_tried == 4
        and got.is_complete
    )
    assert np.allclose(got.residuals, [1, 5 / 13, 3 / 13, 0])
    assert decompose(np.array([10.0, 2]), ["a", "b"], [(1, 0), (0, 1)]).words == ("a",), "2 of 10.2 are below a fifth"
    assert decompose(np.array([4.0, 3]), ["a", "b"], [(1, 0), (0, 1)], stop=0.6).words == ("a", "b"), (
        "3 of 5 are not below 0.6"
    )
    assert decompose(np.array([0.0, 1]), ["a", "b"], [(0.6, 0.8), (0.8, 0.6)], gate=0.96, stop=0).words == ("a",), (
        "a cosine of 0.96 is not below 0.96"
    )
    assert decompose(np.array([1.0, 1]), ["a", "opposite"], [(1, 0), (-1, 0)]).words == ("a",), (
        "an opposite is no new direction"
    )
    assert decompose(V, ["a", "a"], [(1, 0, 0), (0, 1, 0)]).words == ("a",), "one vector a word"


@pytest.mark.parametrize(
    "V, words, vectors",
    [
        ([0, 0], ["a"], [(1, 0)]),
        ([np.nan, 1], ["a"], [(1, 0)]),
        ([1, 1], ["a"], [(0, 0)]),
        ([1, 1], ["a"], [(np.inf, 0)]),
        ([1, 1], ["a"], [(1, 0, 0)]),
        ([1, 1], ["a", "b"], [(1, 0)]),
        ([[1, 1]], ["a"], [(1, 0)]),
    ],
)
def test_bad_vectors_are_refused(V, words, vectors):
    basis = SharedBasis("b", "s", np.zeros(2), 1.0, 9, 1.0)
    before = basis.id
    with pytest.raises(InputError):
        basis.grow(np.array(V, float), words, np.array(vectors, float))
    assert basis.id == before and basis.width == 0


# the shared basis


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_basis_grows_and_never_shrinks(seed, users):
    rng = np.random.default_rng(seed)
    basis, shifts = SharedBasis("b", "s", np.zeros(40), 1.0, 9, 1.0), rng.normal(size=(users, 40))
    for V in shifts:
        words, vectors, row, name = basis.words, basis.vectors.copy(), basis.coordinates(V), basis.id
        count = int(rng.integers(0, 20))
        got = basis.grow(V, [f"w{i}" for i in rng.integers(0, 30, count)], rng.normal(size=(count, 40)))
        assert (
            basis.words[: len(words)] == words
            and np.allclose(basis.vectors[: len(words)], vectors, atol=1e-6)
            and len(set(basis.words)) == basis.width
        )
        assert np.allclose(basis.coordinates(V)[: len(words)], row, atol=1e-4) and np.allclose(
            basis.coordinates(V), got.coordinates, atol=1e-4
        )
        assert basis.columns == {"coordinates": (0, basis.width)} and (basis.id == name) == (basis.words == words)
        assert (
            basis.vectors.dtype == np.float32
            and (np.abs(basis.vectors @ basis.vectors.T - np.eye(basis.width)) < 0.1 + 1e-5).all()
        )
    assert np.allclose(basis.coordinates(shifts), [basis.coordinates(V) for V in shifts], atol=1e-5)


def test_saved_and_loaded(tmp_path):
    basis = SharedBasis("b", "s", np.arange(4), 2.5, 9, 1.25)
    basis.save(tmp_path / "empty")
    assert SharedBasis.load(tmp_path / "empty").id == basis.id
    assert (
        len(
            {
                basis.id,
                *(
                    SharedBasis(*parts).id
                    for parts in (
                        ("x", "s", np.arange(4), 2.5, 9, 1.25),
                        ("b", "x", np.arange(4), 2.5, 9, 1.25),
                        ("b", "s", np.arange(4) + 1, 2.5, 9, 1.25),
                        ("b", "s", np.arange(4), 2.5, 9, 1.5),
                    )
                ),
            }
        )
        == 5
    ), "the id tells all parts"
    basis.grow(np.array([1.0, 2, 0, 0]), ["kurz", "wärm"], [(1, 0, 0, 0), (0, 1, 0, 0)])
    basis.save(tmp_path)
    again = SharedBasis.load(tmp_path)
    assert (
        again.id == basis.id
        and again.words == ("kurz", "wärm")
        and np.array_equal(again.vectors, basis.vectors)
        and np.array_equal(again.centre, basis.centre)
    )
    assert (
        again.base,
        again.summariser,
        again.neutral_variance,
        again.num_neutral_states,
        again.threshold,
        again.kind,
    ) == (
        "b",
        "s",
        2.5,
        9,
        1.25,
        "xpert",
    )


@pytest.mark.parametrize(
    "harm",
    [
        lambda f: (f / "space.json").write_text("{"),
        lambda f: (f / "space.json").write_text("[]"),
        lambda f: (f / "space.json").unlink(),
        lambda f: (f / "space.safetensors").unlink(),
        lambda f: (f / "space.safetensors").write_bytes(b"\x80\x04."),
        lambda f: (f / "space.safetensors").write_bytes((f / "space.safetensors").read_bytes()[:-3]),
        lambda f: (f / "space.json").write_text((f / "space.json").read_text().replace("kurz", "lang")),
        lambda f: (f / "space.json").write_text((f / "space.json").read_text().replace("xpert", "style")),
        lambda f: (f / "space.json").write_text((f / "space.json").read_text().replace("neutral_variance", "sprout")),
        lambda f: (f / "space.safetensors").write_bytes(flip((f / "space.safetensors").read_bytes())),
    ],
)
def test_damage_is_refused(tmp_path, harm):
    basis = SharedBasis("b", "s", np.ones(4), 2.5, 9, 1.25)
    basis.grow(np.array([1.0, 2, 0, 0]), ["kurz"], [(1, 0, 0, 0)])
    basis.save(tmp_path)
    harm(tmp_path)
    with pytest.raises(InputError):
        SharedBasis.load(tmp_path)


def flip(raw):
    return raw[:-1] + bytes([raw[-1] ^ 1])


def test_strength_of_noise_is_about_one():
    rng = np.random.default_rng(0)
    scales = rng.uniform(0.2, 2, 50)
    basis = SharedBasis("b", "s", np.zeros(50), float((scales**2).sum()), 100, 1.0)
    got = [
        basis.strength((rng.normal(size=(20, 50)) * scales).mean(0) - (rng.normal(size=(100, 50)) * scales).mean(0), 20)
        for _ in range(60)
    ]
    assert 0.9 < np.mean(got) < 1.1


# explanation


@pytest.fixture(scope="module")
def scene():
    model = replace_length(shared("llama"), 256)
    basis = SharedBasis.from_prompts(model, model, [f"What is {i}?" for i in range(12)])
    dialogues = [Dialogue(f"Say {i}.", f"I SAY {i} AND {i} AGAIN") for i in range(9)]
    answers = model.generate(dialogues, max_new_tokens=48)
    pairs = [(d.prompt, d.response, a) for d, a in zip(dialogues, answers)]
    V = summary_states(model, pairs).mean(0) - basis.centre
    other = np.random.default_rng(0).normal(size=len(V))
    other -= (other @ V) / (V @ V) * V
    basis.grow(
        V,
        ["loud", "plain"],
        [-V + other * np.linalg.norm(V) / np.linalg.norm(other), V + other * np.linalg.norm(V) / np.linalg.norm(other)],
    )
    return model, basis, dialogues, answers, V


def test_basis_begins_with_neutral_text(scene):
    model, basis, *_ = scene
    states = summary_states(model, neutral_pairs(model, [f"What is {i}?" for i in range(12)]))
    assert (
        np.allclose(basis.centre, states.mean(0), atol=1e-4)
        and basis.num_neutral_states == 12
        and np.isclose(basis.neutral_variance, states.var(0, ddof=1).sum(), rtol=1e-3)
        and 0.7 < basis.threshold < 3
    )
    with pytest.raises(InputError, match="give 5 more"):
        SharedBasis.from_prompts(model, model, ["a", "b", "c"])


def test_explanation_by_hand(scene):
    model, basis, dialogues, answers, V = scene
    before = replace(model.cost)
    e = explain_as_published(model, model, dialogues, basis)
    u = V / np.linalg.norm(V)
    z = basis.coordinates(V)
    assert basis.words == ("loud", "plain") and z[0] < 0 < z[1], "one word lies against the shift, one along it"
    assert (
        e.sparse_words == ("plain",)
        and np.allclose(e.coefficients, basis.vectors[1] @ u, atol=1e-3)
        and len(e.errors) == 1
        and 0 <= e.errors[0] < 0.5
    )
    assert np.allclose(e.row, z, atol=1e-3) and e.row.dtype == np.float32, "signs and sizes stay in the row"
    assert np.isclose(e.residual, min(1, np.linalg.norm(u - (u @ basis.vectors.T) @ basis.vectors) ** 2), atol=1e-2)
    assert np.isclose(e.strength, np.linalg.norm(V) / np.sqrt(basis.neutral_variance * (1 / 9 + 1 / 12)), rtol=1e-3)
    assert (e.samples, e.counterpart, e.space) == (9, "answers", basis.id)
    assert (
        e.cost.forward == 18
        and model.cost.forward - before.forward == 18
        and model.cost.tokens - before.tokens == e.cost.tokens > 0
        and e.cost.seconds > 0
    )
    given = explain_as_published(model, model, dialogues + [Dialogue("Say it.", " ")], basis)
    assert np.allclose(given.row, e.row, atol=1e-3), "empty responses are left out"


def test_explanation_refusals(scene):
    model, basis, dialogues, answers, _ = scene
    with pytest.raises(InputError, match="dialogues with a response: 7, at least 8 are needed; give 1 more"):
        explain_as_published(model, model, dialogues[:7] + [Dialogue("q", "")], basis)
    other = shared("llama", seed=5)
    for pair in ((other, model), (model, other)):
        with pytest.raises(InputError, match="was made with"):
            explain_as_published(*pair, dialogues, basis)
    model.active_adapter = model.base + "+adapter"
    try:
        with pytest.raises(InputError, match="adapter"):
            explain_as_published(model, model, dialogues, basis)
    finally:
        model.active_adapter = model.base


# the summariser

PAIRS = [
    ("Hi?", "Yes.", "No."),
    ("What is a cell?", "A cell is the smallest unit of life, and there are many kinds of it.", "A cell."),
    ("Why?", "Because {it} is <|end|> so.", "I do not know."),
    ("Who?", "", "Ana."),
]


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


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_next_words_against_a_naive_twin(architecture):
    import torch

    model = replace_length(shared(architecture), 256)
    total = {}
    for pair in PAIRS[:2]:
        ids = _fit_summary_prompts(model, [pair])[0]
        with torch.inference_mode():
            probabilities = model.model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)
        for token, p in enumerate(probabilities.tolist()):
            word = model.tokenizer.decode([token]).strip().lower()
            total[word] = total.get(word, 0) + p / 2
    found = dict(next_word_probabilities(model, summary_states(model, PAIRS[:2]), num_tokens=10**6))
    assert found.keys() == total.keys() and all(found[word] == pytest.approx(p, rel=1e-3) for word, p in total.items())
    few = next_word_probabilities(model, summary_states(model, PAIRS[:2]), num_tokens=9)
    assert len(few) <= 9 and [p for _, p in few] == sorted((p for _, p in few), reverse=True)


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


def test_candidates_are_adjectives_or_the_summariser_is_refused(monkeypatch):
    model = replace_length(shared("llama"), 256)
    said = [("concise", 0.4), ("the", 0.2), ("Formal", 0.15)]
    monkeypatch.setattr(decomposition, "next_word_probabilities", lambda summariser, states: said)
    assert candidate_words(model, PAIRS) == [("concise", 0.4), ("Formal", 0.15)]
    said[:] = [("the", 0.6), ("kind", 0.04)]
    with pytest.raises(InputError, match="larger instruct model, or the style space"):
        candidate_words(model, PAIRS)
    assert "Reply with only one adjective." in SUMMARY_PROMPT


def test_adjectives():
    for word in ("Concise", "graceful", "artless", "humorous", "burlesque", "paradoxical", "agreeable", "abrasive"):
        assert is_adjective(word), word
    for word in (
        "",
        "it",
        "the",
        "similar",
        "response",
        "vegetable",
        "believe",
        "form-al",
        "conc",
        "ful",
        "table",
        "live",
    ):
        assert not is_adjective(word), word
