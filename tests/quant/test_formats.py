"""Formats of floating point: all their values, torch's own casts, closed forms of block scales, and what recipes make of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny_stdit import CONF, METHODS, STEPS, method_config, roles, sample, stdit

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.accounting import account
from vdqbench.quant.blocks import block_encoder, quantize_blocks
from vdqbench.quant.format import E2M1, E2M3, E3M2, E4M3, E5M2, Format, families, make
from vdqbench.quant.kernels.sim import Sim
from vdqbench.quant.parts import Site
from vdqbench.quant.quantize import quantize as quantize_model
from vdqbench.quant.quantizer import choose_qparams, fake_quantize, quantize
from vdqbench.quant.recipe import Recipe

MX8, MX6, MX4, NV4 = make("mx", 8), make("mx", 6), make("mx", 4), make("nv", 4)
BLOCKS = [MX8, MX6, MX4, make("mx_wide", 8), make("mx_wide", 6), NV4]
FLOATS = [E4M3, E5M2, E2M3, E3M2, E2M1]
BITS = sorted(path.stem for path in (CONF / "bits").glob("*.yaml") if "format:" in path.read_text())
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)


def decoded(exponent: int, mantissa: int, codes: int) -> list[float]:
    """The first values of a sign-less format, from its bit patterns."""
    bias = 2 ** (exponent - 1) - 1
    values = []
    for code in range(codes):
        e, m = divmod(code, 2**mantissa)
        values.append(m / 2**mantissa * 2.0 ** (1 - bias) if e == 0 else (1 + m / 2**mantissa) * 2.0 ** (e - bias))
    return values


GRIDS = {
    E4M3: decoded(4, 3, 127),  # S.1111.111 is NaN
    E5M2: decoded(5, 2, 124),  # exponent 31 is infinity and NaN
    E2M3: decoded(2, 3, 32),
    E3M2: decoded(3, 2, 32),
    E2M1: decoded(2, 1, 8),
}


def nearest(x: float, grid: list[float]) -> float:
    """The nearest value, of two equally near ones that with an even code, saturating."""
    distances = [abs(min(abs(x), grid[-1]) - value) for value in grid]
    closest = [code for code, distance in enumerate(distances) if distance == min(distances)]
    code = closest[0] if len(closest) == 1 else next(code for code in closest if code % 2 == 0)
    return math.copysign(grid[code], x)


def on_unit_grid(x: torch.Tensor, fmt: Format) -> torch.Tensor:
    return fmt.round_(x.clone()).clamp_(fmt.qmin, fmt.qmax)


def test_the_values_of_the_small_formats():
    assert GRIDS[E2M1] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert GRIDS[E2M3][:10] == [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1, 1.125] and GRIDS[E2M3][-2:] == [7, 7.5]
    assert GRIDS[E3M2][:6] == [0, 0.0625, 0.125, 0.1875, 0.25, 0.3125] and GRIDS[E3M2][-4:] == [16, 20, 24, 28]
    assert GRIDS[E4M3][1] == 2**-9 and GRIDS[E4M3][-1] == 448
    assert GRIDS[E5M2][1] == 2**-16 and GRIDS[E5M2][-1] == 57344


@pytest.mark.parametrize("fmt", FLOATS, ids=lambda fmt: f"e{fmt.exponent}m{fmt.mantissa}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_goes_to_the_nearest_value_ties_to_even(fmt, dtype):
    grid = GRIDS[fmt]
    assert fmt.qmax == grid[-1] and fmt.qmin == -grid[-1]
    between = [a + (b - a) * part for a, b in pairwise(grid) for part in (0, 0.25, 0.5, 0.75)]
    beside = [x * (1 + side) for x in between for side in (-2e-7, 2e-7)]
    x = torch.tensor([*between, *beside, grid[-1], 1.03 * grid[-1], 2 * grid[-1], 1e30, 1e-30], dtype=dtype)
    x = torch.cat([x, -x])
    expected = torch.tensor([nearest(value, grid) for value in x.tolist()], dtype=dtype)
    assert torch.equal(on_unit_grid(x, fmt), expected)
    assert on_unit_grid(torch.tensor([math.inf, -math.inf]), fmt).tolist() == [grid[-1], -grid[-1]]


@pytest.mark.parametrize("fmt, dtype", [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)])
def test_eight_bits_round_as_torch_casts(fmt, dtype):
    dense = torch.linspace(-fmt.qmax, fmt.qmax, 200_001)
    spread = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-8, 4, 200_000)
    subnormal = torch.linspace(-4, 4, 4001) * 2.0**fmt.lowest_exponent
    x = torch.cat([dense, spread, subnormal]).clamp(fmt.qmin, fmt.qmax)
    assert torch.equal(on_unit_grid(x, fmt), x.to(dtype).float())
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    assert sorted(set(codes[codes.isfinite()].abs().tolist())) == GRIDS[fmt]


def test_a_grid_of_floating_point_is_scaled_to_the_largest_magnitude():
    x = torch.tensor([-12.0, 0.9, 2.6, 5.0, 7.0])
    params = choose_qparams(x.amin(), x.amax(), E2M1)
    assert params.delta == 2 and params.zero == 0
    assert quantize(x, params, E2M1).tolist() == [-6, 0.5, 1.5, 2, 4]  # 2.5 is a tie between 2 and 3, 3.5 between 3 and 4
    assert fake_quantize(x, params, E2M1).tolist() == [-12, 1, 3, 4, 8]
    assert fake_quantize(torch.tensor([-99.0, 99.0]), params, E2M1).tolist() == [-12, 12]


def test_mxfp4_by_hand():
    block = torch.zeros(1, 32)
    block[0, :6] = torch.tensor([7.9, -5.0, 0.2, 0.25, 0.75, 3.4])
    coded = quantize_blocks(block, MX4, 1)
    assert set(coded.params.delta.flatten().tolist()) == {1.0}  # floor(log2 7.9) = 2 is the exponent of 6
    assert coded.dequantize()[0, :6].tolist() == [6, -4, 0, 0, 1, 3]  # 7.9 saturates; 5, 0.25 and 0.75 are ties
    assert quantize_blocks(block * 8, MX4, 1).params.delta[0, 0] == 8
    assert quantize_blocks(block / 1024, MX4, 1).dequantize()[0, 0] == 6 / 1024


def test_mxfp8_scales_are_powers_of_two_eight_below_the_largest():
    x = torch.tensor([[2.0**k * 1.5 for k in range(-40, 24)]]).repeat_interleave(32, dim=1)
    delta = quantize_blocks(x, MX8, 1).params.delta[0, ::32]
    assert delta.tolist() == [2.0 ** (k - 8) for k in range(-40, 24)]
    assert quantize_blocks(torch.full((1, 32), 1e-40), MX8, 1).params.delta[0, 0] == 2.0**-127  # the smallest E8M0 value


def test_nvfp4_by_hand():
    x = torch.zeros(2, 32)
    x[0, :3], x[0, 16:18], x[1, :2] = torch.tensor([2688.0, 1000.0, 700.0]), torch.tensor([3.0, 1.3]), torch.tensor([0.003, 0.0])
    coded = quantize_blocks(x, NV4, 1)
    assert coded.params.delta[0, 0] == 448  # the tensor's factor is 2688 / (448 * 6) = 1
    assert coded.dequantize()[0, :3].tolist() == [2688, 896, 672]
    assert coded.params.delta[0, 16] == 0.5 and coded.dequantize()[0, 16:18].tolist() == [3, 1.5]
    assert coded.params.delta[1, 0] == 2.0**-9 and coded.dequantize()[1, :2].tolist() == [1.5 * 2**-9, 0]
    assert quantize_blocks(torch.zeros(2, 16), NV4, 1).dequantize().abs().max() == 0


tensors = st.builds(
    lambda seed, rows, width, scale: torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 10**scale,
    st.integers(0, 1000),
    st.integers(1, 4),
    st.integers(1, 80),
    st.floats(-3, 3),
)


@quick
@given(tensors, st.sampled_from(BLOCKS))
def test_properties_of_blocks(x, fmt):
    coded = quantize_blocks(x, fmt, 1)
    once = coded.dequantize()
    assert once.shape == x.shape == coded.params.delta.shape and not coded.params.zero.any()
    torch.testing.assert_close(quantize_blocks(once, fmt, 1).dequantize(), once, rtol=1e-5, atol=0)
    assert torch.equal(quantize_blocks(-x, fmt, 1).dequantize(), -once)
    assert not quantize_blocks(torch.where(x > 0, x, 0.0), fmt, 1).dequantize()[x <= 0].any()
    step = coded.params.delta * 2.0 ** max(0, math.floor(math.log2(fmt.qmax)) - fmt.mantissa)
    saturated = coded.centred.abs() == fmt.qmax
    assert ((once - x).abs() <= 0.5001 * step)[~saturated].all()
    torch.testing.assert_close(block_encoder(fmt, -1, None)(x).values, once, rtol=1e-6, atol=0)
    for first in range(0, x.shape[1], fmt.block):  # in a block, what is larger stays larger
        order = x[:, first : first + fmt.block].argsort(dim=1)
        assert (once[:, first : first + fmt.block].gather(1, order).diff(dim=1) >= 0).all()


@quick
@given(tensors, st.sampled_from([*BLOCKS[:5]]))
def test_blocks_of_mx_do_not_know_of_each_other(x, fmt):
    whole = quantize_blocks(x, fmt, 1).dequantize()
    alone = [quantize_blocks(x[:, i : i + 32], fmt, 1).dequantize() for i in range(0, x.shape[1], 32)]
    assert torch.equal(whole, torch.cat(alone, dim=1))


def test_blocks_of_nvfp4_share_only_the_factor_of_the_tensor():
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    x[0, 0] = 10.0  # the largest
    changed = x.clone()
    changed[1, 16:32] *= 0.1
    before, after = (quantize_blocks(one, NV4, 1).dequantize() for one in (x, changed))
    same = torch.ones(3, 64, dtype=torch.bool)
    same[1, 16:32] = False
    assert torch.equal(before[same], after[same])
    assert not torch.equal(quantize_blocks(x * torch.tensor([[9.7], [1.0], [1.0]]), NV4, 1).dequantize()[1:], before[1:])


def test_blocks_lie_along_the_channels_of_convolutions_and_factors_come_first():
    x = torch.randn(2, 40, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = quantize_blocks(x.movedim(1, -1).reshape(-1, 40), MX4, 1).dequantize().reshape(2, 3, 3, 40).movedim(-1, 1)
    assert torch.equal(quantize_blocks(x, MX4, 1).dequantize(), expected)
    factors = torch.rand(40, 1, 1) + 0.5
    assert torch.equal(block_encoder(MX4, 1, factors)(x).values, quantize_blocks(x * factors, MX4, 1).dequantize())
    half = x.to(torch.bfloat16)
    assert torch.equal(block_encoder(MX8, 1, None)(half).values, quantize_blocks(half.float(), MX8, 1).dequantize())


@quick
@given(tensors, st.sampled_from(FLOATS))
def test_properties_of_scaled_grids(x, fmt):
    params = choose_qparams(x.amin(), x.amax(), fmt)
    once = fake_quantize(x, params, fmt)
    assert torch.equal(fake_quantize(once, params, fmt), once)
    flat = x.flatten()
    assert (once.flatten()[flat.argsort()].diff() >= 0).all()
    assert fake_quantize(torch.zeros(3), params, fmt).tolist() == [0, 0, 0]
    assert once.abs().max() <= x.abs().max() * 1.000001
    relative = (once - x).abs() / x.abs().clamp(min=1e-30)
    normal = (x / params.delta).abs() > 2.0**fmt.lowest_exponent
    assert (relative[normal] <= 2.0 ** -(fmt.mantissa + 1) * 1.0001).all()


def test_families_and_what_they_lack():
    assert families() == ["int", "fp", "fp_wide", "mx", "mx_wide", "nv"]
    assert make("int", 5, True) == Format(5, True) and make("fp", 8) is E4M3 and make("fp_wide", 8) is E5M2 and make("fp", 4) is E2M1
    assert [make("mx", bits).stored_bits for bits in (8, 6, 4)] == [8.25, 6.25, 4.25] and NV4.stored_bits == 4.5
    assert (E4M3.stored_bits, E4M3.block, MX4.block, NV4.block) == (8, 0, 32, 16)
    assert E4M3.symmetric and make("fp", 8, symmetric=False).symmetric, "grids of floating point have no zero point"
    with pytest.raises(Unsupported, match="nv has no numbers of 8 bits: give such layers 4, or 16"):
        make("nv", 8)
    with pytest.raises(ConfigError, match=r"bits\.weight=5: .*8 or 6 or 4"):
        Recipe.from_config(method_config("dynamic"), {"weight": 5, "activation": 8, "format": "mx"}, STEPS)
    with pytest.raises(ConfigError, match="fp8 is not a number format"):
        Recipe.from_config(method_config("dynamic"), {"weight": 8, "activation": 8, "format": "fp8"}, STEPS)


def recipe(method: str, bits: str) -> Recipe:
    config = OmegaConf.create({"bits": OmegaConf.load(CONF / "bits" / f"{bits}.yaml")})
    return Recipe.from_config(method_config(method), OmegaConf.to_container(config, resolve=True)["bits"], STEPS)


def outputs(method: str, bits: str, **options) -> list[torch.Tensor]:
    """Of one trajectory of a quantized tiny model."""
    model, clock = stdit(hidden_size=48), StepClock(STEPS)
    chosen = recipe(method, bits)
    calibration = calibrate(model, roles(model), [lambda: sample(model, clock, 0)], clock)
    with quantize_model(model, roles(model), chosen, calibration, clock, **options):
        return sample(model, clock, 0)


def error(given: list[torch.Tensor], exact: list[torch.Tensor]) -> float:
    return float(sum((a - b).square().sum() for a, b in zip(given, exact, strict=True)) / sum(b.square().sum() for b in exact))


@pytest.mark.parametrize("method", ["cw_tw", "dynamic", "asq"])
def test_every_format_runs_in_recipes_and_finer_ones_are_nearer(method):
    model, clock = stdit(hidden_size=48), StepClock(STEPS)
    exact = sample(model, clock, 0)
    errors = {bits: error(outputs(method, bits), exact) for bits in BITS}
    assert all(0 < value < 1.5 for value in errors.values()), errors
    orders = ["mxfp8 mxfp4", "mxfp6 mxfp4", "mxfp4_fp8 mxfp4", "mxfp4_mxfp8 mxfp4", "nvfp4_fp8 nvfp4", "fp8_e4m3 fp8_e5m2"]
    for fine, coarse in (order.split() for order in orders):
        assert errors[fine] < errors[coarse], (fine, coarse, errors)


def test_a_quantized_layer_is_the_product_of_its_coded_weight_and_input():
    model = stdit(hidden_size=48)
    layer, clock = model.blocks[0].mlp.fc1, StepClock(STEPS)
    x = torch.randn(2, 7, 48, generator=torch.Generator().manual_seed(3))
    exact = layer.weight.clone()
    with quantize_model(model, roles(model), recipe("dynamic", "mxfp4_mxfp8"), None, clock), clock.at(0, STEPS, "both"), torch.no_grad():
        given = layer(x)
    weight, values = quantize_blocks(exact, MX4, 1).dequantize(), quantize_blocks(x, MX8, 2).dequantize()
    torch.testing.assert_close(given, values @ weight.T + layer.bias)


def test_smoothing_comes_before_the_blocks():
    model, clock = stdit(hidden_size=48), StepClock(STEPS)
    exact = sample(model, clock, 0)
    assert error(outputs("asq", "mxfp4"), exact) != error(outputs("cw_tw", "mxfp4"), exact)
    assert outputs("dynamic", "mxfp4")[0].equal(outputs("cw_tw", "mxfp4")[0]), "the range search decides nothing"


def test_the_account_counts_scales():
    layers = [Site("a", "ffn.up", (64, 96), None, None)]
    sizes = {bits: account(layers, 0, recipe("dynamic", bits), Sim()) for bits in ("mxfp4", "nvfp4", "fp8_e4m3", "w8a8")}
    assert {bits: report["weight_bits"] for bits, report in sizes.items()} == {"mxfp4": 4.25, "nvfp4": 4.5, "fp8_e4m3": 8, "w8a8": 8}
    assert {bits: report["values"]["weight_params"] for bits, report in sizes.items()} == {
        "mxfp4": 0,
        "nvfp4": 1,
        "fp8_e4m3": 64,
        "w8a8": 128,
    }
    assert sizes["mxfp4"]["bytes"]["total"] == 64 * 96 * 4.25 / 8 and sizes["nvfp4"]["bytes"]["total"] == 64 * 96 * 4.5 / 8 + 4


def test_videos_share_the_factor_of_nvfp4_and_are_made_one_by_one():
    assert recipe("dynamic", "nvfp4").batch_dependent and not recipe("dynamic", "nvfp4_fp8").batch_dependent
    assert not any(recipe("dynamic", bits).batch_dependent for bits in ("mxfp8", "mxfp4", "fp8_e4m3"))


def test_formats_change_the_key_and_integers_do_not():
    keys = {bits: str(recipe("dynamic", bits).semantic()) for bits in ("w8a8", "fp8_e4m3", "fp8_e5m2", "mxfp8")}
    assert len(set(keys.values())) == 4
    assert METHODS and recipe("fp", "mxfp4").is_fp
