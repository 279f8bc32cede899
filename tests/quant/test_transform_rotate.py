"""Rotation is orthonormal, the same for input and weight, and takes outliers away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_layers import ROLES, block, observe, recipe_of, tokens, without_quantization
from torch import nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.parts import Site
from vdqbench.quant.transforms.rotate import Rotate
from vdqbench.quant.transforms.split import Sections
from vdqbench.quant.view import LayerView, applied

DYNAMIC = {"grid": "dynamic"}


def view_of(*shape, **options):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return LayerView(Site("layer", "role", tuple(shape), 8, 8), weight, (weight,), {}, **options)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([4, 12, 20, 72, 96, 320, 768, 1152]), st.sampled_from([(), (1, 1), (3, 3), (1, 2, 2)]), st.booleans(), st.booleans())
def test_products_stay(width, kernel, signs, blocks):
    """(W R)(x R) = W x, to rounding, for the windows of linears and convolutions alike."""
    part = Rotate(kind="block" if blocks else "hadamard", block_size=4 if blocks else 0, signs=signs, seed=1)
    view = view_of(6, width, *kernel)
    rotation = part.fit(view)
    x = torch.randn(5, width, *kernel, generator=torch.Generator().manual_seed(1))
    weight, turned = rotation.weight(view.weight).flatten(1), applied(rotation, x).flatten(1)
    expected = x.flatten(1) @ view.weight.flatten(1).t()
    assert (turned @ weight.t() - expected).norm() < 1e-5 * expected.norm()
    assert turned.norm().item() == pytest.approx(x.norm().item(), rel=1e-5)
    assert not torch.allclose(turned, x.flatten(1), atol=0.1)


def test_one_outlier_is_spread_over_all_channels():
    rotation = Rotate(signs=True).fit(view_of(2, 1152))
    x = torch.zeros(1, 1152)
    x[0, 17] = 34.0
    torch.testing.assert_close(rotation.input(x).abs(), torch.full((1, 1152), 34 / 1152**0.5), rtol=1e-5, atol=1e-6)
    blocks = Rotate(kind="block").fit(view_of(2, 1152)).input(x)[0]
    assert (blocks[:128].abs() - 34 / 128**0.5).abs().max() < 1e-5 and not blocks[128:].any(), "the largest power of two in 1152 is 128"


def test_channels_are_the_last_dimension_of_a_linear_and_the_second_of_a_convolution():
    linear, conv = Rotate().fit(view_of(6, 4)), Rotate().fit(view_of(6, 4, 1, 1))
    x = torch.randn(4, 4, 4, 4)
    torch.testing.assert_close(linear.input(x), conv.input(x.movedim(-1, 1)).movedim(1, -1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_computed_in_single_precision_at_least_and_given_back_as_it_came(dtype):
    rotation, x = Rotate(signs=True).fit(view_of(6, 320)), torch.randn(7, 320).to(dtype)
    made = rotation.input(x)
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), rotation.input(x.float()), rtol=1e-2, atol=1e-2)
    if dtype == torch.float16:
        assert rotation.input(torch.full((1, 320), 1e4, dtype=dtype)).isfinite().all(), "sums do not overflow on the way"


def test_signs_come_from_the_seed():
    def made(seed):
        return Rotate(signs=True, seed=seed).fit(view_of(6, 72)).weight(torch.eye(72))

    assert torch.equal(made(0), made(0)) and not torch.equal(made(0), made(1))
    assert not torch.equal(made(0), Rotate().fit(view_of(6, 72)).weight(torch.eye(72)))
    assert Rotate(seed=1).semantic() == Rotate().semantic() != Rotate(signs=True).semantic()
    assert Rotate(signs=True).semantic() != Rotate(signs=True, seed=1).semantic() and Rotate().values((4, 4)) == 0


def test_what_cannot_be_rotated_is_named():
    with pytest.raises(
        Unsupported, match=r"no Hadamard matrix is known for the 1406 input channels of layer layer: use .*rotate.kind=block"
    ):
        Rotate().fit(view_of(2, 1406))
    Rotate(kind="block").fit(view_of(2, 1406))
    with pytest.raises(Unsupported, match=r"method.transform.rotate.block_size=16 does not divide the 72 input channels of layer layer"):
        Rotate(kind="block", block_size=16).fit(view_of(2, 72))
    with pytest.raises(Unsupported, match="parts of its input quantized apart, which a rotation mixes"):
        Rotate().fit(view_of(2, 8).through(Sections((3, 5))))
    with pytest.raises(ConfigError, match=r"method.transform.rotate.block_size=12 must be a power of two"):
        Rotate(kind="block", block_size=12)
    with pytest.raises(ConfigError, match=r"method.transform.rotate.block_size=8 must be 0 unless method.transform.rotate.kind=block"):
        Rotate(block_size=8)
    observed = observe(block(), ROLES, tokens(32))
    with pytest.raises(Unsupported, match="no statistic 'min' of its transformed input; choose a grid that is found online"):
        observed.quantized(recipe_of({"rotate": {}}))


@pytest.mark.parametrize("signs", [False, True])
def test_the_groups_of_a_convolution_are_rotated_one_by_one(signs):
    observed = observe(
        nn.Sequential(nn.Conv2d(8, 8, 3, groups=2, padding=1)).requires_grad_(False), {"0": "conv"}, lambda p, k: (torch.randn(1, 8, 4, 4),)
    )
    recipe = without_quantization(recipe_of({"rotate": {"signs": signs}}, activation={"grid": "dynamic", "per": "tensor"}))
    for made, expected in zip(observed.outputs(recipe), observed.outputs(), strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [(8, 8), (8, 5)])
def test_error_falls_on_inputs_with_outliers(bits):
    """Static-dynamic balance of ViDiT-Q: scaling and then rotation is better than each, which are better than nothing."""
    torch.manual_seed(0)
    gains = torch.exp(torch.randn(320))
    model, sample = nn.Sequential(nn.Linear(320, 64)).requires_grad_(False), tokens(320)
    observed = observe(model, {"0": "role"}, lambda p, k: (sample(p, k)[0] * gains,))
    error = {
        name: observed.error(recipe_of(transform, bits, activation=DYNAMIC), unseen=lambda p, k: (sample(p, k)[0] * gains,))
        for name, transform in {
            "none": {},
            "rotate": {"rotate": {}},
            "smooth": {"smooth": {"statistic": "max"}},
            "both": {"smooth": {"statistic": "max"}, "rotate": {}},
        }.items()
    }
    assert error["rotate"] < 0.5 * error["none"] and error["smooth"] < 0.5 * error["none"], error
    assert error["both"] < error["smooth"] and error["both"] < error["rotate"], error
