"""Dynamic activations in groups of channels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.errors import Unsupported
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe


def output(x: torch.Tensor, **activation: object) -> torch.Tensor:
    model = nn.Sequential(nn.Linear(x.shape[-1], x.shape[-1], bias=False))
    model[0].weight.data = torch.eye(x.shape[-1])
    method = {"name": "m", "weight": None, "activation": {"grid": "dynamic", **activation}}
    recipe = Recipe.from_config(method, {"weight": 16, "activation": 4}, 1)
    with quantize(model, {"0": "ffn.up"}, recipe, None, StepClock()):
        return model(x)


def test_each_group_has_its_own_range():
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    x[..., 4:] *= 100
    grouped = output(x, per="group", group_size=4, symmetric=True)
    for part in (slice(0, 4), slice(4, 8)):  # by hand: symmetric 4 bits, one scale for each token and group
        delta = x[..., part].abs().amax(-1, keepdim=True) / 7
        assert torch.allclose(grouped[..., part], (x[..., part] / delta).round() * delta, atol=1e-5)
    assert torch.allclose(output(x, per="group", group_size=64), output(x, per="token"))


def test_groups_that_do_not_divide_the_channels_are_refused():
    with pytest.raises(Unsupported, match="has 8 input channels, which groups of 3 do not divide"):
        output(torch.ones(2, 8), per="group", group_size=3)
