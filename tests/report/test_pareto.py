"""The front against its definition, in closed forms and on random points."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdqbench.report.pareto import front

POINTS = st.lists(st.tuples(st.integers(-3, 3).map(float), st.integers(-3, 3).map(float)), max_size=12)


def dominates(a, b, higher):
    better = a[1] >= b[1] if higher else a[1] <= b[1]
    return a[0] <= b[0] and better and a != b


@pytest.mark.parametrize(
    ("points", "higher", "expected"),
    [
        ([], True, []),
        ([(1, 1)], True, [0]),
        ([(3, 3), (1, 1), (2, 2)], True, [1, 2, 0]),
        ([(3, 3), (1, 1), (2, 2)], False, [1]),
        ([(1, 1), (1, 2), (2, 2)], True, [1]),
        ([(1, 2), (2, 1), (1, 2)], True, [0, 2]),
        ([(1, 2), (2, 1), (3, 1)], False, [0, 1]),
    ],
)
def test_known_fronts(points, higher, expected):
    assert front(points, higher) == expected


@given(POINTS, st.booleans())
def test_the_front_is_what_nothing_dominates_by_rising_cost(points, higher):
    found = front(points, higher)
    expected = [i for i, point in enumerate(points) if not any(dominates(other, point, higher) for other in points)]
    assert sorted(found) == expected
    assert [points[i][0] for i in found] == sorted(points[i][0] for i in found)


@given(POINTS)
def test_turning_the_score_around_turns_the_direction_around(points):
    assert front(points, True) == front([(cost, -score) for cost, score in points], False)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_points_that_are_not_finite_are_refused(bad):
    with pytest.raises(ValueError, match="finite"):
        front([(1.0, bad)])
    with pytest.raises(ValueError, match="finite"):
        front([(bad, 1.0)])
