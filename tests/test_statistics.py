"Intervals and the gate: laws, and a comparison with Student's interval."

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from personal_llm.base.core import InputError
from personal_llm.tuning.statistics import paired_bootstrap

floats = st.floats(-100, 100).map(lambda x: round(x, 3))


@settings(max_examples=50, deadline=None)
@given(st.lists(floats, min_size=2, max_size=12), floats, st.integers(0, 5))
def test_bootstrap_laws(values, shift, seed):
    x = np.array(values)
    one = paired_bootstrap(x, seed, 200)
    assert one == paired_bootstrap(x, seed, 200)
    assert one.low <= one.difference + 1e-9 and one.difference <= one.high + 1e-9
    moved = paired_bootstrap(x + shift, seed, 200)
    assert np.allclose(
        [moved.difference, moved.low, moved.high], np.array([one.difference, one.low, one.high]) + shift, atol=1e-6
    )
    turned = paired_bootstrap(-x, seed, 200)
    assert np.allclose([turned.low, turned.high], [-one.high, -one.low], atol=1e-6)


def test_bootstrap_agrees_with_students_t_on_normal_values():
    x = np.random.default_rng(0).normal(1, 1, 8)
    found = paired_bootstrap(x, resamples=20000)
    half = 2.3646 * x.std(ddof=1) / 8**0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (dict(values=[]), r"two values or more in a row, this has shape \(0,\)"),
        (dict(values=[1.0]), r"shape \(1,\)"),
        (dict(values=[[1, 2], [3, 4]]), r"shape \(2, 2\)"),
        (dict(values=[1, float("nan")]), "value 1 is not a finite number"),
        (dict(values=["a", "b"]), "not numbers"),
        (dict(values=[1, [2, 3]]), "not numbers"),
        (dict(values=[1, 2], seed=-1), "the seed is -1"),
        (dict(values=[1, 2], resamples=0), "resamples is 0"),
    ],
)
def test_what_has_no_interval_is_refused(arguments, problem):
    with pytest.raises(InputError, match=problem):
        paired_bootstrap(**arguments)
