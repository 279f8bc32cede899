"""Calls of the denoiser: kept, saved, loaded, and made again they give what they gave."""

from __future__ import annotations

import pytest
import torch
from tiny_stdit import STEPS, inputs, sample, stdit
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError
from vdqbench.replay import CallRecorder, Calls


def recorded(model, clock, prompts=2):
    recorder = CallRecorder(clock)
    outputs = []
    with recorder.attached(model):
        for prompt in range(prompts):
            recorder.begin()
            outputs.append(sample(model, clock, prompt))
    return recorder.recorded(), outputs


def test_calls_survive_the_file_and_repeat_exactly(tmp_path):
    model, clock = stdit(), StepClock()
    calls, outputs = recorded(model, clock)
    calls.save(tmp_path / "calls.safetensors")
    loaded = Calls.load(tmp_path / "calls.safetensors")
    assert (loaded.steps, loaded.prompts, len(loaded.calls)) == (STEPS, 2, 2 * STEPS)
    for prompt in range(2):
        for step in range(STEPS):
            (call,) = loaded.at(prompt, step)
            assert torch.equal(call.repeat(model, clock, STEPS), outputs[prompt][step])
            assert torch.equal(call.kwargs["x"], inputs(prompt, step)["x"])


def test_equal_tensors_are_written_once(tmp_path):
    calls, _ = recorded(stdit(), StepClock())
    calls.save(tmp_path / "calls.safetensors")
    from safetensors import safe_open

    with safe_open(tmp_path / "calls.safetensors", framework="pt") as file:
        count = len(list(file.keys()))
    # x and timestep of each call (timesteps are those of both prompts), text of each prompt, mask of each prompt
    assert count == 2 * STEPS + STEPS + 2 + 2


def test_the_clock_is_at_the_call_and_afterwards_where_it_was():
    model, clock = stdit(), StepClock()
    calls, _ = recorded(model, clock)
    seen = []
    handle = model.blocks[0].mlp.register_forward_pre_hook(lambda *_: seen.append((clock.step, clock.steps, clock.index(2))))
    calls.at(1, 3)[0].repeat(model, clock, STEPS)
    handle.remove()
    assert seen == [(3, STEPS, 1)] and clock.step == STEPS


class TwoPasses(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x, options):
        return self.linear(x) * options["scale"] + (0 if options["shift"][0] is None else options["shift"][0])


def test_branches_and_nested_arguments(tmp_path):
    clock, model = StepClock(layout="two_pass"), TwoPasses()
    recorder = CallRecorder(clock)

    class Scheduler:
        def set_timesteps(self, steps):
            self.timesteps = list(range(steps))

        def step(self, *_):
            pass

    scheduler, outputs = Scheduler(), []
    with recorder.attached(model), clock.attached(scheduler, [model]), torch.no_grad():
        scheduler.set_timesteps(2)
        recorder.begin()
        for step in range(2):
            for shift in (None, torch.ones(2, dtype=torch.bfloat16)):
                outputs.append(model(torch.full((1, 2), float(step)), options={"scale": 2.0, "shift": (shift,)}))
            scheduler.step()
    recorder.recorded().save(tmp_path / "calls")
    loaded = Calls.load(tmp_path / "calls")
    assert [(c.step, c.branch) for c in loaded.calls] == [(0, "cond"), (0, "uncond"), (1, "cond"), (1, "uncond")]
    assert [torch.equal(c.repeat(model, clock, 2), y) for c, y in zip(loaded.calls, outputs, strict=True)] == [True] * 4


def test_what_cannot_be_kept_is_said(tmp_path):
    model, clock = TwoPasses(), StepClock(steps=1)
    recorder = CallRecorder(clock)
    with recorder.attached(model):
        recorder.begin()
        model(torch.ones(1, 2), {"scale": 1.0, "shift": [None], "processor": object()})
    with pytest.raises(TypeError, match="called with a object, which cannot be kept"):
        recorder.recorded().save(tmp_path / "calls")


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, tmp_path / "x")
    with pytest.raises(ConfigError, match="does not hold denoiser calls of version 1"):
        Calls.load(tmp_path / "x")
