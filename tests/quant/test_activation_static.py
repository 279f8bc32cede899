"""Static ranges from samples: percentile, smallest error, all; which a rotation leaves as the only ones there are."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stdit import STEPS, recipe, roles, sample, stdit

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.format import Format
from vdqbench.quant.observer import percentile_range, searched_range
from vdqbench.quant.parts import build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.quantizer import choose_qparams, fake_quantize
from vdqbench.replay import CallRecorder

LAYER = "blocks.1.attn_temp.q"
tails = st.builds(lambda seed, df: torch.distributions.StudentT(df).sample((3000,)) * seed, st.floats(0.1, 9), st.floats(1.5, 30))


@pytest.fixture(scope="module")
def calibrated():
    model, clock = stdit(), StepClock()
    recorder = CallRecorder(clock)
    runs = [lambda p=p: sample(model, clock, p) for p in range(2)]
    return calibrate(model, roles(model), runs, clock, calls=recorder), recorder.recorded()


def quantized(calibrated, observer, bits=8, **changes):
    """The tiny model's static recipe, at work."""
    statistics, calls = calibrated
    model, clock = stdit(), StepClock()
    made = recipe("tsw", 8, bits, activation__observer=observer, activation__percentile=changes.pop("percentile", 99.0), **changes)
    return model, clock, quantize(model, roles(model), made, statistics, clock, calls=lambda: calls)


def activation(model, layer=LAYER):
    return model.get_submodule(layer).run.plan.activation


def error(x, lo, hi, fmt):
    return (fake_quantize(x, choose_qparams(lo, hi, fmt), fmt) - x).abs().double().pow(2.4).mean()


def test_percentiles_by_nearest_rank():
    x = torch.arange(1.0, 201.0)[torch.randperm(200)]
    assert [float(end) for end in percentile_range(x, 99)] == [3, 198]
    assert [float(end) for end in percentile_range(x, 100)] == [1, 200]
    assert [float(end) for end in percentile_range(x.view(10, 20), 50.5)] == [100, 101]
    assert [float(end) for end in percentile_range(torch.tensor([7.0]), 99)] == [7, 7]


@settings(deadline=None, max_examples=15)
@given(tails, st.integers(3, 8), st.booleans())
def test_the_searched_range_is_the_best_of_eighty(x, bits, symmetric):
    fmt = Format(bits, symmetric)
    lo, hi = searched_range(x, fmt)
    found = error(x, lo, hi, fmt)
    all_of_them = [error(x, x.min() * (1 - 0.01 * i), x.max() * (1 - 0.01 * i), fmt) for i in range(80)]
    assert found <= min(all_of_them) * (1 + 1e-4) and found <= all_of_them[0] * (1 + 1e-6)
    assert lo / x.min() == pytest.approx(float(hi / x.max()), rel=1e-5)


def test_the_searched_range_of_a_gaussian_and_of_what_fits_the_grid():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    lo, hi = searched_range(x, Format(4))
    assert 0.5 < float(hi / x.max()) < 0.75, "4 bits clip a Gaussian between two and three standard deviations"
    assert float((hi - lo) / 15) == pytest.approx(0.37, abs=0.05)
    levels = torch.arange(-8.0, 8.0)
    assert torch.stack(searched_range(levels, Format(4))).tolist() == [-8, 7], "the widest range wins ties"
    assert torch.stack(searched_range(torch.zeros(5), Format(4))).tolist() == [0, 0]


@pytest.mark.parametrize("ranges", [1, 2, STEPS])
@pytest.mark.parametrize("observer", ["percentile", "mse", "sampled_minmax"])
def test_ranges_are_those_of_the_samples_of_their_steps(calibrated, observer, ranges):
    model, _, at_work = quantized(calibrated, observer, bits=5, activation__ranges=ranges)
    with at_work:
        plan = model.get_submodule(LAYER).run.plan
        samples, fmt = plan.views[0].samples(), Format(5)
        lo, hi = plan.activation.bounds(fmt)
    assert lo.shape == hi.shape == (ranges, 1) and plan.activation.ranges == ranges
    for index in range(ranges):
        x = samples.values[samples.step * ranges // STEPS == index]
        expected = {
            "percentile": percentile_range(x, 99.0),
            "mse": searched_range(x, fmt),
            "sampled_minmax": (x.min(), x.max()),
        }[observer]
        assert (lo[index, 0], hi[index, 0]) == expected
        assert lo[index, 0] >= x.min() and hi[index, 0] <= x.max()
        coded = plan.activation.encoder(5, index, "both", None)(x)
        torch.testing.assert_close(coded.values * coded.delta, fake_quantize(x, choose_qparams(*expected, fmt), fmt))


def test_samples_lie_within_the_recorded_extremes(calibrated):
    model, _, at_work = quantized(calibrated, "sampled_minmax", calibration={"draw": "all", "tokens": 2})
    with at_work:
        sampled = activation(model)
    model, _, at_work = quantized(calibrated, "minmax")
    with at_work:
        full = activation(model)
    assert (full.lo <= sampled.lo).all() and (sampled.hi <= full.hi).all() and not torch.equal(full.hi, sampled.hi)


def test_the_search_follows_the_bits_of_a_schedule(calibrated):
    model, clock, at_work = quantized(calibrated, "mse", bits=6, activation__ranges=1, schedule={"policy": "pattern", "order": "abs"})
    with at_work:
        sample(model, clock, 0)
        found = activation(model).found
        views = model.get_submodule(LAYER).run.plan.views
        assert {fmt.bits for fmt in found} == {4, 8}
        for fmt, (lo, hi) in found.items():
            assert torch.stack([lo[0, 0], hi[0, 0]]).equal(torch.stack(searched_range(views[0].samples().values, fmt)))


def test_needs_and_identity():
    def needs(**changes):
        return recipe("tsw", **changes).needs

    assert needs() == {"min", "max"} and needs(activation__observer="percentile") == {"calls"} == needs(activation__observer="mse")
    assert "percentile" not in recipe("asq").activation.semantic() and "momentum" not in recipe("asq").activation.semantic()
    changed = [recipe("tsw", activation__observer="percentile", activation__percentile=p).semantic() for p in (99.0, 99.9)]
    assert changed[0] != changed[1]


def test_ranges_of_steps_are_not_cut_from_drawn_moments(calibrated):
    """Their statistics are in the order of the draw, so that a part of them is no range of steps."""
    draw = {"draw": "normal", "moments": 8}
    with pytest.raises(
        Unsupported, match=r"method\.activation\.ranges=4 needs statistics of every step: use method\.calibration\.draw=all"
    ):
        quantized(calibrated, "minmax", calibration=draw)
    with pytest.raises(Unsupported, match=r"method\.transform\.smooth\.ranges=2 needs statistics of every step"):
        quantized(calibrated, "minmax", calibration=draw, activation__ranges=1, transform={"smooth": {"ranges": 2}})
    with quantized(calibrated, "minmax", calibration=draw, activation__ranges=1)[2]:
        pass


def test_refusals(calibrated):
    with pytest.raises(Unsupported, match=re.escape("method.activation.observer=mse must be one of minmax, ema, last")):
        quantized(calibrated, "mse", activation__split_branches=True)
    for options, sentence in (
        ({"percentile": 50.0}, "method.activation.percentile=50.0 must be a number in (50, 100]"),
        ({"observer": "percentil"}, "method.activation.observer=percentil is not one of its values (did you mean percentile?)"),
    ):
        with pytest.raises(ConfigError, match=re.escape(sentence)):
            build(find("activations", "static", ""), options)
    with pytest.raises(Unsupported, match="draws no moment in one of 2 parts of the steps"):
        quantized(calibrated, "mse", activation__ranges=2, calibration={"draw": "single", "at": 0.0})
