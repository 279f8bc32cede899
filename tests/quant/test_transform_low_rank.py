"""The branch is the best approximation of its rank, in the model's precision, and what is left is quantized better."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_layers import ROLES, STEPS, block, observe, recipe_of, tokens
from torch import nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.parts import Site
from vdqbench.quant.transforms.low_rank import LowRank, truncated
from vdqbench.quant.view import LayerView

DYNAMIC = {"grid": "dynamic"}


@pytest.fixture(scope="module")
def observed():
    return observe(block(), ROLES, tokens(32))


def view_of(weight):
    return LayerView(Site("layer", "role", tuple(weight.shape), 4, 8), weight, (weight,), {}, group=("layer",))


def branch_of(observed, recipe, name):
    with observed.quantized(recipe) as quantized:
        return quantized.runs[name].plan.views[0].transforms[-1]


def test_the_best_approximation_of_its_rank():
    weight = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    branch = LowRank(rank=5, iterations=1).fit(view_of(weight))
    u, s, v = torch.linalg.svd(weight)
    torch.testing.assert_close(branch.up @ branch.down, u[:, :5] * s[:5] @ v[:5])
    assert branch.weight(weight).square().sum().item() == pytest.approx(s[5:].square().sum().item(), rel=1e-4)
    assert LowRank(rank=100, iterations=1).fit(view_of(weight)).weight(weight).abs().max() < 1e-5, "no more than full rank"


def test_wide_weights_are_decomposed_as_well(monkeypatch):
    weight = torch.randn(120, 90, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -2, 90))
    exact = torch.linalg.svdvals(weight.double())[8:].norm().item()
    monkeypatch.setattr("vdqbench.quant.transforms.low_rank.EXACT", 16)
    up, down = truncated(weight, 8)
    assert up.shape == (120, 8) and down.shape == (8, 90)
    assert (weight - up @ down).norm().item() == pytest.approx(exact, rel=1e-4)
    torch.testing.assert_close(down @ down.t(), torch.eye(8, dtype=torch.float64))


def test_in_half_precision_the_rest_makes_up_for_its_rounding():
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    branch = LowRank(rank=4, iterations=1).fit(view_of(weight))
    assert branch.up.dtype == branch.down.dtype == torch.bfloat16
    whole = branch.weight(weight.float()) + branch.up.float() @ branch.down.float()
    torch.testing.assert_close(whole, weight.float(), rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_layer_is_the_quantized_rest_and_the_branch_on_the_smoothed_input(observed):
    recipe = recipe_of({"smooth": {"statistic": "max"}, "low_rank": {"rank": 4, "iterations": 1}}, (4, 8), activation=DYNAMIC)
    with observed.quantized(recipe) as quantized, observed.clock.at(0, STEPS, "both"):
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(4))
        made = observed.model.mlp.up(x)
        smooth, branch = quantized.runs["mlp.up"].plan.views[0].transforms
    weight, bias = observed.model.mlp.up.weight, observed.model.mlp.up.bias
    smoothed, rest = x / smooth.s, weight * smooth.s - branch.up @ branch.down

    def fake(values, bits):
        lo, hi = values.amin(-1, keepdim=True).clamp(max=0), values.amax(-1, keepdim=True).clamp(min=0)
        delta = (hi - lo) / (2**bits - 1)
        return ((values / delta).round() + (-lo / delta).round()).clamp(0, 2**bits - 1).sub((-lo / delta).round()) * delta

    expected = F.linear(fake(smoothed, 8), fake(rest, 4), bias) + smoothed @ branch.down.t() @ branch.up.t()
    assert ((made - expected).abs() > 1e-4).float().mean() < 0.05 and (made - expected).norm() < 1e-2 * expected.norm()


def weight_error(observed, name, branch, bits=4):
    """Output error on the samples, weights on the min-max grid, from the definition."""
    weight = observed.model.get_submodule(name).weight
    rest = branch.weight(weight) if branch else weight
    lo, hi = rest.amin(1, keepdim=True).clamp(max=0), rest.amax(1, keepdim=True).clamp(min=0)
    delta = (hi - lo) / (2**bits - 1)
    zero = (-lo / delta).round()
    coded = ((rest / delta).round() + zero).clamp(0, 2**bits - 1).sub(zero) * delta
    with observed.quantized(recipe_of({"low_rank": {"rank": 1, "iterations": 2}}, (4, 8), activation=DYNAMIC)) as quantized:
        x = quantized.runs[name].plan.views[0].samples().values
    return float((x @ (rest - coded).t()).square().sum())


def test_the_loop_stops_at_the_first_that_is_no_better_and_keeps_the_best(observed):
    made = {
        n: branch_of(observed, recipe_of({"low_rank": {"rank": 4, "iterations": n}}, (4, 8), activation=DYNAMIC), "mlp.up")
        for n in (1, 2, 3, 100)
    }
    error = {n: weight_error(observed, "mlp.up", branch) for n, branch in made.items()}
    assert error[1] >= error[2] >= error[3] >= error[100] and error[100] < weight_error(observed, "mlp.up", None), error
    assert error[100] < error[1], "at least one repetition improves this layer"


def test_more_rank_is_less_error_at_four_bits(observed):
    error = [
        observed.error(recipe_of({"low_rank": {"rank": rank, "iterations": 4}}, (4, 8), activation=DYNAMIC), unseen=tokens(32))
        for rank in (1, 8, 24)
    ]
    assert error[0] > error[1] > error[2]


def test_a_shared_down_is_one(observed):
    recipe = recipe_of({"low_rank": {"rank": 4, "iterations": 3, "shared_down": True}}, (4, 8), activation=DYNAMIC)
    with observed.quantized(recipe) as quantized:
        q, k, v, out = (quantized.runs[f"attn.{name}"].plan.views[0].transforms[0] for name in ("q", "k", "v", "out"))
    assert torch.equal(q.down, k.down) and torch.equal(q.down, v.down) and not torch.equal(q.down, out.down)
    assert not torch.equal(q.up, k.up) and q.up.shape == (32, 4)


def test_weights_in_floating_point_need_no_loop(observed):
    branch = branch_of(observed, recipe_of({"low_rank": {"rank": 4}}, (16, 8), activation=DYNAMIC), "mlp.up")
    weight = observed.model.mlp.up.weight
    torch.testing.assert_close(branch.up.double() @ branch.down.double(), torch.matmul(*truncated(weight, 4)), rtol=1e-4, atol=1e-5)


def test_convolutions_and_what_is_not_supported():
    torch.manual_seed(0)
    dynamic = {"grid": "dynamic", "per": "tensor"}
    conv = observe(
        nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1)).requires_grad_(False),
        {"0": "conv"},
        lambda p, k: (torch.randn(2, 6, 7, 7, generator=torch.Generator().manual_seed(p)),),
    )
    errors = [conv.error(recipe_of({"low_rank": {"rank": rank, "iterations": 3}}, (3, 8), activation=dynamic)) for rank in (1, 6)]
    assert errors[1] < 0.7 * errors[0]
    grouped = observe(
        nn.Sequential(nn.Conv2d(6, 8, 3, groups=2)).requires_grad_(False), {"0": "conv"}, lambda p, k: (torch.randn(2, 6, 7, 7),)
    )
    with pytest.raises(Unsupported):
        grouped.quantized(recipe_of({"low_rank": {"rank": 1, "iterations": 2}}, (3, 8), activation=dynamic))


def test_it_must_come_last(observed):
    with pytest.raises(Unsupported, match=r"method.transform.rotate follows a branch beside the quantized weight: list the branch last"):
        observed.quantized(recipe_of({"low_rank": {"iterations": 1}, "rotate": {}}, activation=DYNAMIC))


def test_options_and_account():
    part = LowRank()
    assert part.values((4608, 1152)) == 32 * (1152 + 4608) and part.value_bytes == 2
    assert part.values((8, 4, 3, 3)) == 32 * (36 + 8)
    assert part.needs == ("calls",) and LowRank(iterations=1).needs == ()
    with pytest.raises(ConfigError, match=r"method.transform.low_rank.rank=0 must be at least 1"):
        LowRank(rank=0)
