"""Calibration equals a brute-force computation from stored activations, and knows what it was made with."""

from __future__ import annotations

import pytest
import torch
from tiny_stdit import STEPS, inputs, roles, sample, stdit
from torch import nn

from vdqbench.calibrate import Calibration, calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError

PROMPTS = 3
SAMPLER = {"name": "ddim", "steps": STEPS, "guidance": 4.0}


def brute_force() -> dict[str, dict[tuple[int, int], torch.Tensor]]:
    """Inputs of all layers, by prompt and step."""
    model, stored = stdit(), {}
    for name in roles(model):
        stored[name] = {}
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda m, args, into=stored[name]: into.__setitem__((len(into) // STEPS, len(into) % STEPS), args[0])
        )
    for prompt in range(PROMPTS):
        sample(model, StepClock(), prompt)
    return stored


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    model, clock = stdit(), StepClock()
    made = calibrate(model, roles(model), [lambda p=p: sample(model, clock, p) for p in range(PROMPTS)], clock, sampler=SAMPLER)
    assert not any(module._forward_pre_hooks for module in model.modules())
    return made


def test_statistics_are_those_of_the_stored_activations(calibration):
    assert (calibration.steps, calibration.prompts) == (STEPS, PROMPTS)
    for name, activations in brute_force().items():
        statistics = calibration.statistics(name)
        for (p, k), x in activations.items():
            mean_max = x.abs().amax(dim=-2).mean(dim=0)
            torch.testing.assert_close(statistics["mean_max"][p, k], mean_max)
            assert torch.equal(statistics["min"][p, k].amin(0), x.flatten(0, -2).amin(0))
            assert torch.equal(statistics["max"][p, k].amax(0), x.flatten(0, -2).amax(0))
            if "kv_linear" in name:  # compact text tokens cannot be told apart by dimension 0
                assert len(statistics["min"][p, k]) == 1
            else:
                for branch, half in enumerate(x.chunk(2)):
                    assert torch.equal(statistics["min"][p, k, branch], half.flatten(0, -2).amin(0))


def test_layers_that_read_one_tensor_are_observed_once(calibration):
    source = calibration.source
    assert source["blocks.0.attn.v"] == "blocks.0.attn.q" and source["blocks.1.attn_temp.k"] == "blocks.1.attn_temp.q"
    assert source["blocks.1.cross_attn.kv_linear"] == "blocks.0.cross_attn.kv_linear"
    assert len(calibration.tensors) == 26 - 8 - 1
    assert calibration.tensors["blocks.0.attn.q"]["mean_max"].shape == (PROMPTS, STEPS, 16)


def test_it_survives_a_file(calibration, tmp_path):
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
    assert (loaded.source, loaded.steps, loaded.prompts, loaded.sampler) == (calibration.source, STEPS, PROMPTS, SAMPLER)
    for layer, statistics in calibration.tensors.items():
        for name, value in statistics.items():
            assert torch.equal(loaded.tensors[layer][name], value)


def test_another_sampler_is_refused(calibration):
    calibration.check(dict(SAMPLER))
    with pytest.raises(ConfigError, match=r"sampler.guidance=7.0 differs from the 4.0"):
        calibration.check({**SAMPLER, "guidance": 7.0})
    with pytest.raises(ConfigError, match=r"no layer blocks.9"):
        calibration.statistics("blocks.9")


class Written(nn.Module):
    """Two layers read one tensor object, which is written to in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        self.a(x)
        return self.b(x.mul_(2))


def test_a_tensor_that_changed_is_another_input():
    model, clock = Written(), StepClock(1)

    def trajectory():
        clock.reset(1)
        model(torch.ones(2, 5, 3))
        clock.advance()

    made = calibrate(model, {"a": "a", "b": "b"}, [trajectory], clock)
    assert made.statistics("a")["max"].unique().item() == 1 and made.statistics("b")["max"].unique().item() == 2


def test_two_passes_are_two_branches():
    clock = StepClock(layout="two_pass")
    model, calls = nn.Linear(3, 3), [torch.full((1, 2, 3), v) for v in (1.0, -5.0)]
    outer = nn.Sequential(model)

    class Scheduler:
        timesteps = (0, 1)

        def set_timesteps(self): ...
        def step(self): ...

    scheduler = Scheduler()

    def trajectory():
        with clock.attached(scheduler, [outer]):
            scheduler.set_timesteps()
            for _ in scheduler.timesteps:
                for x in calls:
                    outer(x)
                scheduler.step()

    statistics = calibrate(outer, {"0": "a"}, [trajectory], clock).statistics("0")
    assert statistics["max"].shape == (1, 2, 2, 3)
    assert statistics["max"][0, 0, :, 0].tolist() == [1, -5] and statistics["mean_max"][0, 1, 0] == 3


def test_convolutions_have_their_channels_in_dimension_1():
    model, clock, x = nn.Sequential(nn.Conv2d(3, 4, 3)), StepClock(), torch.randn(2, 3, 6, 5)

    def trajectory():
        clock.reset(1)
        model(x)
        clock.advance()

    statistics = calibrate(model, {"0": "conv"}, [trajectory], clock).statistics("0")
    assert torch.equal(statistics["max"][0, 0].amax(0), x.amax((0, 2, 3)))


def test_a_clock_that_is_not_attached_is_an_error():
    model = stdit()
    with pytest.raises(RuntimeError, match="steps that the clock counted"):
        calibrate(model, roles(model), [lambda: model(**inputs(0, 0))], StepClock())


@torch.no_grad()
def test_inputs_that_are_not_finite_are_an_error():
    model, clock = nn.Sequential(nn.Linear(2, 2)), StepClock()

    def trajectory():
        clock.reset(1)
        model(torch.tensor([[1.0, float("inf")]]))

    with pytest.raises(RuntimeError, match="input of layer 0 is not finite"):
        calibrate(model, {"0": "a"}, [trajectory], clock)
