"""Grids found from the weight alone: golden numbers, few-line references and properties of min-max, MSE, PBQ and BGR."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdqbench.errors import ConfigError
from vdqbench.quant.format import Format, make
from vdqbench.quant.parts import Site, build, find
from vdqbench.quant.quantizer import centred_codes, fake_quantize
from vdqbench.quant.ranges import bgr, minmax, mse, pbq
from vdqbench.quant.rows import Rows
from vdqbench.quant.view import LayerView

GRIDS = ("minmax", "mse", "pbq", "bgr")
GOLDEN = torch.tensor([[-1.0, 0.25, 0.5, 2.0], [0.1, 0.2, 0.3, 0.4]])
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)


def rows_of(seed: int, rows: int, columns: int, scale: float, shift: float, tails: float) -> torch.Tensor:
    """Rows of different sizes, some of them with long tails, one of them constant and one dead."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    weight = (weight.sign() * weight.abs() ** tails + shift) * 10**scale * torch.rand(rows, 1, generator=generator)
    weight[0], weight[-1] = weight[0, 0], 0.0
    return weight


weights = st.builds(
    rows_of, st.integers(0, 1000), st.integers(2, 6), st.integers(1, 50), st.floats(-5, 5), st.floats(-3, 3), st.floats(1, 4)
)
formats = st.builds(Format, st.integers(2, 8), st.booleans())


def view_of(weight: torch.Tensor, family: str = "int", name: str = "layer") -> LayerView:
    return LayerView(Site(name, "ffn.up", tuple(weight.shape), 4, None, formats=(family, "int")), weight, (weight,), {})


def grid(name: str, **options):
    return build(find("weights", name, ""), options)


def errors(weight: torch.Tensor, params, fmt: Format) -> torch.Tensor:
    return (weight.double() - fake_quantize(weight, params, fmt).double()).square().sum(1)


def found(name: str, weight: torch.Tensor, fmt: Format):
    rows = Rows.of(weight, "channel")
    return {"minmax": lambda: minmax(weight, fmt), "mse": lambda: mse(weight, fmt, p=2.0), "pbq": lambda: pbq(weight, fmt)}.get(
        name, lambda: bgr(rows, fmt)
    )()


def test_the_worked_example_of_the_papers_code():
    tensor = grid("minmax").quantize(view_of(GOLDEN), 4)
    assert tensor.codes.int().tolist() == [[0, 6, 7, 15], [4, 8, 11, 15]]
    torch.testing.assert_close(tensor.params.delta.flatten(), torch.tensor([0.2, 0.4 / 15]))
    assert tensor.params.zero.flatten().tolist() == [5, 0]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(3, 10), (3, 10, 2, 2)])
def test_a_group_is_quantized_as_if_it_were_alone(name, symmetric, shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 11).view(1, 10, *(1,) * (len(shape) - 2))
    grouped = grid(name, per="group", group_size=4, symmetric=symmetric).quantize(view_of(weight), 3)
    alone = [grid(name, symmetric=symmetric).quantize(view_of(weight[:, part]), 3) for part in (slice(0, 4), slice(4, 8), slice(8, 10))]
    assert torch.equal(grouped.codes, torch.cat([part.codes for part in alone], dim=1))
    assert torch.equal(grouped.dequantize(), torch.cat([part.dequantize() for part in alone], dim=1))
    whole = grid(name, per="tensor", symmetric=symmetric).quantize(view_of(weight), 3)
    assert torch.equal(whole.codes.flatten(), grid(name, symmetric=symmetric).quantize(view_of(weight.reshape(1, -1)), 3).codes[0])


def test_numbers_stored_beside_the_codes():
    shape = (6, 10, 3, 3)
    assert [grid("pbq", per=per).values(shape) for per in ("channel", "tensor")] == [12, 2]
    assert grid("mse", per="group", group_size=4).values(shape) == 6 * 3 * 2
    assert grid("mse", per="group", group_size=16, symmetric=True).values(shape) == 6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("minmax", {"per": "row"}, "method.weight.per=row is not one of its values"),
        ("minmax", {"per": "group"}, "method.weight.group_size=None must be at least 1 with per=group"),
        ("pbq", {"per": "group", "group_size": 0}, "method.weight.group_size=0 must be at least 1 with per=group"),
        ("mse", {"group_size": 64}, "method.weight.group_size=64 must be null with per=channel"),
        ("mse", {"candidates": 101}, "method.weight.candidates=101 must be in 1..100"),
        ("mse", {"p": 0.0}, "method.weight.p=0.0 must be a positive number"),
        ("pbq", {"candidates": 0}, "method.weight.candidates=0 must be at least 1"),
        ("bgr", {"iterations": -1}, "method.weight.iterations=-1 must be 0 or more"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ConfigError, match=message):
        grid(name, **options)


def test_min_max_keeps_its_key():
    assert grid("minmax").semantic() == {"part": "minmax", "version": 1, "per": "channel", "symmetric": False}
    assert grid("minmax", per="group", group_size=8).semantic()["group_size"] == 8


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_mse_is_the_best_of_its_candidates(symmetric, p):
    """A row at a time, in double precision, as the formulas read."""
    weight, bits = rows_of(3, 5, 40, 0.0, 0.3, 1.5), 4
    tensor = grid("mse", p=p, symmetric=symmetric).quantize(view_of(weight), bits)
    for row, got in zip(weight.double().numpy(), tensor.dequantize().double().numpy(), strict=True):
        best = np.inf
        for i in range(80):
            lo, hi = min(row.min(), 0) * (1 - 0.01 * i), max(row.max(), 0) * (1 - 0.01 * i)
            if symmetric:
                step, zero, low, high = max(-lo, hi) / 7, 0, -8, 7
            else:
                step = (hi - lo) / 15
                zero, low, high = np.round(-lo / max(step, 1e-12)), 0, 15
            step = max(step, 1e-12)
            values = (np.clip(np.round(row / step) + zero, low, high) - zero) * step
            best = min(best, (np.abs(row - values) ** p).sum())
        assert (np.abs(row - got) ** p).sum() == pytest.approx(best, rel=1e-4, abs=1e-12)


def test_pbq_moves_both_ends_by_the_same_amount():
    row = torch.cat([torch.linspace(-1, 1, 200), torch.tensor([5.0])])[None]
    fmt = Format(3)
    tried = [errors(row, minmax(torch.tensor([[-1 + k * 0.03, 5 - k * 0.03]]), fmt), fmt) for k in range(100)]
    best = int(torch.stack(tried).argmin())
    ends = torch.tensor([[-1 + best * 0.03, 5 - best * 0.03]])
    torch.testing.assert_close(pbq(row, fmt).delta, minmax(ends, fmt).delta)
    assert best > 0


@quick
@given(weights, formats)
def test_pbq_is_never_worse_than_min_max_and_bgr_never_worse_than_pbq(weight, fmt):
    widest, bounded, refined = (errors(weight, found(name, weight, fmt), fmt) for name in ("minmax", "pbq", "bgr"))
    assert (bounded <= widest).all() and (refined <= bounded).all()
    assert (errors(weight, found("mse", weight, fmt), fmt) <= widest).all()


@quick
@given(weights, formats)
def test_one_candidate_is_min_max(weight, fmt):
    widest = minmax(weight, fmt)
    for params in (pbq(weight, fmt, 1), mse(weight, fmt, 1), bgr(Rows.of(weight, "channel"), fmt, 1, 0)):
        assert torch.equal(params.delta, widest.delta) and torch.equal(params.zero, widest.zero)


@quick
@given(weights, formats, st.sampled_from(GRIDS))
def test_quantizing_twice_changes_nothing_and_zero_is_exact(weight, fmt, name):
    params = found(name, weight, fmt)
    once = fake_quantize(weight, params, fmt)
    assert torch.equal(fake_quantize(once, params, fmt), once)
    assert fake_quantize(torch.zeros_like(weight), params, fmt).abs().max() == 0


@quick
@given(weights, formats, st.sampled_from(GRIDS))
def test_the_error_inside_the_range_is_at_most_half_a_step(weight, fmt, name):
    params = found(name, weight, fmt)
    low, high = (bound * params.delta for bound in params.centred_bounds(fmt))
    inside = (weight >= low) & (weight <= high)
    off = (weight.double() - fake_quantize(weight, params, fmt).double()).abs()
    assert (off <= params.delta.double() * 0.50001)[inside].all()


@quick
@given(weights, formats, st.sampled_from(GRIDS))
def test_a_row_does_not_depend_on_the_others(weight, fmt, name):
    """So a dead channel or a constant row harms nobody else."""
    together = found(name, weight, fmt)
    for i in range(len(weight)):
        alone = found(name, weight[i : i + 1], fmt)
        assert torch.equal(together.delta[i], alone.delta[0]) and torch.equal(together.zero[i], alone.zero[0])
    assert fake_quantize(weight, together, fmt)[-1].abs().max() == 0


@quick
@given(st.integers(0, 1000), st.integers(2, 7), st.booleans(), st.sampled_from(GRIDS))
def test_more_bits_have_less_error_on_many_gaussian_weights(seed, bits, symmetric, name):
    """A single row can lose by chance; a matrix of them cannot."""
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(seed))
    few, many = (errors(weight, found(name, weight, fmt), fmt).sum() for fmt in (Format(bits, symmetric), Format(bits + 1, symmetric)))
    assert many < 0.5 * few


def test_four_bits_for_gaussian_weights():
    """The best step of 16 levels is 0.335 sigma; with a level at 0, on one side 7 and on the other 8, it is 0.339 sigma."""
    row = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    for name in ("mse", "pbq", "bgr"):  # candidates are 1 % of min-max apart, 0.006 sigma here
        params = found(name, row, Format(4))
        assert float(params.delta) == pytest.approx(0.338, abs=0.006)
        assert float(errors(row, params, Format(4))) / row.numel() == pytest.approx(0.0119, abs=0.0002)


def test_pbq_on_the_layer_that_the_paper_draws():
    """double_blocks.6.txt_mlp.fc1: sigma 0.0439, ends at -0.2946 and 0.2892; the claim is 39 % less std of the error."""
    row = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)) * 0.0439 - 0.0001
    row[0, :2] = torch.tensor([-0.2946, 0.2892])
    row.clamp_(-0.2946, 0.2892)
    widest = minmax(row, Format(4))
    assert float(widest.delta) == pytest.approx(0.0389, abs=1e-4)
    spread = [(row - fake_quantize(row, params, Format(4))).std() for params in (widest, pbq(row, Format(4)))]
    assert float(spread[1] / spread[0]) < 1 - 0.39
    eight = [float((row - fake_quantize(row, params, Format(8))).std()) for params in (minmax(row, Format(8)), pbq(row, Format(8)))]
    assert eight[1] == pytest.approx(eight[0], rel=0.25)


def test_bgr_gains_on_pbq():
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    bounded, refined = (errors(weight, found(name, weight, Format(3)), Format(3)) for name in ("pbq", "bgr"))
    assert (refined < bounded).float().mean() > 0.9
    once = errors(weight, bgr(Rows.of(weight, "channel"), Format(3), iterations=1), Format(3))
    assert (refined <= once).all() and (once <= bounded).all() and refined.sum() < once.sum() < bounded.sum()


def test_bgr_ignores_what_fills_a_short_group():
    """The mean in the update of the zero point is over the weights of the group alone."""
    weight = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) * 2 - 0.7
    padded, alone = Rows.of(weight, "group", 16), Rows.of(weight, "channel")
    assert padded.values.shape == (4, 16) and padded.count.flatten().tolist() == [9] * 4
    assert torch.equal(bgr(padded, Format(2)).delta, bgr(alone, Format(2)).delta)
    assert torch.equal(bgr(padded, Format(2)).zero, bgr(alone, Format(2)).zero)


@pytest.mark.parametrize(("family", "bits"), [("fp", 8), ("fp", 4)])
@pytest.mark.parametrize("name", GRIDS)
def test_formats_of_floating_point(family, bits, name):
    fmt = make(family, bits)
    weight = rows_of(5, 6, 200, -1.0, 0.2, 1.0)
    tensor = grid(name).quantize(view_of(weight, family), bits)
    assert torch.equal(fmt.round_(tensor.centred.clone()), tensor.centred) and tensor.centred.abs().max() <= fmt.qmax
    assert tensor.params.zero.abs().max() == 0
    widest = grid("minmax").quantize(view_of(weight, family), bits)
    assert name == "mse" or (errors(weight, tensor.params, fmt) <= errors(weight, widest.params, fmt)).all()
    assert torch.equal(centred_codes(tensor.dequantize(), tensor.params, fmt), tensor.centred)
