"""What data-driven parts see: the same inputs that the layers really got."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from tiny_stdit import STEPS, inputs, sample, stdit
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.models.roles import stdit_roles
from vdqbench.quant.draws.all import All
from vdqbench.quant.draws.single import Single
from vdqbench.quant.draws.stride import Stride
from vdqbench.quant.evidence import Evidence, ModuleCall, _tokens, tensors
from vdqbench.replay import CallRecorder


@pytest.fixture(scope="module")
def model():
    return stdit()


def evidence_of(model, draw):
    clock = StepClock()
    recorder = CallRecorder(clock)
    with recorder.attached(model):
        for prompt in range(3):
            recorder.begin()
            sample(model, clock, prompt)
    return Evidence(model, stdit_roles(model), recorder.recorded, draw, clock)


def test_samples_are_rows_of_the_inputs_of_their_step(model):
    evidence = evidence_of(model, All(tokens=4))
    samples = evidence.samples("blocks.1.attn.k")
    assert samples.values.shape == (3 * STEPS * 4, 16) and samples.step.tolist() == [
        k for _ in range(3) for k in range(STEPS) for _ in range(4)
    ]
    seen = []
    handle = model.blocks[1].attn.k.register_forward_pre_hook(lambda module, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        model(**inputs(1, 2))
    handle.remove()
    rows = samples.values[(STEPS + 2) * 4 : (STEPS + 3) * 4]
    assert torch.cdist(rows, seen[0]).amin(1).max() < 1e-6
    assert torch.equal(samples.values, evidence.samples("blocks.1.attn.q").values)
    assert not torch.equal(samples.values, evidence.samples("blocks.0.attn.q").values)


def test_samples_follow_the_draw(model):
    samples = evidence_of(model, Single(at=0.5, prompts=2, tokens=3)).samples("blocks.0.mlp.fc1")
    assert samples.step.tolist() == [2] * 6
    assert evidence_of(model, Stride(moments=2, tokens=1)).samples("t_block.1").step.tolist() == [0, 2] * 3


def test_samples_of_outputs(model):
    evidence = evidence_of(model, All(tokens=1))
    features = evidence.samples("t_embedder.mlp.2", of_output=True)
    with torch.no_grad():
        for step, row in zip(features.step.tolist(), features.values, strict=True):
            assert torch.allclose(row, model.t_embedder(torch.tensor([999 - 100 * step]))[0], atol=1e-6)


@pytest.mark.parametrize(
    "module",
    [nn.Conv1d(3, 5, 3, padding=1), nn.Conv2d(3, 5, (3, 2), stride=2, padding=(1, 0)), nn.Conv3d(3, 5, (1, 2, 2), stride=(1, 2, 2))],
)
def test_windows_of_a_convolution_are_what_it_multiplies(module):
    x = torch.randn(2, 3, *(6,) * len(module.kernel_size))
    windows = _tokens(module, x, 10**6, torch.Generator().manual_seed(0), of_output=False)
    with torch.no_grad():
        expected = module(x).movedim(1, -1).flatten(0, -2)
        found = F.linear(windows.flatten(1), module.weight.flatten(1), module.bias)
    assert windows.shape == (len(expected), 3, *module.kernel_size)
    order = [int((expected - row).abs().sum(1).argmin()) for row in found]
    assert sorted(order) == list(range(len(expected))) and torch.allclose(found, expected[order], atol=1e-5)


def test_layers_that_read_one_tensor_with_other_windows_or_after_a_change_have_samples_of_their_own():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow, self.late = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x = x.clone()
            return self.wide(x) + self.narrow(x) + self.late(x.mul_(10))

    reads, clock = Reads().requires_grad_(False), StepClock()
    recorder = CallRecorder(clock)
    with recorder.attached(reads):
        recorder.begin()
        clock.reset(1)
        reads(torch.ones(1, 3, 4, 4))
    evidence = Evidence(reads, dict.fromkeys(("wide", "narrow", "late"), "conv"), recorder.recorded, All(tokens=5), clock)
    assert evidence.samples("wide").values.shape == (5, 3, 3, 3)
    assert torch.equal(evidence.samples("narrow").values, torch.ones(5, 3, 1, 1))
    assert torch.equal(evidence.samples("late").values, torch.full((5, 3, 1, 1), 10.0))


def test_the_unit_of_a_layer_is_what_plays_the_same_part(model):
    evidence = evidence_of(model, All())
    assert evidence.unit("blocks.0.attn.q") == "blocks.0.attn" and evidence.unit("blocks.1.mlp.fc2") == "blocks.1.mlp"
    assert evidence.unit("t_embedder.mlp.0") == "t_embedder" and evidence.unit("x_embedder.proj") == "x_embedder"


def test_module_calls_rerun_to_the_same_output_and_error_is_relative(model):
    evidence = evidence_of(model, Single())
    calls = evidence.module_calls(["blocks.1.attn"])["blocks.1.attn"]
    assert [(call.step, call.branch) for call in calls] == [(2, "both")]
    ((call, again),) = evidence.rerun("blocks.1.attn", calls)
    assert torch.equal(again.detach(), call.output)
    assert evidence.output_error("blocks.1.attn", calls, {}) == 0
    proj = model.blocks[1].attn.proj
    tenth = {"blocks.1.attn.proj": lambda x: 1.1 * F.linear(x, proj.weight, proj.bias)}
    assert evidence.output_error("blocks.1.attn", calls, tenth) == pytest.approx(0.01, rel=1e-4)
    assert "forward" not in vars(proj)


def test_what_was_found_is_remembered(model):
    evidence, made = evidence_of(model, All()), []
    for key in ([1, "a"], [1, "a"], [2, "a"]):
        evidence.remember(key, lambda: made.append(1) or {"x": torch.ones(1)})
    assert len(made) == 2


def test_all_floating_point_tensors_of_an_output_count():
    a, b = torch.ones(2), torch.zeros(3)
    assert [len(t) for t in tensors((a, None, {"x": [b], "mask": torch.ones(2, dtype=torch.bool)}))] == [2, 3]
    assert [len(t) for t in tensors(a)] == [2] and tensors(None) == []


def test_the_second_output_of_a_module_counts_as_well():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.first(x), 3 * self.second(x)

    model = nn.ModuleDict({"both": Two()})
    evidence = Evidence.__new__(Evidence)
    evidence.denoiser, evidence.clock = model, StepClock(STEPS)
    evidence._calls = SimpleNamespace(steps=STEPS)
    x = torch.randn(5, 4)
    with torch.no_grad():
        first, second = model["both"](x)
    calls = [ModuleCall(0, "both", (x,), {}, (first, second))]
    off = evidence.output_error("both", calls, {"both.second": lambda input: torch.zeros_like(input)})
    expected = second.square().sum() / (first.square().sum() + second.square().sum())
    assert off == pytest.approx(float(expected), rel=1e-5)
