"""Samplers by name: which schedulers of diffusers they are, how many steps those really take, and which models they fit.

Names and numbers of steps are known without loading diffusers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vdqbench.errors import ConfigError, nearest

CLASSES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "flow_euler": "FlowMatchEulerDiscreteScheduler",
    "lcm": "LCMScheduler",
}
"""Schedulers that a model's own can be exchanged for."""
NAMES = (*CLASSES, "iddpm", "model")
"""All samplers: those, what adapters bring along (`iddpm`), and `model`, the scheduler in the model's own folder."""
DEFAULTS: dict[str, dict[str, Any]] = {"pndm": {"skip_prk_steps": True}}
"""Options where diffusers' default is not what pipelines of video models use (without, PNDM starts with 12 Runge-Kutta steps)."""


def scheduler_steps(name: str, steps: int, options: Mapping[str, Any] | None = None) -> int:
    """How often the scheduler's `step` is called for `steps` asked for, which is what the clock counts.

    Heun steps twice for all but the last, PNDM repeats its second step (or starts with 12 Runge-Kutta steps in the place of 3).

    >>> [scheduler_steps(name, 20) for name in ("ddim", "heun", "pndm")]
    [20, 39, 21]
    """
    if name == "heun":
        return 2 * steps - 1
    if name == "pndm":
        return steps + 1 if {**DEFAULTS["pndm"], **(options or {})}["skip_prk_steps"] else steps + 9
    return steps


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is that of a model that predicts the velocity of a straight flow."""
    named = str(config.get("_class_name", ""))
    return named.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction" or bool(config.get("use_flow_sigmas"))


def name_of(config: Mapping[str, Any]) -> str:
    """The sampler that a scheduler's configuration is of; `model` if it is none of those with a name."""
    return next((name for name, kind in CLASSES.items() if kind == config.get("_class_name")), "model")


def scheduler_of(name: str, config: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> Any:
    """A scheduler of diffusers for a model.

    Args:
        name: of the sampler; `model` for the one that `config` describes.
        config: configuration of the model's own scheduler, with what it was trained on (betas or flow shift, prediction type).
        options: of the scheduler, over the configuration.

    Raises:
        ConfigError: the sampler is none of diffusers, does not fit what the model predicts, or lacks an option.
    """
    import diffusers

    own = str(config.get("_class_name", ""))
    if name not in CLASSES and name != "model":
        raise ConfigError(f"sampler.name={name} is no scheduler of diffusers{nearest(name, [*CLASSES, 'model'])}")
    target = own if name == "model" else CLASSES[name]
    kind = getattr(diffusers, target, None)
    if kind is None:
        raise ConfigError(f"sampler.name={name}: the model's own scheduler is {target or 'not named'}, which is no class of diffusers")
    if name != "model" and is_flow(config) != (name == "flow_euler"):
        predicts = "a flow" if is_flow(config) else "noise"
        fitting = "flow_euler" if is_flow(config) else ", ".join(one for one in CLASSES if one != "flow_euler")
        raise ConfigError(f"sampler.name={name} does not fit a model that predicts {predicts}; use {fitting} or model")
    chosen = {**DEFAULTS.get(name, {}), **(options or {})}
    known = [one for one in inspect.signature(kind.__init__).parameters if one != "self"]
    for key in chosen:
        if key not in known:
            raise ConfigError(f"sampler.options.{key} is not an option of {target}{nearest(key, known)}")
    return kind.from_config(dict(config), **chosen)
