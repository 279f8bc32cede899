"""A split input has two grids, and is otherwise the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_layers import observe, recipe_of, without_quantization
from torch import nn

from vdqbench.errors import Unsupported
from vdqbench.models.base import Anatomy


class Shortcut(nn.Module):
    """A convolution and a linear that read a hidden state of size 1 beside a skip connection of size 100."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(10, 4, 1), nn.Linear(10, 4)
        with torch.no_grad():
            self.conv.weight[:, 6:] /= 50
            self.linear.weight[:, 6:] /= 50

    def forward(self, hidden, skip):
        x = torch.cat([hidden, skip], 1)
        return self.conv(x) + self.linear(x.movedim(1, -1)).movedim(-1, 1)


def inputs(prompt, step):
    generator = torch.Generator().manual_seed(10 * prompt + step)
    return torch.randn(2, 6, 4, 4, generator=generator), 100 * torch.randn(2, 4, 4, 4, generator=generator)


@pytest.fixture(scope="module")
def observed():
    torch.manual_seed(0)
    roles = {"conv": "shortcut", "linear": "shortcut"}
    return observe(Shortcut().requires_grad_(False), roles, inputs, anatomy=Anatomy(splits={"conv": 6, "linear": 6}))


STATIC, DYNAMIC = {"grid": "static"}, {"grid": "dynamic", "per": "tensor"}


def fake(x, bits, dims):
    lo, hi = x.amin(dims, keepdim=True).clamp(max=0), x.amax(dims, keepdim=True).clamp(min=0)
    delta = (hi - lo) / (2**bits - 1)
    zero = (-lo / delta).round()
    return ((x / delta).round() + zero).clamp(0, 2**bits - 1).sub(zero) * delta


@torch.no_grad()
@pytest.mark.parametrize("bits", [(8, 8), (4, 6)])
def test_each_part_is_quantized_by_itself(observed, bits):
    x = torch.cat(inputs(99, 0), 1)
    with observed.quantized(recipe_of({"split": {}}, bits, activation=DYNAMIC)), observed.clock.at(0, 4, "both"):
        made = observed.model.conv(x)
    weight, bias = observed.model.conv.weight, observed.model.conv.bias
    parts = zip(x.split([6, 4], 1), weight.split([6, 4], 1), strict=True)
    expected = sum(F.conv2d(fake(part, bits[1], (0, 1, 2, 3)), fake(own, bits[0], (1, 2, 3))) for part, own in parts)
    torch.testing.assert_close(made, expected + bias.view(-1, 1, 1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("activation", [STATIC, DYNAMIC])
def test_two_grids_keep_the_small_part(observed, activation):
    def error(transform, bits):
        return observed.error(recipe_of(transform, bits, activation=activation, draw={"draw": "all"}))

    assert error({"split": {}}, (8, 8)) < 0.1 * error({}, (8, 8))
    assert error({"split": {}}, (15, 15)) < 1e-7


def test_without_quantization_and_for_other_layers_it_is_the_identity(observed):
    recipe = without_quantization(recipe_of({"split": {}}, activation=DYNAMIC))
    for made, expected in zip(observed.outputs(recipe), observed.outputs(), strict=True):
        assert torch.equal(made, expected)
    plain = observe(observed.model, observed.roles, inputs)
    for made, expected in zip(plain.outputs(recipe_of({"split": {}})), plain.outputs(recipe_of({})), strict=True):
        assert torch.equal(made, expected), "no layer of this anatomy reads a concatenation"


def test_smoothing_may_follow_and_what_mixes_may_not(observed):
    smooth = {"smooth": {"statistic": "max"}}
    split = observed.error(recipe_of({"split": {}, **smooth}, (4, 4), draw={"draw": "all"}))
    assert split < observed.error(recipe_of({"split": {}}, (4, 4), draw={"draw": "all"}))
    with pytest.raises(Unsupported, match=r"method.transform.split must come first"):
        observed.quantized(recipe_of({**smooth, "split": {}}))
    with pytest.raises(Unsupported, match="parts of its input quantized apart"):
        observed.quantized(recipe_of({"split": {}, "rotate": {}}, activation=DYNAMIC))
