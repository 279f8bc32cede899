"""Every recipe in conf/method on a tiny denoiser of every family: it runs and can be taken off again, or says why it cannot."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tiny_models import FAMILIES, STEPS

from vdqbench.clock import StepClock
from vdqbench.config import CONF
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
BUDGET = {
    "weight": {"iters": 2},
    "calibration": {"tokens": 8},
    "transform": {"scri": {"points": 4}, "osplus": {"points": 2}, "smooth_search": {"points": 2}, "low_rank": {"rank": 4}},
}
"""Searches cut to a minimum: what they find is tested elsewhere. A branch of rank 32 would hold all of a width of 32."""


def method(name: str) -> dict[str, Any]:
    node = OmegaConf.load(CONF / "method" / f"{name}.yaml")
    config = OmegaConf.create({"method": node, "sampler": {"steps": STEPS}})
    if "ranges" in node:
        config.method.ranges = min(node.ranges, STEPS)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain = plain["method"]
    if (plain.get("calibration") or {}).get("draw") == "stride":
        plain["calibration"]["moments"] = 2
    for slot, changes in BUDGET.items():
        for key, value in changes.items():
            if isinstance(plain.get(slot), dict) and key in plain[slot]:
                plain[slot][key] = {**plain[slot][key], **value} if isinstance(value, dict) else value
    return plain


@cache
def calibrated(family: str):
    return FAMILIES[family]().calibrated(prompts=2)


@cache
def full_precision(family: str) -> torch.Tensor:
    tiny = FAMILIES[family]()
    return tiny.sample(StepClock(layout=tiny.layout), 7)


def run(name: str, family: str, weight: int, activation: int):
    """Outputs of a trajectory of the quantized model, and its report."""
    tiny, clock = FAMILIES[family](), StepClock(layout=FAMILIES[family]().layout)
    calibration, calls = calibrated(family)
    recipe = Recipe.from_config(method(name), {"weight": weight, "activation": activation}, STEPS)
    with quantize(tiny.denoiser, tiny.roles, recipe, calibration, clock, anatomy=tiny.anatomy, calls=lambda: calls) as model:
        outputs, report, trace = tiny.sample(clock, 7), model.report(), model.trace()
    return outputs, report, trace, recipe


REFUSED = {
    ("teacache", "unet_motion"): "needs a model that names its blocks",
    ("dvd_quant_teacache", "unet_motion"): "needs a model that names its blocks",
    ("qvd_lookup", "hunyuan"): "differ between inputs of one step, so they are not a table",
    ("svdquant", "hunyuan"): "has 160 input channels, which groups of 64 do not divide",
}
"""Why a recipe cannot run on a family."""
COARSE = {"qvd_perturb_near_zero": 0.3}
"""Relative squared error at 8 bits that a disturbance of the timestep's features leaves; that of all others stays below 0.1."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_every_recipe_on_every_family(name, family):
    if (name, family) in REFUSED:
        with pytest.raises((Unsupported, ConfigError), match=REFUSED[name, family]):
            run(name, family, 8, 8)
        return
    reference = full_precision(family)
    outputs, report, trace, recipe = run(name, family, 8, 8)
    error = (outputs - reference).square().sum() / reference.square().sum()
    if recipe.is_fp:
        assert torch.equal(outputs, reference)
    elif recipe.weight is None:
        assert trace["computed"][0] and trace["computed"][-1]
    else:
        assert 0 < error < COARSE.get(name, 0.1), f"relative squared error at 8 bits is {error:.3g}"
        assert report["quantized_layers"] > 0 and 4 <= report["weight_bits"] <= 16
        if family == "stdit":
            coarse = run(name, family, 4, 4)[0]
            assert ((coarse - reference).square().sum() / reference.square().sum()) > error
    tiny = FAMILIES[family]()
    assert torch.equal(tiny.sample(StepClock(layout=tiny.layout), 7), reference)  # taken off without a trace
