"""Claims: the grammar, which rows they are about, and when they hold."""

from __future__ import annotations

import pytest

from vdqbench.errors import ConfigError
from vdqbench.report.claims import FAILS, FOREIGN, HOLDS, UNKNOWN, Outcome, parse, shown
from vdqbench.report.spec import Row

ROWS = [
    Row("FP", overrides=("method=fp",), reference=True),
    *(Row(label, group, (f"method={label}",)) for group in ("8/8", "4/4") for label in ("A", "*+B (=1)", "C")),
    Row("Only", "4/4", unavailable="no code"),
]
FVD = {
    "FP": 10.0,
    "8/8 A": 20.0,
    "8/8 *+B (=1)": 30.0,
    "8/8 C": 30.0,
    "4/4 A": 90.0,
    "4/4 *+B (=1)": 50.0,
    "4/4 C": 100.0,
    "4/4 Only": 40.0,
}


def state(text, values=FVD, up=False, home=True):
    claim = parse(text, "t")
    claim.check(ROWS, ["fvd", "clip"], "t")
    return claim.outcome(ROWS, values, up, home).state


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("8/8 A > 8/8 C on fvd", True),
        ("8/8 C > 8/8 A on fvd", False),
        ("8/8 C < 8/8 A on fvd", True),
        ("8/8 *+B (=1) > 8/8 C on fvd", False),
        ("8/8 *+B (=1) >= 8/8 C on fvd", True),
        ("8/8 A > 8/8 C on fvd by at least 10", True),
        ("8/8 A > 8/8 C on fvd by at least 10.5", False),
        ("8/8 A > 8/8 C on fvd by at least 33 %", True),
        ("8/8 A > 8/8 C on fvd by at least 34%", False),
        ("8/8 A ~ FP on fvd by at most 10", True),
        ("8/8 A ~ FP on fvd by at most 99 %", False),
        ("FP > Only on fvd", True),
        ("A > C on fvd, in each of all", True),
        ("A > *+B (=1) on fvd, in each of all", False),
        ("A > *+B (=1) on fvd, in each of 8/8", True),
        ("*+B (=1) > A on fvd, mean over 8/8 and 4/4", True),
        ("A ~ FP on fvd, mean over all by at most 45", True),
        ("8/8 A > others on fvd", True),
        ("4/4 A > others on fvd", False),
        ("A > others on fvd, in each of 8/8", True),
    ],
)
def test_when_it_holds(text, holds):
    assert state(text) == (HOLDS if holds else FAILS)


def test_without_a_direction_more_counts_as_better():
    assert state("8/8 C > 8/8 A on fvd", up=None) == HOLDS and state("8/8 C > 8/8 A on fvd", up=True) == HOLDS


def test_a_hole_is_not_measured():
    assert state("A > C on fvd, in each of all", {**FVD, "4/4 C": None}) == UNKNOWN
    assert state("8/8 A > 8/8 C on fvd", {}) == UNKNOWN and state("8/8 A > 8/8 C on fvd", {**FVD, "8/8 C": float("nan")}) == UNKNOWN


def test_margins_in_the_papers_units_only_count_at_home():
    assert state("8/8 A > 8/8 C on fvd by at least 100") == FAILS
    assert state("8/8 A > 8/8 C on fvd by at least 100", home=False) == HOLDS
    assert state("8/8 C > 8/8 A on fvd by at least 1", home=False) == FAILS
    assert state("8/8 A ~ FP on fvd by at most 100", home=False) == FOREIGN
    assert state("8/8 A > 8/8 C on fvd by at least 34 %", home=False) == FAILS


def test_a_stated_difference_of_printed_numbers_is_not_lost_to_rounding():
    values = {"8/8 A": 49.38, "8/8 C": 75.16}
    assert 75.16 - 49.38 < 25.78
    assert state("8/8 A > 8/8 C on fvd by at least 25.78", values) == HOLDS
    assert state("8/8 A > 8/8 C on fvd by at least 25.79", values) == FAILS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A is better", "is not a claim"),
        (5, "is not a claim"),
        ("8/8 A ~ FP on fvd", "must have `by at most X` with ~"),
        ("8/8 A > FP on fvd by at most 3", "must have `by at most X` with ~"),
        ("A > others on fvd, mean over all", "in each of"),
        ("8/8 A > 8/8 C on fvdd", r"fvdd, which is no number here \(did you mean fvd\?\)"),
        ("8/8 AA > 8/8 C on fvd", r"'8/8 AA' in .* is no row \(did you mean 8/8 A"),
        ("A > 8/8 C on fvd", "'A' in .* stands for 2 rows; name the group as well: 8/8 A"),
        ("A > C on fvd, in each of 8/9", r"names no group \(did you mean 8/8\?\)"),
        ("FP > A on fvd, mean over all", "needs a row 'FP' in a group"),
        ("FP > others on fvd", "has no others"),
    ],
)
def test_what_cannot_be_checked_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse(text, "t: claims").check(ROWS, ["fvd", "clip"], "t: claims")


def test_the_numbers_behind_a_verdict_are_shown():
    claim = parse("A > others on fvd, in each of all", "t")
    text = shown(claim.outcome(ROWS, FVD, False), lambda value: f"{value:.0f}")
    assert text == "does not hold (20 against 30, 20 against 30, 90 against 50, and 2 more)"
    assert shown(Outcome(UNKNOWN), str) == "not measured"
