"""Affine quantization: closed forms and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdqbench.quant.format import Format, PerTensor, PerToken
from vdqbench.quant.quantizer import choose_qparams, dequantize, fake_quantize, quantize

GOLDEN = torch.tensor([[-1.0, 0.25, 0.5, 2.0], [0.1, 0.2, 0.3, 0.4]])


def sample(seed: int, size: int, scale: float, shift: float) -> torch.Tensor:
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) + shift) * 10**scale


slow_machines = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=50)
values = st.builds(sample, st.integers(0, 1000), st.integers(1, 40), st.floats(-6, 6), st.floats(-5, 5))
formats = st.builds(Format, st.integers(2, 12), st.booleans())


def fitted(x, fmt):
    return choose_qparams(x.amin(), x.amax(), fmt)


def test_the_worked_example_of_the_papers_code():
    params = choose_qparams(*PerToken().bounds(GOLDEN), Format(4))
    torch.testing.assert_close(params.delta.flatten(), torch.tensor([0.2, 0.4 / 15]))
    assert params.zero.flatten().tolist() == [5, 0]
    codes = quantize(GOLDEN, params, Format(4))
    assert codes.int().tolist() == [[0, 6, 7, 15], [4, 8, 11, 15]]
    torch.testing.assert_close(dequantize(codes, params)[0], torch.tensor([-1.0, 0.2, 0.4, 2.0]))


def test_symmetric_grid():
    x = torch.tensor([-2.0, 0.5, 1.0])
    params = fitted(x, Format(3, symmetric=True))
    assert params.delta == pytest.approx(2 / 3) and params.zero == 0
    assert quantize(x, params, Format(3, symmetric=True)).tolist() == [-3, 1, 2]
    assert quantize(torch.tensor([-9.0, 9.0]), params, Format(3, symmetric=True)).tolist() == [-4, 3]


def test_granularities():
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert PerTensor().bounds(x)[1].shape == (1, 1, 1)
    assert PerToken().bounds(x)[1].flatten().tolist() == [3, 7, 11, 15, 19, 23]


def test_a_dead_channel_touches_no_other():
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    dead = weight.clone()
    dead[3] = 0
    alive, with_dead = (fake_quantize(w, choose_qparams(*PerToken().bounds(w), Format(8)), Format(8)) for w in (weight, dead))
    assert torch.equal(alive[:3], with_dead[:3]) and with_dead[3].abs().max() == 0


@slow_machines
@given(values, formats)
def test_codes_are_on_the_grid_and_the_error_is_at_most_half_a_step(x, fmt):
    params = fitted(x, fmt)
    codes = quantize(x, params, fmt)
    assert codes.min() >= fmt.qmin and codes.max() <= fmt.qmax and torch.equal(codes, codes.round())
    slack = 1 + 2**-20 * 2**fmt.bits  # float32 rounding of the quotient, in steps
    inside = (x.double() - fake_quantize(x, params, fmt).double()).abs()
    assert inside.max() <= params.delta.double() * 0.5 * slack + 1e-30 or _rounded_zero_point(x, params, fmt, inside)


def _rounded_zero_point(x, params, fmt, error):
    """A rounded zero point moves the grid by up to half a step, so an end of the range may clip by that much more."""
    codes = quantize(x, params, fmt)
    at_the_end = (codes == fmt.qmin) | (codes == fmt.qmax)
    step = params.delta.double()
    return not fmt.symmetric and bool((error <= step * torch.where(at_the_end, 1.01, 0.51)).all())


@slow_machines
@given(values, formats)
def test_zero_is_exact_and_quantizing_twice_changes_nothing(x, fmt):
    params = fitted(x, fmt)
    once = fake_quantize(x, params, fmt)
    assert torch.equal(fake_quantize(once, params, fmt), once)
    assert fake_quantize(torch.zeros(1), params, fmt) == 0


@slow_machines
@given(st.integers(2, 9), st.integers(0, 100), st.booleans())
def test_more_bits_less_error(bits, seed, symmetric):
    x = torch.randn(4000, generator=torch.Generator().manual_seed(seed))
    errors = [(x - fake_quantize(x, fitted(x, Format(b, symmetric)), Format(b, symmetric))).square().mean() for b in (bits, bits + 1)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_divided_in_float32(dtype):
    x = torch.linspace(-3, 9, 999).to(dtype)
    params = fitted(x, Format(8))
    assert params.delta.dtype == torch.float32
    assert torch.equal(quantize(x, params, Format(8)), quantize(x.float(), params, Format(8)))
