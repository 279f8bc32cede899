"""GPTQ: the same codes as its definition, better outputs than rounding to nearest, and what it does in a model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny_models
import torch
from torch import Tensor

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.draws.all import All
from vdqbench.quant.evidence import Evidence, Samples
from vdqbench.quant.format import Format, make
from vdqbench.quant.parts import Site, build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.quantizer import QParams, centred_codes
from vdqbench.quant.ranges import minmax
from vdqbench.quant.recipe import Recipe
from vdqbench.quant.rounding import gptq
from vdqbench.quant.transforms.smooth import Diagonal
from vdqbench.quant.view import LayerView


def problem(seed: int, columns: int = 40, rows: int = 12, samples: int = 200) -> tuple[Tensor, Tensor]:
    """A weight, and correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator) * torch.rand(columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), torch.randn(samples, columns, generator=generator) @ mixed


class Known(Evidence):
    """Evidence whose samples are given."""

    def __init__(self, x: Tensor, step: Tensor | None = None) -> None:
        self.given = Samples(x, torch.zeros(len(x), dtype=torch.int64) if step is None else step)
        self.draw = All()

    def samples(self, layer: str, of_output: bool = False) -> Samples:
        return self.given


def view_of(weight: Tensor, x: Tensor, family: str = "int", step: Tensor | None = None) -> LayerView:
    site = Site("layer", "ffn.up", tuple(weight.shape), 4, None, formats=(family, "int"))
    return LayerView(site, weight, (weight,), {}, evidence=Known(x, step))


def grid(name: str, **options):
    return build(find("weights", name, ""), options)


def output_error(weight: Tensor, quantized: Tensor, x: Tensor) -> float:
    return float(((weight - quantized).flatten(1).double() @ x.flatten(1).double().T).square().sum())


def by_definition(weight: Tensor, hessian: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Each column's error is made up for by the best change of all columns after it: one full inverse for each of them."""
    rest, hessian = weight.double().clone(), hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(len(hessian))
    codes = torch.empty_like(weight)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(hessian[j:, j:])
        codes[:, j] = centred_codes(rest[:, j : j + 1].float(), params, fmt)[:, 0]
        off = rest[:, j] - codes[:, j].double() * params.delta[:, 0].double()
        rest[:, j:] -= off[:, None] / inverse[0, 0] * inverse[0]
    return codes


@pytest.mark.parametrize("block", [1, 7, 40, 128])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_codes_are_those_of_the_definition(block, symmetric):
    weight, x = problem(0)
    fmt = Format(4, symmetric)
    params, hessian = minmax(weight, fmt), x.T @ x
    codes = gptq(weight, hessian, params, fmt, block)
    assert torch.equal(codes, by_definition(weight, hessian, params, fmt))
    assert not torch.equal(codes, centred_codes(weight, params, fmt))


def test_columns_in_another_order_are_a_layer_in_another_order():
    weight, x = problem(1)
    fmt, order = Format(3), (x * x).sum(0).argsort(descending=True, stable=True)
    params = minmax(weight, fmt)
    ordered = gptq(weight, x.T @ x, params, fmt, act_order=True)
    moved = x[:, order]
    assert torch.equal(ordered[:, order], gptq(weight[:, order], moved.T @ moved, params, fmt))


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    weight, _ = problem(2)
    fmt = Format(4)
    params = minmax(weight, fmt)
    assert torch.equal(gptq(weight, torch.diag(torch.rand(40) + 0.1), params, fmt), centred_codes(weight, params, fmt))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True},
        {"init": "mse"},
        {"act_order": True, "block": 16},
        {"per": "group", "group_size": 16, "act_order": True},
        {"per": "tensor"},
    ],
)
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_output_is_better_than_with_rounding_to_nearest(seed, options, bits):
    weight, x = problem(seed)
    view = view_of(weight, x)
    nearest = {key: value for key, value in options.items() if key in ("per", "group_size", "symmetric")}
    learned = grid("gptq", **options).quantize(view, bits)
    rounded = grid(options.get("init", "minmax"), **nearest).quantize(view, bits)
    assert torch.equal(learned.params.delta, rounded.params.delta)
    assert learned.codes.min() >= learned.fmt.qmin and learned.codes.max() <= learned.fmt.qmax
    assert output_error(weight, learned.dequantize(), x) < 0.8 * output_error(weight, rounded.dequantize(), x)


def test_a_dead_input_is_rounded_to_nearest_and_changes_nothing_else():
    weight, x = problem(3)
    x[:, 5] = 0
    fmt = Format(4)
    params = minmax(weight, fmt)
    codes = gptq(weight, x.T @ x, params, fmt)
    alive = [j for j in range(40) if j != 5]
    assert torch.equal(codes[:, 5], centred_codes(weight, params, fmt)[:, 5])
    without = gptq(weight[:, alive], x[:, alive].T @ x[:, alive], params, fmt)
    assert (codes[:, alive] != without).float().mean() < 0.02  # the mean of the diagonal, and so the damping, is another
    nothing = gptq(weight, torch.zeros(40, 40), params, fmt)
    assert torch.equal(nothing, centred_codes(weight, params, fmt))


def test_a_section_is_a_layer_of_its_own():
    weight, x = problem(4)
    part, section = grid("gptq"), slice(10, 30)
    inside = part.quantize(view_of(weight, x).restricted(section), 4)
    alone = part.quantize(view_of(weight[:, section], x[:, section]), 4)
    assert torch.equal(inside.codes, alone.codes) and inside.codes.shape == (12, 20)


def test_each_range_of_steps_has_its_own_samples_and_weight():
    weight, x = problem(5)
    step = torch.arange(len(x)) % 4
    half = replace(view_of(weight, x, step=step), window=(0, 2)).through(Diagonal(torch.linspace(0.5, 2, 40)))
    found = grid("gptq").quantize(half, 4)
    scaled = torch.linspace(0.5, 2, 40)
    alone = grid("gptq").quantize(view_of(weight * scaled, x[step < 2] / scaled), 4)
    assert torch.equal(found.codes, alone.codes)


def test_a_convolution():
    generator = torch.Generator().manual_seed(6)
    weight, x = torch.randn(4, 3, 2, 2, generator=generator), torch.randn(100, 12, generator=generator)
    x = (x @ torch.randn(12, 12, generator=generator)).view(100, 3, 2, 2)
    learned, rounded = (grid(name).quantize(view_of(weight, x), 3) for name in ("gptq", "minmax"))
    flat = grid("gptq").quantize(view_of(weight.flatten(1), x.flatten(1)), 3)
    assert torch.equal(learned.codes.flatten(1), flat.codes)
    assert output_error(weight, learned.dequantize(), x) < output_error(weight, rounded.dequantize(), x)
    with pytest.raises(Unsupported, match="grouped convolution"):
        grid("gptq").quantize(view_of(weight[:, :1], x), 3)


@pytest.mark.parametrize(("family", "bits"), [("fp", 8), ("fp", 4)])
def test_formats_of_floating_point(family, bits):
    weight, x = problem(7)
    learned, rounded = (grid(name).quantize(view_of(weight, x, family), bits) for name in ("gptq", "minmax"))
    fmt = make(family, bits)
    assert torch.equal(fmt.round_(learned.centred.clone()), learned.centred) and learned.centred.abs().max() <= fmt.qmax
    assert output_error(weight, learned.dequantize(), x) < output_error(weight, rounded.dequantize(), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "pbq"}, "method.weight.init=pbq is not one of its values"),
        ({"block": 0}, "method.weight.block=0 must be at least 1"),
        ({"damping": 0.0}, "method.weight.damping=0.0 must be a positive number"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        grid("gptq", **options)


class Kept:
    """Remembers, and counts what was made."""

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.made = 0

    def __call__(self, key, make):
        import json

        name = json.dumps(key, sort_keys=True)
        if name not in self.tensors:
            self.tensors[name], self.made = make(), self.made + 1
        return {kind: tensor.clone() for kind, tensor in self.tensors[name].items()}


def recipe(bits: int = 4, transform=None, **options) -> Recipe:
    method = {
        "name": "gptq",
        "sites": {"only": ["ffn.*"]},
        "transform": transform or {},
        "weight": {"grid": "gptq", **options},
        "calibration": {"draw": "all", "tokens": 8},
    }
    return Recipe.from_config(method, {"weight": bits, "activation": 16}, tiny_models.STEPS)


def run(tiny: tiny_models.Tiny, made: Recipe, kept: Kept) -> Tensor:
    calibration, calls = tiny.calibrated()
    clock = StepClock(layout=tiny.layout)
    with quantize(tiny.denoiser, tiny.roles, made, calibration, clock, anatomy=tiny.anatomy, calls=lambda: calls, remember=kept):
        return tiny.sample(clock, 0)


def test_in_a_model_every_weight_is_found_once_before_the_layers_are_exchanged():
    tiny, kept = tiny_models.FAMILIES["stdit"](), Kept()
    fp = tiny.sample(StepClock(), 0)
    first = run(tiny, recipe(), kept)
    assert kept.made == 4 and {tensors["codes"].dtype for tensors in kept.tensors.values()} == {torch.uint8}
    assert torch.equal(run(tiny, recipe(), kept), first) and kept.made == 4
    rounding = {"sites": {"only": ["ffn.*"]}, "weight": {"grid": "minmax"}}
    nearest = run(tiny, Recipe.from_config(rounding, {"weight": 4, "activation": 16}, 4), kept)
    assert (first - fp).square().sum() < (nearest - fp).square().sum()
    run(tiny, recipe(3), kept)
    assert kept.made == 8
    run(tiny, recipe(act_order=True), kept)
    assert kept.made == 12
    smooth = {"smooth": {"alpha": 0.5, "ranges": 2}}
    ranged = run(tiny, recipe(transform=smooth), kept)
    assert kept.made == 20
    assert torch.equal(run(tiny, recipe(transform=smooth), kept), ranged) and kept.made == 20
    run(tiny, recipe(transform={"smooth": {"alpha": 0.6, "ranges": 2}}), kept)
    assert kept.made == 28


def test_formats_with_scales_of_their_own_are_refused():
    method = {"sites": {"only": ["ffn.*"]}, "weight": {"grid": "gptq"}}
    made = Recipe.from_config(method, {"weight": 4, "activation": 16, "format": "mx"}, 4)
    with pytest.raises(Unsupported, match=r"bits\.format=mx has scales of its own: use method\.weight\.grid=minmax"):
        run(tiny_models.FAMILIES["stdit"](), made, Kept())


def test_without_calls_there_is_nothing_to_learn_from():
    weight, x = problem(0)
    with pytest.raises(Unsupported, match="needs the denoiser calls of a calibration"):
        grid("gptq").quantize(replace(view_of(weight, x), evidence=None), 4)
