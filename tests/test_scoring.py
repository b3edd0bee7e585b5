"The scores of the paper, against naive twins."

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from personal_llm.base.core import InputError
from personal_llm.base.text import get_words
from personal_llm.buffer.scoring import Lexicons, domain_specific_score, dominant_domain
from personal_llm.buffer.scoring import entropy_of_embedding, entropy_of_embedding_scripts
from personal_llm.buffer.scoring import in_domain_dissimilarity, load_lexicons

settings.register_profile("brief", max_examples=60, deadline=None)
settings.load_profile("brief")
NUMBERS = st.floats(-100, 100, allow_subnormal=False).map(lambda x: round(x, 3))


def matrices(rows, width=3):
    return st.integers(*rows).flatmap(lambda n: arrays(np.float64, (n, width), elements=NUMBERS))


WORDS = ["pill", "pain", "head", "joy", "tea", "it's", "Ärzte", "42"]
TEXTS = st.lists(st.sampled_from(WORDS + ["PILL", "Pain", ",", "!"]), max_size=20).map(" ".join)
SETS = st.sets(st.sampled_from(WORDS), max_size=5)
LISTS = st.dictionaries(st.sampled_from("abcd"), SETS, min_size=1, max_size=4)


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


@given(
    arrays(np.float32, st.integers(1, 40), elements=st.floats(-10, 10, width=32, allow_subnormal=False)),
    st.integers(1, 100),
)
def test_eoe_of_the_scripts(last, n):
    value = entropy_of_embedding_scripts(last, n)
    assert value >= 0
    counts = Counter(np.histogram(last, 100)[0].tolist())
    counts.pop(0, None)
    bits = -sum(times * c / len(last) * math.log2(c / len(last)) for c, times in counts.items())
    assert value == pytest.approx(bits / math.log2(n + 1), abs=1e-9)


@given(TEXTS, LISTS)
def test_dss_and_domain(text, lists):
    lexicons, words = Lexicons(lists), get_words(text)
    dss, domain = domain_specific_score(text, lexicons), dominant_domain(text, lexicons)
    shares = {name: sum(w in {l.lower() for l in found} for w in words) for name, found in lists.items()}
    assert 0 <= dss <= 1 and dss == pytest.approx(
        sum(n / len(words) for n in shares.values()) / len(lists) if words else 0
    )
    best = max(shares.values())
    assert domain == (next(name for name in lists if shares[name] == best) if best else "none")
    assert (dss == 0) == (domain == "none")


@given(arrays(np.float64, 4, elements=NUMBERS), matrices((0, 8), 4))
def test_idd_is_its_formula(e, kept):
    def cosine(a, b):
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b)) / lengths if lengths else 0.0

    idd = in_domain_dissimilarity(e, kept)
    assert idd == pytest.approx(sum(1 - cosine(e, k) for k in kept) / len(kept) if len(kept) else 1.0, abs=1e-9)
    assert -1e-9 <= idd <= 2 + 1e-9


def test_lexicons_that_ship():
    lexicons = load_lexicons()
    assert {name.split("/")[0] for name in lexicons.names} == {"medical", "emotion"} and set(
        load_lexicons("medical").names
    ) < set(lexicons.names)
    assert all(word == word.lower() and " " not in word for word in lexicons.index)


@pytest.mark.parametrize(
    "load, problem",
    [
        (lambda: Lexicons({}), "no lexicons"),
        (lambda: load_lexicons("astrology"), "unknown lexicon family 'astrology'"),
    ],
)
def test_lexicons_that_do_not_exist_are_refused(load, problem):
    with pytest.raises(InputError) as refused:
        load()
    assert refused.value.problem == problem and refused.value.remedy
