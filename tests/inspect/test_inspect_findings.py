"""Verdicts follow from thresholds alone."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from vdqbench.inspect import findings, phenomena
from vdqbench.inspect.phenomena import COVERAGE, STEPS, Finding


def test_a_verdict_is_where_the_value_lies():
    assert [Finding(STEPS, value, "").verdict for value in (1.99, 2.0, math.inf)] == ["not shown", "shown", "shown"]
    assert [Finding(COVERAGE, value, "").verdict for value in (0.51, 0.5, 0.0)] == ["not shown", "shown", "shown"]
    assert [Finding(STEPS, value, "").verdict for value in (None, math.nan)] == ["absent", "absent"]
    assert (STEPS.bound, COVERAGE.bound) == ("≥ 2", "≤ 0.5")


def test_every_phenomenon_says_who_says_what_and_why_the_threshold():
    names = [one.name for one in phenomena.ALL]
    assert len(set(names)) == len(names) == 11
    for one in phenomena.ALL:
        assert one.paper and one.place.startswith("Sec.") and one.says.endswith(".") and one.measure and one.reason


def test_ranges_are_judged_by_the_median_input():
    ratios = pd.DataFrame({"input": list("abcd"), "role": ["q", "q", "up", "up"], "ratio": [1.0, 2.0, 8.0, None]})
    channels = ratios.assign(ratio=[1.0, 3.0, 5.0, 7.0])
    steps, spread = findings.of_ranges(ratios, channels)
    assert steps.value == 2 and steps.verdict == "shown" and steps.note == "2 of 3 inputs; medians of roles: up 8"
    assert spread.value == 4 and spread.verdict == "shown"
    many = pd.DataFrame({"input": range(9), "role": [f"r{i}" for i in range(9)], "ratio": [2.0 + i for i in range(9)]})
    note = next(findings.of_ranges(many, many)).note
    assert note == "9 of 9 inputs; medians of roles: r8 10, r7 9, r6 8, r5 7, r4 6, r3 5 and 3 more roles"
    nothing, _ = findings.of_ranges(ratios.assign(ratio=math.nan), channels)
    assert nothing.verdict == "absent"


def covered(**by_role):
    rows = [{"role": role, "p50": value, "levels8": 256 * value, "levels4": 16 * value} for role, value in by_role.items()]
    return pd.DataFrame(rows)


def test_coverage_is_that_of_temporal_attention_where_there_is_some():
    frame = pd.concat([covered(a=0.9), covered(b=0.25)]).assign(role=["self_attn.q", "temporal_attn.q/k + ffn.up"])
    one = findings.of_coverage(frame)
    assert one.value == 0.25 and one.note == "64 of 256 levels at 8 bits, 4 of 16 levels at 4 bits; all inputs: 0.57"
    joint = findings.of_coverage(frame.assign(role=["ffn.down", "ffn.up + self_attn.q"]))
    assert joint.value == 0.25 and joint.note.startswith("no temporal attention, so of self_attn: ")
    assert findings.of_coverage(frame.assign(p50=math.nan)).verdict == "absent"
    alone = findings.of_coverage(covered(embed=0.5))
    assert alone.value == 0.5 and alone.verdict == "shown" and "of all inputs" in alone.note


def test_weights_by_hand():
    frame = pd.DataFrame(
        {
            "layer": ["a", "b", "c"],
            "elements": [100, 100, 200],
            "row": [10, 10, 20],
            "ks": [0.01, 0.05, 0.2],
            "beyond3": [0.0, 0.01, 0.02],
            "peak": [3.0, 6.0, 4.0],
            "expected": [3.0, 4.0, 4.0],
            "gain": [0.1, 0.3, 0.2],
        }
    )
    gaussian, tails, clipping = findings.of_weights(frame)
    assert gaussian.value == 0.05 and gaussian.verdict == "shown" and gaussian.note == "2 of 3 layers; least Gaussian: c (0.200)"
    assert tails.value == 1 and tails.verdict == "not shown" and "1.25 % of the weights" in tails.note
    assert clipping.value == 0.2 and clipping.verdict == "shown" and "channels of 10 weights" in clipping.note


def test_outputs_by_hand():
    frame = pd.DataFrame(
        {
            "prompt": [0, 0, 0, 0, 1, 1, 1, 1],
            "step": [0, 1, 2, 3] * 2,
            "change": [None, 0.05, 0.1, 0.4, None, 0.05, 0.1, 0.6],
            "low": [False, False, True, True, False, False, True, False],
        }
    )
    uneven, redundant = findings.of_outputs(frame)
    assert uneven.value == pytest.approx(10) and uneven.note == "0.050 (step 1) to 0.500 (step 3); at least 0.1 at steps 2-3"
    assert redundant.value == 3 / 8 and redundant.verdict == "shown"
    assert redundant.note == "of 4 steps; 6.50 bits on average between 4 and 8; few for most prompts at steps 2-3"
    assert findings.spans([]) == "none" and findings.spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
