"The published basis: planted vectors, and a twin that follows the paper's sentences."

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import Dialogue, InputError
from personal_llm.explanation.decomposition import SharedBasis, candidate_words, decompose
from personal_llm.explanation.decomposition import explain_with_summariser, halve_differences
from personal_llm.explanation.decomposition import summary_states, swap_strength, write_summary_prompt
from tiny import ARCHITECTURES, shared, tiny


# decomposition


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
@given(st.data(), st.integers(0, 10**6), st.integers(2, 200), st.integers(1, 40))
def test_decomposition_invariants(data, seed, width, count):
    gate, stop = data.draw(st.sampled_from([0.02, 0.1, 0.5])), data.draw(st.sampled_from([0.05, 0.2, 0.6]))
    V, words, vectors = problem(seed, width, count)
    got = decompose(V, words, vectors, gate, stop)
    k, length = len(got.words), np.linalg.norm(V)
    kept = naive(V, words, vectors, gate, stop)
    assert got.words == tuple(w for w, _ in kept) and np.allclose(got.vectors, [v for _, v in kept])
    gram = got.vectors @ got.vectors.T
    assert np.allclose(np.diag(gram), 1) and (np.abs(gram - np.eye(k)) < gate + 1e-9).all(), "pairwise below the gate"
    assert np.allclose(got.coordinates, V @ got.vectors.T) and len(got.residuals) == k + 1 and got.residuals[0] == 1
    assert np.isclose(got.residuals[-1], np.linalg.norm(V - got.coordinates @ got.vectors) / length)
    assert got.is_complete == (got.residuals[-1] < stop) and got.num_candidates_tried <= count
    assert all(r >= stop for r in got.residuals[:-1])
    for n, r in enumerate(got.residuals):
        assert r <= max(1, gate * (n - 1)) + 1e-9, "never above the length of V up to 1 + 1/gate vectors"
    again = decompose(V * 7, words, vectors * 3, gate, stop)
    assert again.words == got.words and np.allclose(again.coordinates, 7 * got.coordinates), "scales of words"


def test_the_gate_and_the_stop_are_strict_by_hand():
    assert decompose([10, 2], ["a", "b"], [(1, 0), (0, 1)]).words == ("a",), "2 of 10.2 are below a fifth"
    assert decompose([4, 3], ["a", "b"], [(1, 0), (0, 1)], stop=0.6).words == ("a", "b"), "3 of 5 are not below 0.6"
    assert decompose([0, 1], ["a", "b"], [(0.6, 0.8), (0.8, 0.6)], gate=0.96, stop=0).words == ("a",), "the gate"
    assert decompose([1, 1], ["a", "opposite"], [(1, 0), (-1, 0)]).words == ("a",), "an opposite is not new"
    assert decompose([3, 4, 12], ["a", "a"], [(1, 0, 0), (0, 1, 0)]).words == ("a",), "one vector a word"


# the shared basis


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_basis_grows_and_never_shrinks(seed, users):
    rng = np.random.default_rng(seed)
    basis, shifts = SharedBasis("b", "s", np.zeros((0, 40))), rng.normal(size=(users, 40))
    for V in shifts:
        words, vectors, row = basis.words, basis.vectors.copy(), basis.coordinates(V)
        count = int(rng.integers(0, 20))
        got = basis.grow(V, [f"w{i}" for i in rng.integers(0, 30, count)], rng.normal(size=(count, 40)))
        kept, z = len(words), basis.coordinates(V)
        assert basis.words[:kept] == words and np.allclose(basis.vectors[:kept], vectors, atol=1e-6)
        assert len(set(basis.words)) == len(basis.words) and basis.vectors.dtype == np.float32
        assert np.allclose(z[:kept], row, atol=1e-4) and np.allclose(z, got.coordinates, atol=1e-4)
        assert (np.abs(basis.vectors @ basis.vectors.T - np.eye(len(basis.words))) < 0.1 + 1e-5).all()
    assert np.allclose(basis.coordinates(shifts), [basis.coordinates(V) for V in shifts], atol=1e-5)


# explanation


@pytest.fixture(scope="module")
def scene():
    model = shared("llama", max_length=256)
    basis = SharedBasis(model.base, model.base, np.zeros((0, model.width)))
    dialogues = [Dialogue(f"Say {i}.", f"I SAY {i} AND {i} AGAIN") for i in range(9)]
    answers = model.generate(dialogues, max_new_tokens=48)
    pairs = [(d.prompt, d.response, a) for d, a in zip(dialogues, answers)]
    differences = halve_differences(summary_states(model, pairs))
    V = differences.mean(0)
    other = np.random.default_rng(0).normal(size=len(V))
    other -= (other @ V) / (V @ V) * V
    other *= np.linalg.norm(V) / np.linalg.norm(other)
    basis.grow(V, ["loud", "plain"], [-V + other, V + other])
    return model, basis, dialogues, differences


def test_explanation_by_hand(scene):
    model, basis, dialogues, differences = scene
    V = differences.mean(0)
    before = replace(model.cost)
    e = explain_with_summariser(model, model, dialogues, basis)
    u = V / np.linalg.norm(V)
    z = basis.coordinates(V)
    assert basis.words == ("loud", "plain") and z[0] < 0 < z[1], "one word lies against the shift, one along it"
    assert e.sparse_words == ("plain",) and np.allclose(e.coefficients, basis.vectors[1] @ u, atol=1e-3)
    assert len(e.errors) == 1 and 0 <= e.errors[0] < 0.5
    assert str(e) == f"plain {e.coefficients[0]:.1f}".replace("0.", ".")
    assert np.allclose(e.row, z, atol=1e-3) and e.row.dtype == np.float32, "signs and sizes stay in the row"
    assert np.isclose(e.residual, min(1, np.linalg.norm(u - (u @ basis.vectors.T) @ basis.vectors) ** 2), atol=1e-2)
    assert np.isclose(e.strength, swap_strength(differences), rtol=1e-3) and e.strength > basis.threshold
    assert (e.samples, e.counterpart, e.space) == (9, "answers", "xpert")
    assert e.cost.forward == 27 and model.cost.forward - before.forward == 27
    assert model.cost.tokens - before.tokens == e.cost.tokens > 0 and e.cost.seconds > 0
    given = explain_with_summariser(model, model, dialogues + [Dialogue("Say it.", " ")], basis)
    assert np.allclose(given.row, e.row, atol=1e-3), "empty responses are left out"


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

    model = tiny(architecture, max_length=256)
    together = summary_states(model, PAIRS)
    for (question, first, second), states in zip(PAIRS, together):
        for state, responses in zip(states, ((first, second), (second, first))):
            ids = write_summary_prompt(model, question, *responses)
            with torch.inference_mode():
                got = model.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
            assert np.allclose(state, got.hidden_states[-1][0, -1], atol=1e-4)
            logits = model.model.get_output_embeddings()(torch.tensor(state))
            assert torch.allclose(logits, got.logits[0, -1], atol=1e-3)
    model.tokens_per_batch = 300  # two rows
    assert np.allclose(summary_states(model, PAIRS), together, atol=1e-4)
    with pytest.raises(InputError, match="no pairs"):
        summary_states(model, [])


# what is refused


def test_numbers_and_shapes_that_make_no_sum_are_refused():
    basis = SharedBasis("base", "summariser", np.zeros((0, 3)))
    basis.grow(np.array([1.0, 0, 0]), ["short"], [(5, 0, 0)])
    before = basis.words, basis.vectors.copy()
    for act, line in (
        (lambda: basis.grow(np.full(3, np.nan), ["warm"], [(0, 1, 0)]), "the shift is zero or not finite"),
        (lambda: basis.grow(np.array([0, 1.0, 0]), ["odd"], [np.zeros(3)]), "the vector of 'odd' has length 0"),
        (lambda: decompose(np.ones(3), ["a", "b"], np.ones((1, 3))), "word vectors of shape"),
    ):
        with pytest.raises(InputError, match=line):
            act()
    assert basis.words == before[0] and np.array_equal(basis.vectors, before[1])


def test_a_summariser_that_answers_nonsense_is_refused():
    model = shared("llama")
    with pytest.raises(InputError, match="adjectives hold"):
        candidate_words(model, summary_states(model, [("Hi?", "Yes.", "No.")]))


def test_models_and_dialogues_that_do_not_fit_are_refused():
    model = shared("llama")
    dialogues = [Dialogue(f"q{i}", "Yes.") for i in range(9)]
    own = SharedBasis(model.base, model.base, np.zeros((0, model.width)))
    other = SharedBasis("another base", "another", np.zeros((0, model.width)))
    for arguments, line in (
        ((model, dialogues[:3], own), "takes at least 8 dialogues"),
        ((model, dialogues, other), "the basis was made with summariser another"),
    ):
        with pytest.raises(InputError, match=line):
            explain_with_summariser(model, *arguments)
