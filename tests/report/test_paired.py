"""Paired statistics against closed forms, scipy, and a second implementation."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vdqbench.report.paired import averaged, difference, estimate, over_prompts

numbers = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-3)
pairs = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30)


def test_closed_form():
    ours, reference = {("a", 0): 3.0, ("b", 0): 5.0, ("c", 0): 7.0}, {("a", 0): 1.0, ("b", 0): 1.0, ("c", 0): 1.0}
    apart = difference(ours, reference)
    assert (apart.mean, apart.n) == (4.0, 3)
    assert apart.se == pytest.approx(2.0 / math.sqrt(3))
    assert apart.significant
    assert not estimate([1.0, -1.0, 3.0]).significant


@settings(deadline=None)
@given(pairs)
def test_standard_error_is_that_of_the_paired_t_test(values):
    ours, reference = zip(*values, strict=True)
    apart = difference({(str(i), 0): v for i, v in enumerate(ours)}, {(str(i), 0): v for i, v in enumerate(reference)})
    differences = [a - b for a, b in values]
    if len(set(differences)) == 1:
        assert apart.se == 0 and apart.mean == differences[0]
        return
    t = stats.ttest_rel(ours, reference)
    assert apart.mean == pytest.approx(statistics.fmean(differences), abs=1e-9)
    assert apart.se == pytest.approx(statistics.stdev(differences) / math.sqrt(len(values)), rel=1e-9)
    interval = t.confidence_interval(0.95)
    quantile = stats.t.ppf(0.975, len(values) - 1)
    assert apart.se == pytest.approx((interval.high - interval.low) / 2 / quantile, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=2, max_size=10))
def test_seeds_of_a_prompt_are_one_observation(values):
    samples = {(str(i), seed): v for i, triple in enumerate(values) for seed, v in enumerate(triple)}
    expected = estimate(statistics.fmean(triple) for triple in values)
    found = over_prompts(samples)
    assert found.n == len(values)
    assert found.mean == pytest.approx(expected.mean, abs=1e-9) and found.se == pytest.approx(expected.se, abs=1e-9)


@settings(deadline=None)
@given(pairs)
def test_swapping_the_sides_only_turns_the_sign(values):
    ours, reference = ({(str(i), 0): pair[side] for i, pair in enumerate(values)} for side in (0, 1))
    there, back = difference(ours, reference), difference(reference, ours)
    assert there.mean == pytest.approx(-back.mean) and there.se == pytest.approx(back.se) and there.significant == back.significant


def test_a_constant_shift_is_significant_and_none_is_not():
    values = {(str(i), 0): 0.1 * i for i in range(8)}
    assert difference(values, values).mean == 0 == difference(values, values).se
    assert not difference(values, values).significant
    assert difference({s: 1.0 for s in values}, {s: 0.5 for s in values}).significant


def test_one_prompt_has_no_error_and_nothing_shared_no_difference():
    one = difference({("a", 0): 2.0, ("a", 1): 4.0, ("b", 0): 9.0}, {("a", 0): 1.0, ("a", 1): 1.0})
    assert (one.mean, one.se, one.n, one.significant) == (2.0, None, 1, False)
    assert difference({("a", 0): 1.0}, {("a", 1): 1.0}) is None
    assert estimate([]) is None and estimate([1.0, math.inf]) is None and estimate([math.nan]) is None


def test_average_of_cells_keeps_common_samples():
    cells = [{("a", 0): 1.0, ("b", 0): 2.0}, {("a", 0): 3.0, ("c", 0): 9.0}]
    assert averaged(cells) == {("a", 0): 2.0}
    assert averaged([]) == {}
