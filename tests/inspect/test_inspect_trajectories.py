"""Changes of outputs and features of the timestep from repeated calls, on three families and by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny_layers import ROLES, block, observe, tokens
from tiny_models import FAMILIES, STEPS
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.inspect import changes
from vdqbench.inspect.trajectories import POST, PRE, Trajectories, follow, watched
from vdqbench.quant.schedules.delta_gbs import DeltaGbs
from vdqbench.replay import Call, Calls

PLACES = {
    "stdit": [("t_block.1", POST), ("t_embedder.mlp.2", PRE)],
    "unet_motion": [("down_blocks.0.resnets.0.time_emb_proj", POST), ("time_embedding.linear_2", PRE)],
    "hunyuan": [("transformer_blocks.0.norm1.linear", POST), ("time_text_embed.timestep_embedder.linear_2", PRE)],
}
FIGURE = {0, 1, 2, 3, 5, 7, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 38, 40, 42, *range(44, 50)}
"""Steps of many bits of DVD-Quant's example run."""


@pytest.fixture(scope="module", params=FAMILIES)
def followed(request):
    """A family, what was found, and how many steps were reported."""
    tiny = FAMILIES[request.param]()
    calibration, calls = tiny.calibrated()
    places, counted = watched(tiny.roles, calibration), []
    found = follow(tiny.denoiser, StepClock(layout=tiny.layout), calls, places, counted.append)
    return request.param, tiny, found, places, counted


def test_the_timestep_is_read_where_the_recipes_say(followed):
    family, _, found, places, counted = followed
    assert places == PLACES[family], "resnets and blocks that read the same features count once"
    assert list(found.features) == places and len(counted) == 2 * STEPS


def test_changes_are_those_of_the_conditional_outputs(followed):
    _, tiny, found, _, _ = followed
    assert found.changes.shape == (2, STEPS - 1)
    for prompt in range(2):
        outputs = tiny.sample(StepClock(layout=tiny.layout), prompt).double()
        if tiny.layout == "batched":
            outputs = outputs[:, : outputs.shape[1] // 2]
        elif tiny.layout == "batched_reversed":
            outputs = outputs[:, outputs.shape[1] // 2 :]
        wanted = [float((b - a).abs().sum() / a.abs().sum()) for a, b in pairwise(outputs)]
        assert found.changes[prompt].tolist() == pytest.approx(wanted, rel=1e-4)


def test_features_are_those_of_each_step_once(followed):
    family, _, found, places, _ = followed
    post, pre = (found.features[place] for place in places)
    assert pre.step == tuple(range(STEPS)) and set(pre.variant) == {0}, "the timestep alone: no prompt, no branch"
    if family == "hunyuan":
        assert post.step == tuple(step for step in range(STEPS) for _ in range(2)), "the pooled text of two prompts is mixed in"
    else:
        assert post.step == pre.step
        torch.testing.assert_close(post.rows, F.silu(pre.rows), rtol=1e-3, atol=1e-5)


def test_what_is_found_survives_a_file(followed, tmp_path):
    from safetensors.torch import load_file, save_file

    _, _, found, places, _ = followed
    save_file(found.tensors(), tmp_path / "t.safetensors")
    again = Trajectories.of(load_file(tmp_path / "t.safetensors"), places)
    assert torch.equal(again.changes, found.changes) and list(again.features) == places
    for place in places:
        assert torch.equal(again.features[place].rows, found.features[place].rows)
        assert (again.features[place].step, again.features[place].variant) == (found.features[place].step, found.features[place].variant)


@pytest.mark.parametrize("family", ["stdit", "hunyuan"])
@pytest.mark.parametrize("delta", [0.0, 0.6, 1.5, 4.0, math.inf])
def test_few_bits_are_given_where_the_schedule_gives_them(family, delta):
    tiny = FAMILIES[family]()
    _, calls = tiny.calibrated(prompts=1)
    clock = StepClock(layout=tiny.layout)
    found = follow(tiny.denoiser, clock, calls, [])
    schedule = DeltaGbs(delta=delta).start(tiny.denoiser, clock)
    try:
        tiny.sample(clock, 0)
        chosen = schedule.chosen()
    finally:
        schedule.close()
    assert [bits == 4 for bits in chosen] == changes.few_bits(found.changes[0].tolist(), delta)


def test_the_papers_example_of_bits():
    given = [0.3, 0.2, 0.08, *[0.06] * 5, *[0.035] * 27, *[0.055] * 7, *[0.12] * 7]
    assert {step for step, low in enumerate(changes.few_bits(given)) if not low} == FIGURE
    frame = changes.by_step(torch.tensor([given, [1.0] * 49]))
    assert frame.groupby("prompt")["low"].mean().tolist() == [0.5, 0.0]
    assert frame["change"].isna().sum() == 2 and frame.loc[3, "change"] == pytest.approx(0.08)
    assert frame["step"].tolist() == [*range(50), *range(50)]


def test_the_unconditional_call_of_two_does_not_count():
    class Scale(nn.Linear):
        def forward(self, x, by):
            return (x * by,)

    x = torch.ones(1, 3)
    calls = [Call(0, step, branch, (x, by), {}) for step in range(3) for branch, by in (("cond", 2.0**step), ("uncond", -9.0 * step))]
    found = follow(Scale(1, 1), StepClock(layout="two_pass"), Calls(calls, 3, 1), [])
    assert found.changes.tolist() == [[1.0, 1.0]] and not found.features


def test_a_model_without_a_timestep_has_no_features():
    seen = observe(block(), ROLES, tokens(32))
    assert watched(ROLES, seen.calibration) == []
    found = follow(seen.model, seen.clock, seen.calls, [])
    assert found.features == {} and list(found.tensors()) == ["changes"]
