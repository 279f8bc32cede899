"""Kendall's tau against SciPy and against brute force over all permutations."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vdqbench.report.kendall import Tau, agreement, kendall, null_distribution

VALUES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=5)


def brute_force(strata):
    """S, and the distribution of S when y is permuted within every stratum."""
    observed = sum(agreement(stratum) for stratum in strata)
    totals = [0]
    for stratum in strata:
        xs, ys = zip(*stratum, strict=True)
        permuted = [agreement(list(zip(xs, order, strict=True))) for order in itertools.permutations(ys)]
        totals = [a + b for a in totals for b in permuted]
    return sum(abs(total) >= abs(observed) for total in totals) / len(totals)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 13, 27])
def test_without_ties_it_is_scipys_exact_test(n):
    rng = random.Random(n)
    stratum = [(rng.random(), rng.random()) for _ in range(n)]
    expected = stats.kendalltau(*zip(*stratum, strict=True), method="exact")
    found = kendall([stratum])
    assert found.exact and found.pairs == n * (n - 1) // 2
    assert found.tau == pytest.approx(expected.statistic) and found.p == pytest.approx(expected.pvalue)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_with_ties_it_is_tau_b_and_p_counts_permutations(stratum):
    found = kendall([stratum])
    expected = stats.kendalltau(*zip(*stratum, strict=True), variant="b").statistic
    if len({x for x, _ in stratum}) == 1 or len({y for _, y in stratum}) == 1:
        assert found.tau is None and found.p is None
    else:
        assert found.exact and found.tau == pytest.approx(expected) and found.p == pytest.approx(brute_force([stratum]))


@settings(max_examples=15, deadline=None)
@given(st.lists(VALUES.map(lambda values: values[:3]), min_size=2, max_size=3))
def test_strata_are_permuted_by_themselves(strata):
    found = kendall(strata)
    if found.tau is not None:
        assert found.p == pytest.approx(brute_force(strata))


def test_pairs_across_strata_do_not_count():
    up, far = [(1, 1), (2, 2), (3, 3)], [(11, 0), (12, 1), (13, 2)]
    assert kendall([up, far]) == Tau(6, 1.0, pytest.approx(2 / 36))
    assert kendall([up + far]).tau < 1


def test_three_methods_can_never_be_significant():
    assert kendall([[(1, 1), (2, 2), (3, 3)]]) == Tau(3, 1.0, pytest.approx(2 / 6))
    assert kendall([[(1, 3), (2, 2), (3, 1)]]) == Tau(3, -1.0, pytest.approx(2 / 6))


def test_distributions_counted_by_hand():
    exact = null_distribution((1,) * 6, (1,) * 6)
    assert sum(exact.values()) == 720 and exact[15] == exact[-15] == 1
    by_hand = Counter(agreement(list(zip((0, 0, 1, 1), ys, strict=True))) for ys in itertools.permutations((0, 1, 2, 2)))
    assert null_distribution((2, 2), (1, 1, 2)) == {total: count // 2 for total, count in by_hand.items()}


def test_many_ties_on_both_sides_of_a_long_list_fall_back_to_the_normal_distribution_and_say_so():
    rng = random.Random(0)
    stratum = [(rng.randrange(20), rng.randrange(20)) for _ in range(30)]
    found, expected = kendall([stratum]), stats.kendalltau(*zip(*stratum, strict=True), method="asymptotic")
    assert not found.exact and found.p == pytest.approx(expected.pvalue) and found.tau == pytest.approx(expected.statistic)


def test_nothing_to_compare():
    assert kendall([]) == Tau(0, None, None) and kendall([[(1, 2)]]) == Tau(0, None, None)
