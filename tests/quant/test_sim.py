"""The simulation against a straightforward reference: x / s, fake quantization, product with fake-quantized W s."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_stdit import STEPS, recipe, roles, sample, stdit
from torch import nn

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import Unsupported
from vdqbench.quant.layer import QuantConv2d, QuantLinear
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe

PROMPTS = 2
METHODS = ["asq", "cw_tw", "dynamic", "fp", "minmax_dynamic", "smoothquant", "tsq", "tsw", "viditq_w4a8", "viditq_w6a6"]
"""Of smoothing, min-max weights, and static or dynamic ranges: what the reference below can compute."""
CASES = [(m, w, a, {}) for m in METHODS if m != "fp" for w, a in ((8, 8), (4, 6))] + [
    ("asq", 4, 16, {}),
    ("tsq", 16, 8, {}),
    ("tsq", 4, 8, {"ranges": 2}),
    ("tsq", 8, 8, {"transform__smooth__ranges": 1}),
    ("tsq", 8, 8, {"transform__smooth__share_qkv": True}),
    ("tsq", 8, 8, {"transform__smooth__statistic": "mean", "activation__observer": "ema"}),
    ("asq", 8, 8, {"transform__smooth__alpha": 0.2, "activation__observer": "last", "weight__per": "tensor"}),
    ("tsw", 8, 8, {"activation__split_branches": True}),
    ("asq", 8, 8, {"activation__symmetric": True, "weight__symmetric": True}),
    ("dynamic", 6, 6, {"activation__symmetric": True}),
]


@pytest.fixture(scope="module")
def calibration():
    model, clock = stdit(), StepClock()
    return calibrate(model, roles(model), [lambda p=p: sample(model, clock, p) for p in range(PROMPTS)], clock)


def grid(x, lo, hi, bits, symmetric):
    """Fake quantization in float64, with the division written as one."""
    lo, hi, top = lo.double().clamp(max=0), hi.double().clamp(min=0), 2**bits - 1
    if symmetric:
        delta = torch.maximum(-lo, hi) / (2 ** (bits - 1) - 1)
        return (x / delta).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * delta
    delta = (hi - lo) / top
    zero = (-lo / delta).round()
    return ((x / delta).round() + zero).clamp(0, top).sub(zero) * delta


def smoothing(smooth, weights, statistics, steps):
    """s of the range with these steps, from the definition, in float64."""
    if smooth is None:
        return torch.ones(weights[0].shape[1], dtype=torch.float64)
    updates = statistics["mean_max"][:, steps].flatten(0, 1).double()  # prompt by prompt
    if smooth.statistic == "max":
        a = torch.maximum(statistics["max"][:, steps], -statistics["min"][:, steps]).flatten(0, 2).amax(0).double()
    elif smooth.statistic == "mean":
        a = updates.mean(0)
    else:
        a = updates[0]
        for update in updates[1:]:
            a = 0.95 * a + 0.05 * update
    w = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).double()
    return a.clamp(min=1e-5) ** smooth.alpha / w.clamp(min=1e-5) ** (1 - smooth.alpha)


def window(step, ranges):
    size = STEPS // ranges
    return slice(step // size * size, step // size * size + size)


def reference(r: Recipe, module, peers, statistics, x, step):
    """What one layer computes at one step, in float64."""
    smooth, act = (r.transforms or (None,))[0], r.activation
    s_at = [smoothing(smooth, peers, statistics, window(k, smooth.ranges if smooth else 1)) for k in range(STEPS)]
    x, w = x.double() / s_at[step], module.weight.double() * s_at[step]
    if r.weight_bits is not None:
        dims = 1 if r.weight.per == "channel" else (0, 1)
        w = grid(w, w.amin(dims, keepdim=True), w.amax(dims, keepdim=True), r.weight_bits, r.weight.symmetric)
    if r.activation_bits is not None and type(act).__name__ == "Dynamic":
        dims = -1 if act.per == "token" else tuple(range(x.ndim))
        x = grid(x, x.amin(dims, keepdim=True), x.amax(dims, keepdim=True), r.activation_bits, act.symmetric)
    elif r.activation_bits is not None:
        lo = torch.stack([(statistics["min"][:, k] / s_at[k]).amin(-1) for k in range(STEPS)], 1)
        hi = torch.stack([(statistics["max"][:, k] / s_at[k]).amax(-1) for k in range(STEPS)], 1)
        halves = []
        for branch, half in enumerate(x.chunk(2) if act.split_branches and lo.shape[-1] == 2 else (x,)):
            one = slice(branch, branch + 1) if act.split_branches else slice(None)
            low, high = (b[:, window(step, act.ranges), one] for b in (lo, hi))
            low, high = low.amin(-1).flatten(), high.amax(-1).flatten()
            ends = {"minmax": (low.amin(), high.amax()), "last": (low[-1], high[-1]), "ema": (ema(low), ema(high))}[act.observer]
            halves.append(grid(half, *ends, r.activation_bits, act.symmetric))
        x = torch.cat(halves)
    return F.linear(x, w, module.bias.double())


def ema(values):
    result = values[0].double()
    for value in values[1:]:
        result = 0.95 * result + 0.05 * value
    return result


@pytest.mark.parametrize(("method", "weight", "activation", "changes"), CASES)
def test_every_layer_at_every_step(calibration, method, weight, activation, changes):
    model, clock, r = stdit(), StepClock(), recipe(method, weight, activation, **changes)
    layers = roles(model)
    shared = any(part.shared for part in r.transforms)

    def compare(name):
        module = model.get_submodule(name)
        parent = name.rpartition(".")[0]
        same = [n for n in layers if n.rpartition(".")[0] == parent and calibration.source[n] == calibration.source[name]]
        peers = [model.get_submodule(n).weight for n in (same if shared else [name])]

        def hook(module, args, output):
            expected = reference(r, module, peers, calibration.statistics(name), args[0], clock.step)
            error = (output - expected).abs()
            # A quotient that lies on a tie in one precision rounds the other way in the other: rare, and one step of one input, or of
            # one weight, which one of 16 output channels reads.
            scale = expected.abs().max()
            assert (error > 1e-5 * scale).float().mean() < 0.07 and error.max() < 0.05 * scale, (name, clock.step, error.max() / scale)

        return module.register_forward_hook(hook)

    with quantize(model, layers, r, calibration if r.needs_calibration else None, clock):
        handles = [compare(name) for name in layers]
        sample(model, clock, 7)
        [handle.remove() for handle in handles]


def outputs(calibration, r, model=None, **kernel):
    model, clock = model or stdit(), StepClock()
    with quantize(model, roles(model), r, calibration, clock, kernel={"name": "sim", **kernel}):
        return sample(model, clock, 5)


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_tsq_with_one_range_is_asq(calibration):
    asq = outputs(calibration, recipe("asq", 6, 6))
    assert equal(asq, outputs(calibration, recipe("tsq", 6, 6, ranges=1)))
    assert not equal(asq, outputs(calibration, recipe("tsq", 6, 6)))


def test_more_bits_are_nearer_to_full_precision(calibration):
    model = stdit()
    exact = sample(model, StepClock(), 5)
    for method in METHODS:
        if method != "fp":
            errors = [
                sum((a - b).square().mean() for a, b in zip(exact, outputs(calibration, recipe(method, b, b)), strict=True))
                for b in (4, 8, 12)
            ]
            assert errors[0] > errors[1] > errors[2], method


def test_stored_and_requantized_weights_are_the_same(calibration):
    stored = outputs(calibration, recipe("tsq", 4, 8), weights="stored")
    assert equal(stored, outputs(calibration, recipe("tsq", 4, 8), weights="requantized"))


@pytest.mark.parametrize("method", METHODS)
def test_restored_to_the_bit(calibration, method):
    model, clock = stdit(), StepClock()
    before, state = sample(model, clock, 5), {name: value.clone() for name, value in model.state_dict().items()}
    modules, attributes = list(model.modules()), [set(vars(module)) for module in model.modules()]
    quantized = quantize(model, roles(model), recipe(method, 4, 4), calibration, clock)
    assert isinstance(model.blocks[0].attn.q, QuantLinear) == (method != "fp")
    assert model.state_dict().keys() == state.keys()
    sample(model, clock, 5)
    quantized.restore(), quantized.restore()
    assert equal(before, sample(model, clock, 5))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [type(m) for m in modules] == [type(m) for m in model.modules()] and list(model.modules()) == modules
    assert [set(vars(module)) for module in modules] == attributes


def test_a_failing_recipe_leaves_the_model_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with pytest.raises(Unsupported, match="LayerNorm is not a layer that can be quantized"):
        quantize(model, {"0": "a", "1": "b"}, recipe("dynamic"), None, StepClock())
    assert type(model[0]) is nn.Linear


def test_another_number_of_steps_is_refused(calibration):
    model, clock = stdit(), StepClock()
    with (
        quantize(model, roles(model), recipe("asq"), calibration, clock),
        pytest.raises(RuntimeError, match="calibrated on 4 steps, but the sampler in progress takes 5"),
    ):
        sample(model, clock, 0, steps=5)


@torch.no_grad()
def test_per_token_does_not_depend_on_the_batch():
    linear = nn.Linear(16, 8).requires_grad_(False)
    with quantize(nn.Sequential(linear), {"0": "a"}, recipe("dynamic", 4, 4), None, StepClock()):
        x = torch.randn(6, 5, 16) * torch.logspace(-2, 2, 6).view(-1, 1, 1)
        torch.testing.assert_close(linear(x)[2:3], linear(x[2:3]))


def test_text_that_does_not_depend_on_time_has_equal_ranges(calibration):
    """Keys and values of the cross attention read the same text at every step: only the rounding of an EMA may differ."""
    model, clock = stdit(), StepClock()
    for method in ("tsw", "tsq"):
        with quantize(model, roles(model), recipe(method), calibration, clock):
            highest = {name: model.get_submodule(name).run.plan.activation.hi for name in roles(model)}
        spread = {name: (hi.amax() / hi.amin() - 1).item() for name, hi in highest.items()}
        assert all(value < 1e-5 for name, value in spread.items() if "kv_linear" in name)
        assert all(value > 0.1 for name, value in spread.items() if name.endswith("attn_temp.q"))


@torch.no_grad()
def test_an_input_is_quantized_once_for_layers_in_a_row(calibration, monkeypatch):
    from vdqbench.quant.activations import static

    calls = []
    original = static.Affine.__call__
    monkeypatch.setattr(static.Affine, "__call__", lambda self, x: calls.append(id(x)) or original(self, x))
    model, clock = stdit(), StepClock()
    for method, count in (("cw_tw", 9), ("asq", 13)):
        with quantize(model, roles(model), recipe(method), calibration, clock):
            calls.clear()
            sample(model, clock, 0)
            assert len(calls) == count * 2 * STEPS
    linear = nn.Linear(4, 4).requires_grad_(False)
    with quantize(nn.Sequential(linear, nn.Linear(4, 4)), {"0": "a", "1": "b"}, recipe("dynamic"), None, StepClock()):
        x = torch.ones(1, 4)
        first = linear(x)
        assert not torch.equal(linear(x.mul_(2)), first), "a tensor that was written to is another input"
        with torch.inference_mode():
            y = torch.ones(1, 4)
            first = linear(y)
            assert not torch.equal(linear(y.mul_(2)), first)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["cw_tw", "tsq", "dynamic"])
def test_other_precisions(calibration, method, dtype):
    """Scales are found and inputs divided in float32, so that only weights and products are coarser."""
    name, clock, made = "blocks.0.mlp.fc1", StepClock(STEPS), []
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    for precision in (torch.float32, dtype):
        model = stdit().to(dtype).to(precision)
        with quantize(model, {name: "ffn.up"}, recipe(method), calibration, clock):
            made.append(model.get_submodule(name)(x.to(precision)))
    assert made[1].dtype == dtype
    torch.testing.assert_close(made[1].float(), made[0], atol=0.02, rtol=0.02)


def conv_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.GELU(), nn.Conv3d(1, 2, (1, 3, 3), stride=(1, 2, 1))).requires_grad_(False)


def conv_calibration(model, clock, x):
    def trajectory():
        clock.reset(STEPS)
        for _ in range(STEPS):
            model[0](x)
            clock.advance()

    return calibrate(model, {"0": "conv"}, [trajectory], clock)


@torch.no_grad()
@pytest.mark.parametrize("method", ["cw_tw", "asq", "minmax_dynamic"])
def test_convolutions(method):
    model, clock, x = conv_model(), StepClock(), torch.randn(2, 4, 7, 5)
    conv, statistics = model[0], conv_calibration(model, clock, x)
    w, s = conv.weight, torch.ones(4)
    if method == "asq":
        s = (statistics.statistics("0")["mean_max"][0, 0] / w.abs().amax((0, 2, 3))).sqrt()
    s = s.view(-1, 1, 1)
    xs, ws = (x / s).double(), (w * s).double()
    xq = grid(xs, xs.amin(), xs.amax(), 8, False)
    wq = grid(ws, ws.amin((1, 2, 3), keepdim=True), ws.amax((1, 2, 3), keepdim=True), 8, False)
    with quantize(model, {"0": "conv"}, recipe(method), statistics, clock):
        assert type(conv) is QuantConv2d
        clock.reset(STEPS)
        made = conv(input=x)
    expected = F.conv2d(xq, wq, conv.bias.double(), padding=1)
    assert ((made - expected).abs() > 1e-4).float().mean() < 0.02 and (made - expected).abs().max() < 0.05
    assert not torch.equal(made, model[0](x)), "restored"


def test_combinations_that_do_not_work_are_named():
    model, clock, x = conv_model(), StepClock(), torch.randn(2, 4, 7, 5)
    with pytest.raises(Unsupported, match="layer 0 is a convolution, whose input has no tokens"):
        quantize(model, {"0": "conv"}, recipe("dynamic"), None, clock)
    model[0] = nn.Conv2d(4, 6, 3, groups=2)
    with pytest.raises(Unsupported, match="layer 0 is a grouped convolution"):
        quantize(model, {"0": "conv"}, recipe("asq"), conv_calibration(model, clock, x), clock)
    with pytest.raises(Unsupported, match="calibration saw no such layers"):
        quantize(model, {"0": "conv"}, recipe("asq", transform__smooth__share_qkv=True), conv_calibration(model, clock, x), clock)
    with quantize(model, {"0": "conv"}, recipe("minmax_dynamic"), None, clock), pytest.raises(Unsupported, match="quantized already"):
        quantize(model, {"0": "conv"}, recipe("minmax_dynamic"), None, clock)
