"""The clock counts scheduler steps: with real schedulers, in every layout of guidance branches, and undone afterwards."""

from __future__ import annotations

import copy
import inspect

import diffusers
import pytest
import torch
from torch import nn

from vdqbench.calibrate import calibrate
from vdqbench.clock import LAYOUTS, StepClock
from vdqbench.models.samplers import CLASSES, scheduler_of, scheduler_steps

SCHEDULERS = [
    "DDIMScheduler",
    "PNDMScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LCMScheduler",
]


def denoise(scheduler, model, calls: int, record) -> None:
    x = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        for _ in range(calls):
            model(x)
            record()
        x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_step_counts_once(name):
    scheduler, model, clock, seen = getattr(diffusers, name)(), nn.Identity(), StepClock(), []
    with clock.attached(scheduler, {"transformer": model}):
        for _ in range(2):  # a second trajectory starts anew
            scheduler.set_timesteps(5)
            assert (clock.step, clock.steps) == (0, len(scheduler.timesteps))
            seen.clear()
            denoise(scheduler, model, 1, lambda: seen.append((clock.step, clock.branch)))
            assert seen == [(k, "both") for k in range(len(scheduler.timesteps))]


def guided(scheduler, model: nn.Module, layout: str) -> int:
    """Sample with classifier-free guidance in a layout: at step k the model is given 10 k, and 10 k + 5 in the unconditional branch."""
    x = torch.zeros(1, 4)
    for k, t in enumerate(scheduler.timesteps):
        cond, uncond = torch.full((1, 4), 10.0 * k), torch.full((1, 4), 10.0 * k + 5)
        calls = {"two_pass": [cond, uncond], "embedded": [cond], "batched": [torch.cat([cond, uncond])]}
        for call in calls.get(layout, [torch.cat([uncond, cond])]):
            model(call)
        x = scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0]
    return k + 1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CLASSES)
def test_every_sampler_in_every_layout(name, layout):
    """What calibration records at a step and in a branch is what the model was given there, in each of two trajectories."""
    family = "FlowMatchEulerDiscreteScheduler" if name == "flow_euler" else "DDIMScheduler"
    scheduler, model, clock = scheduler_of(name, {"_class_name": family}), nn.Sequential(nn.Linear(4, 4)), StepClock(layout=layout)
    steps = scheduler_steps(name, 6)

    def trajectory() -> None:
        with clock.attached(scheduler, [model]):
            scheduler.set_timesteps(6)
            assert guided(scheduler, model, layout) == steps == clock.steps

    found = calibrate(model, {"0": "ffn.up"}, [trajectory, trajectory], clock)
    values = found.statistics("0")["min"][..., 0]
    branches = torch.tensor([0.0] if layout == "embedded" else [0.0, 5.0])
    assert torch.equal(values, (10.0 * torch.arange(steps)[:, None] + branches).expand(2, -1, -1))


def test_timesteps_that_repeat_are_different_steps():
    scheduler, clock = diffusers.HeunDiscreteScheduler(), StepClock()
    with clock.attached(scheduler, []):
        scheduler.set_timesteps(3)
    assert clock.steps == 5 and len(set(scheduler.timesteps.tolist())) == 3


def test_two_pass_guidance_tells_its_branches():
    scheduler, clock, seen = diffusers.DDIMScheduler(), StepClock(layout="two_pass"), []
    transformer, other = nn.Identity(), nn.Identity()
    with clock.attached(scheduler, [transformer, other]):
        scheduler.set_timesteps(3)
        denoise(scheduler, transformer, 2, lambda: seen.append((clock.step, clock.branch)))
        assert seen == [(k, branch) for k in range(3) for branch in ("cond", "uncond")]
        scheduler.set_timesteps(1)
        for model in (other, transformer):  # a second module in the same pass is not a second pass
            model(0)
            assert clock.branch == "cond"
        transformer(0), transformer(0)
        with pytest.raises(RuntimeError, match="call 3 of step 0"):
            _ = clock.branch


def test_ranges_are_equal_parts_of_the_steps():
    clock, seen = StepClock(20), []
    for _ in range(20):
        seen.append([clock.index(n) for n in (1, 2, 20)])
        clock.advance()
    assert [row[1] for row in seen] == [0] * 10 + [1] * 10
    assert [row[2] for row in seen] == list(range(20)) and {row[0] for row in seen} == {0}
    with pytest.raises(RuntimeError, match=r"step 20 of 20"):
        clock.index(2)
    with pytest.raises(RuntimeError, match=r"outside of clock.attached"):
        StepClock().index(2)


def test_nothing_is_left_behind_even_after_an_error():
    scheduler, model, clock = diffusers.EulerDiscreteScheduler(), nn.Identity(), StepClock()
    before = dict(vars(scheduler))
    with pytest.raises(ZeroDivisionError), clock.attached(scheduler, [model]):
        assert "sigmas" in inspect.signature(scheduler.set_timesteps).parameters, "pipelines look at the signature"
        raise ZeroDivisionError
    assert vars(scheduler).keys() == before.keys() and not model._forward_pre_hooks


def test_a_copied_model_keeps_its_clock():
    clock = StepClock(3)
    assert copy.deepcopy({"clock": clock})["clock"] is clock


def test_an_unknown_layout_is_an_error():
    with pytest.raises(ValueError, match="batched, batched_reversed, two_pass, embedded"):
        StepClock(layout="batch")
