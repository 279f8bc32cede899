"""Bits by step: the papers' patterns, the 50-step vector of delta-GBS, and what a run decides is what the account is told."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_stdit import STEPS, inputs, recipe, roles, sample, stdit
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError
from vdqbench.quant.accumulator import Accumulator, relative_change
from vdqbench.quant.parts import Site, build, find
from vdqbench.quant.quantize import quantize, sites_of
from vdqbench.quant.schedules.delta_gbs import DeltaGbs
from vdqbench.quant.schedules.pattern import Pattern
from vdqbench.quant.schedules.table import Table

FIGURE = {0, 1, 2, 3, 5, 7, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 38, 40, 42, *range(44, 50)}
"""Steps of many bits of DVD-Quant's example run."""


def site(weight=4, activation=6, timed=()):
    return Site("layer", "ffn.up", (2, 2), weight, activation, timed)


def changes() -> list[float]:
    """A relative change for each finished step but the first, large at both ends, that gives the pattern of the figure."""
    return [math.nan, 0.3, 0.2, 0.08, *[0.06] * 5, *[0.035] * 27, *[0.055] * 7, *[0.12] * 7]


class Scripted(nn.Module):
    """Gives outputs whose relative changes are the given ones, in the conditional half alone."""

    def __init__(self, given, clock):
        super().__init__()
        self.outputs, self.clock = [torch.tensor([1.0, -3.0])], clock
        for change in given[1:]:
            self.outputs.append(self.outputs[-1] * (1 + change))

    def forward(self):
        output = self.outputs[self.clock.step]
        if self.clock.layout == "batched":
            return (torch.stack([output, torch.rand(2)]),)
        return output if self.clock.branch != "uncond" else torch.rand(2)


def run(part, layout="batched", given=None, again=1):
    """What a layer gets at each step, and what the schedule says it has chosen."""
    clock = StepClock(layout=layout)
    given = changes() if given is None else given
    module = Scripted(given, clock)
    schedule = part.start(module, clock)
    for _ in range(again):
        clock.reset(len(given))
        bits = []
        for step in range(len(given)):
            for branch in ("cond", "uncond") if layout == "two_pass" else ("both",):
                with clock.at(step, len(given), branch):
                    module()
            bits.append(schedule.bits(site())[1])
            clock.advance()
    chosen = schedule.chosen()
    schedule.close()
    assert not module._forward_hooks and not module._forward_pre_hooks
    return bits, chosen


@pytest.mark.parametrize("layout", ["batched", "two_pass", "embedded"])
def test_delta_gbs_gives_the_figure(layout):
    bits, chosen = run(DeltaGbs(delta=0.1), layout)
    assert chosen == bits == [8 if step in FIGURE else 4 for step in range(50)]
    assert sum(bits) / 50 == 6.0 and bits.count(8) == 25


def test_delta_gbs_at_its_limits_and_anew_for_each_trajectory():
    assert run(DeltaGbs(delta=0))[1] == [8] * 50
    assert run(DeltaGbs(delta=math.inf))[1] == [8, 8] + [4] * 48
    assert run(DeltaGbs(), again=3)[1] == run(DeltaGbs())[1]
    assert run(DeltaGbs(delta=0.1), given=[math.nan, 0.05, math.nan, 0.0])[1] == [8, 8, 4, 8], "a change that is not a number is large"


def test_delta_gbs_decides_a_step_once_and_forgets_what_does_not_follow():
    clock = StepClock()
    module = Scripted([math.nan, *[0.01] * 9], clock)
    schedule = DeltaGbs(delta=0.1).start(module, clock)
    clock.reset(10)
    for step in (0, 1, 2, 2, 7, 8, 9):
        with clock.at(step, 10, "both"):
            module()
            assert schedule.bits(site()) == (4, {2: 4, 9: 4}.get(step, 8)), "step 8 has no change before it"
    assert schedule.chosen() == [8, 8, 4, 8, 8, 4]


@given(st.lists(st.floats(0, 10), max_size=30), st.floats(0, 5))
def test_the_accumulator_is_the_papers_sum(values, threshold):
    sums, fired = Accumulator(threshold), []
    start = 0
    for end, value in enumerate(values):
        fired.append(sums.add(value))
        total = 0.0
        for one in values[start : end + 1]:
            total += one
        assert fired[-1] == (total >= threshold)
        start = end + 1 if fired[-1] else start
    assert Accumulator(math.inf).add(math.inf) and not Accumulator(math.inf).add(1e30) and Accumulator(1.0).add(math.nan)


def test_relative_change_is_an_l1_ratio():
    assert relative_change(torch.tensor([2.0, -2.0]), torch.tensor([1.0, -3.0])).item() == pytest.approx(2 / 4)
    assert relative_change(torch.zeros(2), torch.zeros(2)).item() == 0
    half = torch.tensor([6e4, 6e4], dtype=torch.float16)
    assert relative_change(-half, half).item() == 2, "in single precision"


@pytest.mark.parametrize(
    ("order", "steps", "expected"),
    [
        ("stp", 6, "444888"),
        ("itp", 6, "888444"),
        ("abs", 6, "484848"),
        ("stp", 5, "44888"),
        ("itp", 5, "88844"),
        ("abs", 5, "48488"),
        ("stp", 1, "8"),
    ],
)
def test_patterns(order, steps, expected):
    levels = Pattern(order).levels(steps)
    assert "".join(map(str, levels)) == expected
    clock = StepClock()
    schedule = Pattern(order).start(nn.Identity(), clock)
    clock.reset(steps)
    for level in levels:
        assert schedule.bits(site()) == (4, level)
        clock.advance()
    assert schedule.chosen() is None
    with pytest.raises(RuntimeError, match=r"outside of clock\.attached"):
        Pattern(order).start(nn.Identity(), StepClock()).bits(site())


@given(st.integers(1, 40).map(lambda n: 2 * n), st.integers(0, 5))
def test_sba_is_a_seeded_permutation_with_half_of_each(steps, seed):
    levels = Pattern("sba", seed=seed).levels(steps)
    assert levels == Pattern("sba", seed=seed).levels(steps) and levels.count(4) == levels.count(8) == steps // 2


def test_sba_depends_on_its_seed():
    orders = [tuple(Pattern("sba", seed=seed).levels(50)) for seed in range(8)]
    assert len(set(orders)) == 8 and orders[0] not in [tuple(Pattern(order).levels(50)) for order in ("stp", "itp", "abs")]


SCHEDULES = [Pattern("abs"), DeltaGbs(), Table(activation=(8, 8, 4, 4))]


@pytest.mark.parametrize("part", SCHEDULES, ids=lambda part: part.part_name())
def test_one_recipe_serves_all_rows(part):
    for bits in (4, 8, None, 3, 12):
        assert part.plan(site(4, bits), 4, [8, 8, 4, 4]) == [(4, bits)] * 4
    plan = part.plan(site(4, 6), 4)
    assert {activation for _, activation in plan} == {4, 8} and sum(activation for _, activation in plan) / 4 == 6
    assert {weight for weight, _ in plan} == {4}
    timed = site(4, 6, timed=((4, 8), (4, 6)))
    assert part.plan(timed, 4, [4, 4, 4, 8])[:2] == [(4, 8), (4, 8)]


@given(st.integers(4, 8), st.integers(1, 50))
def test_nominal_bits_have_the_mean_of_the_row(bits, steps):
    plan = [activation for _, activation in DeltaGbs().plan(site(4, bits), steps)]
    assert set(plan) <= {4, bits, 8} and 0 <= sum(plan) / steps - bits < 4 / steps
    if steps * (bits - 4) % 4 == 0:
        assert sum(plan) == bits * steps


def test_what_was_chosen_is_accounted():
    part, chosen = DeltaGbs(), [8, 8, 4, 4]
    assert part.plan(site(4, 6), 4, chosen) == [(4, 8), (4, 8), (4, 4), (4, 4)]
    with pytest.raises(ValueError, match="shorter"):
        part.plan(site(4, 6), 4, [8])


def test_tables_of_weights_and_of_floating_point():
    part = Table(activation=(16, 4), weight=(8, 4, 3))
    assert part.plan(site(6, 6), 6) == [(8, None), (8, None), (4, None), (4, 4), (3, 4), (3, 4)]
    assert part.plan(site(8, 16), 6) == [(8, 16)] * 6
    assert Table(weight=(8, 4)).plan(site(6, 6), 2) == [(8, 6), (4, 6)]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("pattern", {"order": "spt"}, "method.schedule.order=spt is not one of its values (did you mean stp?)"),
        ("pattern", {"low": 8}, "method.schedule.high=8 must be a whole number above low=8 and at most 15"),
        ("delta_gbs", {"delta": -1.0}, "method.schedule.delta=-1.0 must be a number of at least 0"),
        ("delta_gbs", {"low": 1}, "method.schedule.low=1 must be a whole number in 2..15"),
        ("table", {}, "method.schedule.activation=() must be given (or method.schedule.weight)"),
        ("table", {"activation": [8, 4.5]}, "method.schedule.activation=(8, 4.5) must be a list of whole numbers in 2..16"),
    ],
)
def test_errors_are_one_sentence(name, options, sentence):
    part = find("schedules", name, "")
    key = part.where.format(name=name)
    with pytest.raises(ConfigError, match=re.escape(sentence.replace("method.schedule", key))):
        build(part, options)
    with pytest.raises(ConfigError, match="as many parts as the 2 steps"):
        Table(activation=(8, 4, 8)).check(2)


def run_tiny(**schedule):
    """Bits of one layer at each step of a trajectory of the tiny model, as it was quantized, and the trace."""
    model, clock = stdit(), StepClock()
    made = recipe("dynamic", 4, 6, schedule=schedule)
    with quantize(model, roles(model), made, None, clock) as quantized:
        outputs = sample(model, clock, 0)
        return outputs, quantized.trace(), made, sites_of(model, roles(model))


def test_a_switched_model_computes_what_fixed_bits_compute_at_each_step():
    outputs, trace, made, sites = run_tiny(policy="delta_gbs", delta=math.inf)
    assert trace["chosen"] == [8, 8, 4, 4] and trace["activation_bits"] == 6 and made.batch_dependent
    model, clock = stdit(), StepClock()
    for bits, steps in ((8, (0, 1)), (4, (2, 3))):
        with quantize(model, roles(model), recipe("dynamic", 4, bits), None, clock):
            fixed = sample(model, clock, 0)
        assert all(torch.equal(outputs[step], fixed[step]) for step in steps)
        assert not any(torch.equal(outputs[step], fixed[step]) for step in set(range(STEPS)) - set(steps))
    assert made.average_bits(sites, [8, 8, 8, 4], [True, True, False, True]) == pytest.approx((4, 20 / 3))


def test_the_output_watched_is_the_conditional_half():
    _, trace, _, _ = run_tiny(policy="delta_gbs", delta=1.5)
    model, clock = stdit(), StepClock()
    with quantize(model, roles(model), recipe("dynamic", 4, 8), None, clock):
        first, second = sample(model, clock, 0)[:2]
    change = (second[:1] - first[:1]).abs().sum() / first[:1].abs().sum()
    assert trace["chosen"][2] == (8 if change >= 1.5 else 4)
    assert inputs(0, 0)["x"].shape[0] == 2


def test_pattern_on_a_model():
    outputs, trace, made, _ = run_tiny(policy="pattern", order="abs")
    assert trace is None and not made.batch_dependent
    model, clock = stdit(), StepClock()
    with quantize(model, roles(model), recipe("dynamic", 4, 8), None, clock):
        assert torch.equal(sample(model, clock, 0)[1], outputs[1])
