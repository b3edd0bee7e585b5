"The scores of the paper: ranges, laws, naive twins."

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from personal_llm.base.core import Dialogue
from personal_llm.base.models import ForwardResult
from personal_llm.base.text import get_words
from personal_llm.buffer.scoring import NO_DOMAIN, Lexicons, domain_specific_score, dominant_domain
from personal_llm.buffer.scoring import entropy_of_embedding, entropy_of_embedding_scripts
from personal_llm.buffer.scoring import in_domain_dissimilarity, load_lexicons, score_reading

settings.register_profile("brief", max_examples=60, deadline=None)
settings.load_profile("brief")
NUMBERS = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


def matrices(rows, width=3):
    return st.integers(*rows).flatmap(lambda n: arrays(np.float64, (n, width), elements=NUMBERS))


WORDS = ["pill", "pain", "head", "joy", "tea", "it's", "Ärzte", "42"]
TEXTS = st.lists(st.sampled_from(WORDS + ["PILL", "Pain", ",", "!"]), max_size=20).map(" ".join)
LISTS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from(WORDS), max_size=5), min_size=1, max_size=4)


def naive_eoe(hidden):
    "The formula, token by token."
    n, width = len(hidden), len(hidden[0])
    mean = [math.fsum(e[j] for e in hidden) / n for j in range(width)]
    shares = [math.fsum((e[j] - mean[j]) ** 2 for j in range(width)) for e in hidden]
    total = math.fsum(shares)
    return -math.fsum(s / total * math.log(s / total) for s in shares if s > 0) / math.log(n)


@given(matrices((2, 12)))
def test_eoe_is_its_formula(hidden):
    spread = np.square(hidden - hidden.mean(0)).sum()
    if spread < 1e-3:
        assert 0 <= entropy_of_embedding(hidden) <= 1
        return
    assert entropy_of_embedding(hidden) == pytest.approx(naive_eoe(hidden.tolist()), abs=1e-7)


@given(matrices((0, 12)), st.randoms(use_true_random=False))
def test_eoe_laws(hidden, random):
    "In [0, 1]; the order of tokens, a shift of all, their scale and an orthogonal turn change nothing."
    eoe = entropy_of_embedding(hidden)
    assert 0 <= eoe <= 1
    if len(hidden) < 2:
        assert eoe == 0
        return
    if np.square(hidden - hidden.mean(0)).sum() < 1e-3:
        return
    order = list(range(len(hidden)))
    random.shuffle(order)
    turn = np.linalg.qr(np.array([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]]))[0]
    for other in (hidden[order], hidden + 7.0, hidden * 3.5, hidden @ turn):
        assert entropy_of_embedding(other) == pytest.approx(eoe, abs=1e-6)


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(-10, 10, width=32, allow_subnormal=False)),
    st.integers(1, 100),
    st.integers(1, 100),
)
def test_eoe_of_the_scripts(last, n, more):
    value = entropy_of_embedding_scripts(last, n)
    assert 0 <= value <= math.log2(100) / math.log2(n + 1) + 1e-9
    assert entropy_of_embedding_scripts(last, n + more) <= value + 1e-12, "longer is never better"
    assert entropy_of_embedding_scripts(last[::-1], n) == pytest.approx(value)
    counts = Counter(np.histogram(last, 100)[0].tolist())
    counts.pop(0, None)
    bits = -sum(times * c / len(last) * math.log2(c / len(last)) for c, times in counts.items())
    assert value == pytest.approx(bits / math.log2(n + 1), abs=1e-9)


@given(TEXTS, LISTS)
def test_overlaps_count_every_occurrence(text, lists):
    lexicons, words = Lexicons(lists), get_words(text)
    naive = [sum(1 for w in words if w in {l.lower() for l in lists[name]}) for name in lists]
    assert lexicons.count_words(words).tolist() == naive
    assert lexicons.count_words(words * 3).tolist() == [3 * n for n in naive], "multiplicity"


@given(TEXTS, LISTS, st.randoms(use_true_random=False))
def test_dss_and_domain(text, lists, random):
    lexicons, words = Lexicons(lists), get_words(text)
    dss, domain = domain_specific_score(text, lexicons), dominant_domain(text, lexicons)
    shares = {name: sum(w in {l.lower() for l in found} for w in words) for name, found in lists.items()}
    assert 0 <= dss <= 1 and dss == pytest.approx(
        sum(n / len(words) for n in shares.values()) / len(lists) if words else 0
    )
    best = max(shares.values())
    assert domain == (next(name for name in lists if shares[name] == best) if best else NO_DOMAIN)
    assert (dss == 0) == (domain == NO_DOMAIN)
    shuffled = text.split(" ")
    random.shuffle(shuffled)
    again = " ".join(shuffled)
    assert domain_specific_score(again, lexicons) == pytest.approx(dss) and dominant_domain(again, lexicons) == domain
    assert domain_specific_score(text.upper() if "ß" not in text else text, lexicons) == pytest.approx(dss)
    other = list(lists.items())
    random.shuffle(other)
    assert domain_specific_score(text, Lexicons(dict(other))) == pytest.approx(dss), (
        "the order of the lexicons does not count"
    )
    assert domain_specific_score(f"{text} . {text}", lexicons) == pytest.approx(dss), (
        "a text said twice has the same share"
    )


@given(arrays(np.float64, 4, elements=NUMBERS), matrices((0, 8), 4), st.randoms(use_true_random=False))
def test_idd_is_its_formula(e, kept, random):
    def cosine(a, b):
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b)) / lengths if lengths else 0.0

    idd = in_domain_dissimilarity(e, kept)
    assert idd == pytest.approx(sum(1 - cosine(e, k) for k in kept) / len(kept) if len(kept) else 1.0, abs=1e-9)
    assert -1e-9 <= idd <= 2 + 1e-9
    order = list(range(len(kept)))
    random.shuffle(order)
    assert in_domain_dissimilarity(e, kept[order]) == pytest.approx(idd, abs=1e-9)
    assert in_domain_dissimilarity(5 * e, kept * 0.3) == pytest.approx(idd, abs=1e-9), "length does not count"


@given(matrices((1, 9)), TEXTS.filter(str.strip), LISTS)
def test_score_reading_agrees_with_its_parts(hidden, text, lists):
    lexicons, d = Lexicons(lists), Dialogue(text, "pill pain")
    s = score_reading(d, ForwardResult(hidden.astype(np.float32), 6.0, 3, "base"), lexicons).scores
    assert (s.dss, s.domain) == (domain_specific_score(d.text, lexicons), dominant_domain(d.text, lexicons))
    assert (
        s.eoe == entropy_of_embedding(hidden.astype(np.float32))
        and s.tokens == len(hidden)
        and s.loss == 2.0
        and s.model == "base"
    )
    assert s.eoe_scripts == entropy_of_embedding_scripts(hidden.astype(np.float32)[-1], len(hidden))
    assert np.allclose(s.embedding, hidden.mean(0), atol=1e-2) and s.embedding.dtype == np.float32


def test_lexicons_that_ship():
    lexicons = load_lexicons()
    assert {name.split("/")[0] for name in lexicons.names} == {"medical", "emotion"} and set(
        load_lexicons("medical").names
    ) < set(lexicons.names)
    assert all(word == word.lower() and " " not in word for word in lexicons.index)
