"""Samplers by name: the schedulers they become, and the number of steps that is known before anything is loaded."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import pytest

from vdqbench.errors import ConfigError
from vdqbench.models.samplers import CLASSES, name_of, scheduler_of, scheduler_steps

NOISE = {"_class_name": "DDIMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "steps_offset": 1}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 7.0}


@pytest.mark.parametrize("asked", [4, 7, 20])
@pytest.mark.parametrize("name, options", [*((name, {}) for name in CLASSES), ("pndm", {"skip_prk_steps": False})])
def test_the_number_of_steps_is_that_of_the_scheduler(name, options, asked):
    scheduler = scheduler_of(name, FLOW if name == "flow_euler" else NOISE, options)
    assert type(scheduler).__name__ == CLASSES[name]
    scheduler.set_timesteps(asked)
    assert len(scheduler.timesteps) == scheduler_steps(name, asked, options)


def test_what_the_model_was_trained_on_is_kept_and_options_come_over_it():
    scheduler = scheduler_of("euler", NOISE, {"use_karras_sigmas": True})
    assert (scheduler.config.beta_end, scheduler.config.beta_schedule, scheduler.config.use_karras_sigmas) == (0.02, "linear", True)
    assert scheduler_of("flow_euler", FLOW).config.shift == 7.0 and scheduler_of("flow_euler", FLOW, {"shift": 3.0}).config.shift == 3.0


def test_the_models_own_scheduler():
    own = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = scheduler_of("model", own)
    assert isinstance(scheduler, diffusers.UniPCMultistepScheduler) and scheduler.config.flow_shift == 3.0
    assert (name_of(own), name_of(NOISE), name_of(FLOW)) == ("model", "ddim", "flow_euler")


@pytest.mark.parametrize(
    "name, config, options, words",
    [
        ("flow_euler", NOISE, {}, "sampler.name=flow_euler does not fit a model that predicts noise; use ddim, pndm, heun"),
        ("ddim", FLOW, {}, "sampler.name=ddim does not fit a model that predicts a flow; use flow_euler or model"),
        ("dpmpp", {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction"}, {}, "predicts a flow"),
        ("ddim", NOISE, {"shift": 3}, "sampler.options.shift is not an option of DDIMScheduler"),
        ("iddpm", NOISE, {}, "sampler.name=iddpm is no scheduler of diffusers"),
        ("model", {"_class_name": "NoScheduler"}, {}, "NoScheduler, which is no class of diffusers"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name, config, options, words):
    with pytest.raises(ConfigError, match=words):
        scheduler_of(name, config, options)


def test_names_are_known_without_torch():
    code = (
        "import sys, vdqbench.models.samplers as s; assert s.NAMES and s.scheduler_steps('heun', 5) == 9; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
