"""AdaRound with block reconstruction: closed forms, what it learns on tiny models of all families, and what it refuses."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.models.base import Anatomy
from vdqbench.quant.evidence import Evidence
from vdqbench.quant.layer import Moment
from vdqbench.quant.parts import build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe
from vdqbench.quant.rounding import exponent_at, soft, soft_start, undecided
from vdqbench.quant.variants import in_force

STEPS = tiny_models.STEPS
FAST = {"grid": "adaround", "iters": 30, "lr": 0.03, "batch_moments": 2}


class Kept:
    """Remembers, and lists what was made."""

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, Tensor]] = {}
        self.made: list[str] = []

    def __call__(self, key, make):
        name = json.dumps(key, sort_keys=True)
        if name not in self.tensors:
            self.tensors[name] = make()
            self.made.append(key[-1])
        return {kind: tensor.clone() for kind, tensor in self.tensors[name].items()}


class Run:
    """A quantized tiny model: its weights (of the first step), its outputs, and what was remembered."""

    def __init__(self, tiny: tiny_models.Tiny, made: Recipe, kept: Kept | None = None, prompts: int = 2) -> None:
        calibration, calls = calibrated(tiny, prompts)
        clock, self.kept, self.prepared = StepClock(layout=tiny.layout), kept or Kept(), {}
        before = {name: value.clone() for name, value in tiny.denoiser.state_dict().items()}
        options: dict[str, Any] = {"anatomy": tiny.anatomy, "calls": lambda: calls, "remember": self.kept}
        with quantize(tiny.denoiser, tiny.roles, made, calibration, clock, **options) as model:
            self.output = tiny.sample(clock, 0)
            runs: dict[str, Any] = model.runs
            for name, run in runs.items():
                bits = run.plan.site.plan(STEPS)[0][0] if made.schedule.part_name() == "fixed" else in_force(run.plan)[0][1]
                codes = run.plan.quantized_weight(Moment(bits, None, 0, 0, "both"))
                self.prepared[name] = codes.dequantize()
        assert all(torch.equal(value, before[name]) for name, value in tiny.denoiser.state_dict().items())
        assert not any(parameter.requires_grad or parameter.grad is not None for parameter in tiny.denoiser.parameters())
        assert not any("forward" in vars(module) for module in tiny.denoiser.modules())

    def forwards(self, tiny: tiny_models.Tiny) -> dict[str, Any]:
        def forward(name: str):
            module: Any = tiny.denoiser.get_submodule(name)
            weight = self.prepared[name]
            if weight.ndim == 2:
                return lambda x: nn.functional.linear(x, weight, module.bias)
            return lambda x: module._conv_forward(x, weight, module.bias)

        return {name: forward(name) for name in self.prepared}


KNOWN: dict[int, Any] = {}


def calibrated(tiny: tiny_models.Tiny, prompts: int) -> Any:
    if id(tiny) not in KNOWN:
        KNOWN[id(tiny)] = tiny.calibrated(prompts)
    return KNOWN[id(tiny)]


def recipe(weight: dict[str, Any], bits: int = 3, draw: dict[str, Any] | None = None, **slots: Any) -> Recipe:
    method = {"name": "adaround", "weight": weight, "calibration": draw or {"draw": "all"}, **slots}
    return Recipe.from_config(method, {"weight": bits, "activation": 16}, STEPS)


def evidence_of(tiny: tiny_models.Tiny, made: Recipe) -> Evidence:
    _, calls = calibrated(tiny, 2)
    return Evidence(tiny.denoiser, tiny.roles, lambda: calls, made.draw, StepClock(layout=tiny.layout), blocks=tiny.anatomy.blocks)


def stdit() -> tiny_models.Tiny:
    return tiny_models.FAMILIES["stdit"]()


def test_soft_rounding_begins_at_the_weight_and_ends_at_whole_numbers():
    fraction = torch.linspace(0, 0.999, 100)
    torch.testing.assert_close(soft(soft_start(fraction)), fraction)
    assert soft(torch.tensor([-9.0, 9.0])).tolist() == [0, 1]
    assert float(soft_start(torch.tensor(0.5))) == pytest.approx(0, abs=1e-6)
    assert float(undecided(torch.tensor([0.0, 1.0, 0.5, 0.5]), 2.0)) == 2
    assert float(undecided(torch.tensor([0.75]), 2.0)) == 0.75


def test_the_exponent_falls_linearly_after_a_warm_up():
    assert [exponent_at(share) for share in (0, 0.1, 0.199)] == [math.inf] * 3
    assert [exponent_at(share) for share in (0.2, 0.6, 1.0)] == pytest.approx([20, 11, 2])


def test_a_cut_budget_has_a_name():
    assert build(find("weights", "adaround", ""), {"iters": 500}).label_suffix() == "budgeted, 500 iterations"
    full = build(find("weights", "adaround", ""), {})
    assert full.label_suffix() == "" and not full.budgeted
    assert build(find("weights", "minmax", ""), {}).label_suffix() == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iters": 0}, "method.weight.iters=0 must be at least 1"),
        ({"units": "model"}, "method.weight.units=model is not one of its values"),
        ({"init": "pbq"}, "method.weight.init=pbq is not one of its values"),
        ({"lr": 0.0}, "method.weight.lr=0.0 must be a positive number"),
        ({"batch_moments": 0}, "method.weight.batch_moments=0 must be at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        build(find("weights", "adaround", ""), options)


@pytest.fixture(scope="module")
def learned() -> Run:
    return Run(stdit(), recipe({**FAST, "iters": 60}, sites={"only": ["blocks.*"]}))


@pytest.fixture(scope="module")
def nearest() -> Run:
    return Run(stdit(), recipe({"grid": "mse"}, sites={"only": ["blocks.*"]}))


def test_blocks_are_closer_to_the_unquantized_model_than_with_rounding_to_nearest(learned, nearest):
    """Both of its own inputs (the first block's are the unquantized ones) and in the whole model."""
    tiny = stdit()
    evidence = evidence_of(tiny, recipe(FAST))
    calls = evidence.module_calls(["blocks.0"])["blocks.0"]
    inside = [{name: f for name, f in run.forwards(tiny).items() if name.startswith("blocks.0.")} for run in (learned, nearest)]
    errors = [evidence.output_error("blocks.0", calls, forwards) for forwards in inside]
    assert len(inside[0]) == 13 and errors[0] < 0.85 * errors[1]
    fp = tiny.sample(StepClock(), 0)
    assert (learned.output - fp).square().sum() < 0.85 * (nearest.output - fp).square().sum()


def test_each_weight_is_rounded_up_or_down_on_the_grid_it_started_with(learned, nearest):
    moved = total = 0
    for name, quantized in learned.prepared.items():
        weight = stdit().denoiser.get_parameter(f"{name}.weight")
        (kept,) = (tensors for tensors in learned.kept.tensors.values() if f"{name}|||3|codes" in tensors)
        codes, delta, zero = (kept[f"{name}|||3|{kind}"].float() for kind in ("codes", "delta", "zero"))
        assert torch.equal(quantized, (codes - zero) * delta)
        down = (weight / delta).floor() + zero
        assert ((codes == down.clamp(0, 7)) | (codes == (down + 1).clamp(0, 7))).all()
        moved, total = moved + int((quantized != nearest.prepared[name]).sum()), total + weight.numel()
    assert 0.02 < moved / total < 0.5


def test_units_follow_each_other_as_they_run():
    everything = Run(stdit(), recipe({**FAST, "iters": 1}))
    assert everything.kept.made == [
        "order",
        *(f"unit {name}" for name in ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "t_block.1")),
        *(f"unit {name}" for name in ("y_embedder.y_proj.fc1", "y_embedder.y_proj.fc2", "blocks.0", "blocks.1", "final_layer.linear")),
    ]
    layers = Run(stdit(), recipe({**FAST, "iters": 1, "units": "layer"}, sites={"only": ["ffn.*"]}))
    assert layers.kept.made == ["order", *(f"unit blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("fc1", "fc2"))]


def test_the_same_seed_gives_the_same_weights_and_what_was_learned_is_kept():
    part = {**FAST, "iters": 5, "batch_moments": 1}
    first, again, other = (Run(stdit(), recipe({**part, "seed": seed}, sites={"only": ["ffn.*"]})) for seed in (0, 0, 1))
    assert torch.equal(first.output, again.output) and not torch.equal(first.output, other.output)
    kept = first.kept
    kept.made.clear()
    assert torch.equal(Run(stdit(), recipe(part, sites={"only": ["ffn.*"]}), kept).output, first.output) and kept.made == []
    for changed in (
        recipe({**part, "iters": 6}, sites={"only": ["ffn.*"]}),
        recipe(part, 4, sites={"only": ["ffn.*"]}),
        recipe(part, sites={"only": ["ffn.up"]}),
        recipe(part, sites={"only": ["ffn.*"]}, transform={"smooth": {"alpha": 0.3}}),
        recipe(part, sites={"only": ["ffn.*"]}, draw={"draw": "stride", "moments": 2}),
    ):
        kept.made.clear()
        Run(stdit(), changed, kept)
        assert kept.made[:2] == ["order", "unit blocks.0"]


def test_later_units_see_the_quantized_ones_before_them():
    """The second block is learned on the first one's quantized output, so quantizing more before it changes it."""
    part = {**FAST, "iters": 10}
    both, alone = (Run(stdit(), recipe(part, sites={"only": names})) for names in (["blocks.*.mlp.*"], ["blocks.1.mlp.*"]))
    assert not torch.equal(both.prepared["blocks.1.mlp.fc1"], alone.prepared["blocks.1.mlp.fc1"])
    first = Run(stdit(), recipe(part, sites={"only": ["blocks.0.mlp.*"]}))
    assert torch.equal(both.prepared["blocks.0.mlp.fc1"], first.prepared["blocks.0.mlp.fc1"])


def test_ranges_of_steps_and_bits_over_time_have_weights_of_their_own():
    smooth = {"smooth": {"alpha": 0.5, "ranges": 2}}
    run = Run(stdit(), recipe({**FAST, "iters": 2}, sites={"only": ["ffn.up"]}, transform=smooth))
    (unit,) = (tensors for key, tensors in run.kept.tensors.items() if "unit blocks.0" in key)
    assert sorted({key.rpartition("|")[0] for key in unit}) == ["blocks.0.mlp.fc1|0-2||3", "blocks.0.mlp.fc1|2-4||3"]
    with pytest.raises(Unsupported, match="draws no moment of some of its ranges of steps"):
        Run(stdit(), recipe({**FAST, "iters": 2}, 6, {"draw": "single", "at": 0.0}, sites={"only": ["ffn.up"]}, schedule=TABLE))
    timed = Run(stdit(), recipe({**FAST, "iters": 2}, 6, sites={"only": ["ffn.up"]}, schedule=TABLE))
    (unit,) = (tensors for key, tensors in timed.kept.tensors.items() if "unit blocks.0" in key)
    assert sorted({key.rpartition("|")[0] for key in unit}) == ["blocks.0.mlp.fc1|||4", "blocks.0.mlp.fc1|||8"]


TABLE = {"policy": "table", "weight": [4, 8]}


@pytest.mark.parametrize("family", ["hunyuan", "unet_motion"])
def test_other_families(family):
    """Convolutions, blocks with two outputs, layers called by keyword, shortcuts that are quantized in two parts."""
    tiny = tiny_models.FAMILIES[family]()
    slots = {"transform": {"split": {}}, "sites": {"only": ["*.conv1", "*.conv_shortcut", "ffn.up"]}} if family == "unet_motion" else {}
    draw = {"draw": "single", "at": 0.5}
    made = recipe({**FAST, "iters": 20, "lr": 0.03, "batch_moments": 1}, 3, draw, **slots)
    fp = tiny.sample(StepClock(layout=tiny.layout), 0)
    learned, nearest = Run(tiny, made), Run(tiny, recipe({"grid": "mse"}, 3, draw, **slots))
    assert (learned.output - fp)[2].square().sum() < (nearest.output - fp)[2].square().sum()
    assert set(tiny.anatomy.blocks) <= {name.removeprefix("unit ") for name in learned.kept.made}
    names = {key.rpartition("|")[0] for tensors in learned.kept.tensors.values() for key in tensors}
    if family == "unet_motion":
        assert sum(".conv_shortcut|" in name for name in names) > sum(name.endswith(".conv_shortcut") for name in tiny.roles)


@pytest.mark.parametrize("family", ["stdit", "unet_motion"])
def test_temporal_features_are_learned_jointly_on_the_timesteps_alone(family):
    """The layers that read the features of all timesteps of the trajectory give less error than rounded to nearest."""
    tiny = tiny_models.FAMILIES[family]()
    sites = {"only": ["time_emb.*", "time_proj"]}
    made = recipe({**FAST, "iters": 200, "temporal": True}, 3, {"draw": "single"}, sites=sites)
    learned, nearest = Run(tiny, made), Run(tiny, recipe({"grid": "mse"}, 3, {"draw": "single"}, sites=sites))
    assert learned.kept.made == ["order", "unit time_emb.*, time_proj"]
    evidence = evidence_of(tiny, recipe(FAST))
    readers = [name for name, role in tiny.roles.items() if role == "time_proj"]
    errors = []
    for run in (learned, nearest):
        error = 0.0
        for step in range(STEPS):
            (moment, *_) = evidence.calls.at(1, step)
            fp = evidence.module_calls(readers, [moment])
            with evidence.replaced(run.forwards(tiny)):
                quantized = evidence.module_calls(readers, [moment])
            pairs = [pair for name in readers for pair in zip(fp[name], quantized[name], strict=True)]
            error += sum(float((a.output - b.output).square().sum()) for a, b in pairs)
        errors.append(error)
    assert errors[0] < 0.7 * errors[1]


class Mixed(nn.Module):
    """A denoiser whose time projection reads more than the timestep."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.out, self.proj = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.requires_grad_(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        features = self.out(nn.functional.silu(self.up(t)))
        return x + self.proj(nn.functional.silu(features + x.mean()))


def test_what_cannot_be_learned_is_refused():
    part = {**FAST, "temporal": True}
    with pytest.raises(Unsupported, match=r"method.weight.temporal=true is about layers of the roles time_emb"):
        Run(stdit(), recipe(part, sites={"only": ["ffn.*"]}))
    with pytest.raises(Unsupported, match=r"bits.format=fp: method.weight.grid=adaround rounds whole numbers up or down"):
        method = {"weight": FAST, "calibration": {"draw": "all"}}
        Run(stdit(), Recipe.from_config(method, {"weight": 8, "activation": 16, "format": "fp"}, STEPS))
    denoiser, roles = Mixed(), {"up": "time_emb.up", "out": "time_emb.out", "proj": "time_proj"}

    def arguments(prompt: int, step: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(10 * prompt + step)
        return {"x": 3 * torch.randn(2, 4, generator=generator), "t": torch.tensor([[1.0, 2.0, step, 0.5]])}

    tiny = tiny_models.Tiny(denoiser, roles, Anatomy(), arguments)
    with pytest.raises(Unsupported, match="the input of layer proj is no plain activation of the output of out"):
        Run(tiny, recipe(part))
    wide = tiny_models.Tiny(denoiser, roles, Anatomy(), lambda prompt, step: {**arguments(prompt, step), "t": torch.randn(2, 4)})
    with pytest.raises(Unsupported, match="layer up sees more than the timestep"):
        Run(wide, recipe(part))
