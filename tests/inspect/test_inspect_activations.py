"""Ranges by step and channel and coverage of levels, on statistics made by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES

from vdqbench.calibrate import Calibration
from vdqbench.errors import ConfigError
from vdqbench.inspect import activations
from vdqbench.inspect.inputs import Input, chosen, inputs_of, joined


def statistics(low, high):
    """Of [P, K, branches, C]."""
    low, high = torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)
    return {"min": low, "max": high, "mean_max": torch.maximum(high, -low).amax(2)}


# one prompt, three steps, two branches, three channels
A = statistics(
    [[[[-1, 0, 0], [-2, 0, 0]], [[-1, -1, 0], [0, 0, 0]], [[0, 0, -8], [0, 0, 0]]]],
    [[[[1, 0, 0], [1, 0.5, 0]], [[1, 1, 1], [1, 0, 0]], [[1, 2, 4], [1, 0, 0]]]],
)
ZERO = statistics([[[[0, 0]], [[0, -1]], [[0, 0]]]], [[[[0, 0]], [[0, 3]], [[0, 1]]]])
CALIBRATION = Calibration(
    {"b.q": A, "b.up": ZERO}, {"b.q": "b.q", "b.k": "b.q", "b.v": "b.q", "b.up": "b.up"}, steps=3, prompts=1
)  # fmt: skip
ROLES = {"b.q": "self_attn.q", "b.k": "self_attn.k", "b.v": "self_attn.v", "b.up": "ffn.up"}
INPUTS = [Input("b.q", "self_attn.q/k/v"), Input("b.up", "ffn.up")]


def test_layers_that_read_one_tensor_are_one_input():
    assert inputs_of(ROLES, CALIBRATION) == INPUTS
    assert inputs_of({"b.v": "self_attn.v"}, CALIBRATION) == [Input("b.q", "self_attn.v")]
    assert joined(["self_attn.q", "ffn.up", "self_attn.k"]) == "self_attn.q/k + ffn.up" and joined(["embed", "embed"]) == "embed"
    with pytest.raises(ConfigError, match="has no layer c"):
        inputs_of({"c": "head"}, CALIBRATION)


def test_patterns_choose_layers_by_name_or_role():
    assert list(chosen(ROLES, None)) == list(ROLES)
    assert list(chosen(ROLES, "self_attn.[qv],b.up")) == ["b.q", "b.v", "b.up"]
    with pytest.raises(ConfigError, match=r"layers=b.\*,ffn.upp: ffn.upp fits no layer's name or role \(did you mean ffn.up"):
        chosen(ROLES, "b.*,ffn.upp")


def test_the_largest_magnitude_of_each_step_is_over_branches_and_channels():
    frame = activations.by_step(INPUTS, CALIBRATION)
    assert frame[["input", "step", "largest"]].values.tolist() == [
        ["b.q", 0, 2], ["b.q", 1, 1], ["b.q", 2, 8], ["b.up", 0, 0], ["b.up", 1, 3], ["b.up", 2, 1],
    ]  # fmt: skip
    ratios = activations.step_ratios(frame)
    assert ratios["ratio"].iloc[0] == 8 and math.isnan(ratios["ratio"].iloc[1]), "a step of zeros has no ratio"


def test_channels_are_compared_with_the_median_one():
    frame = activations.by_channel(INPUTS, CALIBRATION)
    first = frame.iloc[0]
    assert (first["channels"], first["p00"], first["p50"], first["p100"], first["ratio"]) == (3, 2, 2, 8, 4)
    assert first["p75"] == 5, "half way between 2 and 8"
    second = frame.iloc[1]  # channels 0 and 3, whose median is 1.5
    assert (second["p50"], second["ratio"]) == (1.5, 2)
    dead = statistics([[[[0, 0, 0]]]], [[[[0, 0, 1]]]])
    one = activations.by_channel([Input("x", "ffn.up")], Calibration({"x": dead}, {"x": "x"}, 1, 1))
    assert math.isnan(one["ratio"].iloc[0])


def test_the_picture_shows_the_widest_input_of_each_kind():
    other = statistics([[[[0, 0, 0]]] * 3], [[[[1, 1, 2]]] * 3])
    calibration = Calibration(
        {**CALIBRATION.tensors, "c.q": other, "t": A}, {**CALIBRATION.source, "c.q": "c.q", "t": "t"}, steps=3, prompts=1
    )
    inputs = [*INPUTS, Input("c.q", "self_attn.q"), Input("t", "time_proj")]
    frame = activations.step_by_channel(activations.by_channel(inputs, calibration), calibration)
    assert list(dict.fromkeys(frame["input"])) == ["b.q", "b.up", "t"], "in the order of the model"
    own = frame[frame["input"] == "b.q"]
    assert own["channel"].tolist() == [0, 1, 2] and set(own["channels"]) == {3}
    assert own[[0, 1, 2]].values.tolist() == [[2, 1, 1], [0.5, 1, 2], [0, 1, 8]]


def test_of_many_channels_the_largest_are_shown_in_their_order(monkeypatch):
    monkeypatch.setattr(activations, "MOST_CHANNELS", 2)
    frame = activations.step_by_channel(activations.by_channel(INPUTS[:1], CALIBRATION), CALIBRATION)
    assert frame["channel"].tolist() in ([0, 2], [1, 2]) and set(frame["channels"]) == {3}


def test_coverage_by_hand():
    low, high = torch.tensor([-1.0, 0.0, 0.25]), torch.tensor([3.0, 1.0, 0.25])
    assert activations.channel_coverage(low, high).tolist() == [1.0, 0.25, 0.0]
    # steps of 4 / 255: -1, 1 and 3 are -63.75, 63.75 and 191.25 of them, so that 0 .. 1 has the codes 0 .. 64
    assert activations.channel_levels(low, high, 8).tolist() == [256, 65, 1]
    # steps of 4 / 15: -3.75, 3.75 and 11.25
    assert activations.channel_levels(low, high, 4).tolist() == [16, 5, 1]
    one_sided = activations.channel_coverage(torch.tensor([1.0, 1.5]), torch.tensor([2.0, 1.5]))
    assert one_sided.tolist() == [0.5, 0.0], "0 is on the grid"
    assert activations.channel_coverage(torch.zeros(2), torch.zeros(2)).tolist() == [0, 0]
    frame = activations.coverage(activations.ranges(INPUTS[:1], CALIBRATION))
    row = frame.iloc[0]  # ranges -2..1, -1..2 and -8..4 on a grid of -8..4
    assert row["p50"] == pytest.approx(3 / 12) and row["p100"] == 1 and row["levels8"] == pytest.approx(3 / 12 * 255 + 1, abs=1)
    assert row["single4"] == 0 and row["single8"] == 0
    still = Calibration({"g": statistics([[[[0, 2]]]], [[[[0, 2]]]])}, {"g": "g"}, 1, 1)
    assert activations.coverage(activations.ranges([Input("g", "pooled")], still))["p50"].isna().all(), "what never changes covers nothing"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5)), min_size=1, max_size=12), st.integers(2, 8))
def test_levels_follow_coverage_to_within_rounding(channels, bits):
    low = torch.tensor([a for a, _ in channels])
    high = low + torch.tensor([width for _, width in channels])
    share = activations.channel_coverage(low, high)
    levels = activations.channel_levels(low, high, bits)
    assert (share >= 0).all() and (share <= 1 + 1e-6).all()
    assert (levels >= 1).all() and (levels <= 2**bits).all()
    if float(high.amax().clamp(min=0) - low.amin().clamp(max=0)) > 1e-3:
        assert ((levels - 1 - share * (2**bits - 1)).abs() <= 1.01).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_frames_of_all_its_inputs(family):
    tiny = FAMILIES[family]()
    calibration, _ = tiny.calibrated()
    inputs = inputs_of(tiny.roles, calibration)
    assert {one.layer for one in inputs} == set(calibration.tensors) and len(inputs) < len(tiny.roles)
    frame = activations.by_step(inputs, calibration)
    assert len(frame) == calibration.steps * len(inputs) and (frame["largest"] >= 0).all()
    channels = activations.by_channel(inputs, calibration)
    for row in channels.itertuples():
        known = calibration.statistics(row.input)
        assert row.p100 == pytest.approx(float(torch.maximum(known["max"].amax(), -known["min"].amin())))
    covered = activations.coverage(activations.ranges(inputs, calibration))
    known = covered.dropna()
    assert known["p00"].between(0, 1).all() and known["levels4"].between(1, 16).all()
    assert len(covered) - len(known) == (2 if family == "hunyuan" else 0), "the embedded guidance is the same in all calls"
