"""TeaCache: which steps are computed, and that a skipped one gives the input plus what the blocks last added."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_stdit import STEPS, inputs, recipe, roles, sample, stdit
from torch import nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.models.base import Anatomy
from vdqbench.models.roles import stdit_anatomy
from vdqbench.quant.parts import build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.reuses.teacache import COEFFICIENTS, Teacache, polynomial

LONG = 8


def hunyuan():
    from diffusers import HunyuanVideoTransformer3DModel

    torch.manual_seed(0)
    model = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 6, 6),
    )
    model = model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    blocks = [f"transformer_blocks.{i}" for i in range(2)] + [f"single_transformer_blocks.{i}" for i in range(2)]
    return model, Anatomy(tuple(blocks), lambda block, args, kwargs: block.norm1(args[0], emb=args[2])[0])


def hunyuan_inputs(step):
    generator = torch.Generator().manual_seed(step // 3)
    return dict(
        hidden_states=torch.randn(1, 4, 2, 4, 4, generator=generator) + 0.01 * step,
        timestep=torch.tensor([1000 - 10 * step]),
        encoder_hidden_states=torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(9)),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.int64),
        pooled_projections=torch.randn(1, 8, generator=torch.Generator().manual_seed(8)),
        guidance=torch.tensor([6000.0]),
    )


def tiny():
    model = stdit()
    return model, stdit_anatomy(model)


def tiny_inputs(step):
    return {**inputs(step // 3, 0), "timestep": torch.full((2,), 999 - 10 * step)}


MODELS = {"stdit": (tiny, tiny_inputs, "batched"), "hunyuan": (hunyuan, hunyuan_inputs, "embedded")}


@pytest.fixture(params=list(MODELS))
def setup(request):
    make, given, layout = MODELS[request.param]
    model, anatomy = make()
    clock = StepClock(layout=layout)

    def go(steps=LONG):
        clock.reset(steps)
        outputs = []
        with torch.no_grad():
            for step in range(steps):
                out = model(**given(step))
                outputs.append(out if isinstance(out, torch.Tensor) else out.sample)
                clock.advance()
        return outputs

    return model, anatomy, clock, go


def watched(model, name):
    """What a module is called with and gives, call by call."""
    seen = []
    model.get_submodule(name).register_forward_hook(
        lambda module, args, output: seen.append((args[0], output if isinstance(output, torch.Tensor) else output[0]))
    )
    return seen


def test_threshold_zero_changes_no_bit(setup):
    model, anatomy, clock, go = setup
    plain = go()
    cache = Teacache(threshold=0.0).start(model, clock, anatomy)
    assert all(torch.equal(a, b) for a, b in zip(go(), plain, strict=True)) and cache.computed() == [True] * LONG
    cache.close()


def test_a_large_threshold_computes_the_first_and_the_last_step(setup):
    model, anatomy, clock, go = setup
    plain = go()
    calls = []
    inner = next(module for name, module in model.get_submodule(anatomy.blocks[-1]).named_modules() if isinstance(module, nn.Linear))
    inner.register_forward_hook(lambda *_: calls.append(clock.step))
    cache = Teacache(threshold=1e9).start(model, clock, anatomy)
    for _ in range(2):
        outputs = go()
        assert cache.computed() == [True, *[False] * (LONG - 2), True]
        assert torch.equal(outputs[0], plain[0]) and torch.equal(outputs[-1], plain[-1])
        assert not any(torch.equal(a, b) for a, b in zip(outputs[1:-1], plain[1:-1], strict=True))
    assert calls == [0, LONG - 1] * 2
    cache.close()
    assert all(torch.equal(a, b) for a, b in zip(go(), plain, strict=True)), "the model is as it was"
    assert not any("forward" in vars(model.get_submodule(name)) for name in anatomy.blocks)
    cache.close()


def test_a_skipped_step_adds_the_residual_of_the_last_computed_one(setup):
    model, anatomy, clock, go = setup
    first, last = watched(model, anatomy.blocks[0]), watched(model, anatomy.blocks[-1])
    cache = Teacache(threshold=1e9).start(model, clock, anatomy)
    go(4)
    residual = last[0][1] - first[0][0]
    for step in (1, 2):
        torch.testing.assert_close(last[step][1], first[step][0] + residual, rtol=0, atol=0)
    assert residual.abs().max() > 0.1 and cache.computed() == [True, False, False, True]


def test_decisions_follow_the_recursion(setup):
    """Against accumulation written out in numpy from the modulated inputs of a run without reuse."""
    model, anatomy, clock, go = setup
    seen = []
    block = model.get_submodule(anatomy.blocks[0])
    handle = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(anatomy.modulated(module, args, kwargs).double().numpy()), with_kwargs=True
    )
    go()
    handle.remove()
    ratios = [np.abs(b - a).sum() / np.abs(a).sum() for a, b in pairwise(seen)]
    threshold = sorted(ratios)[len(ratios) // 2] * 1.2
    total, expected = 0.0, [True]
    for step in range(1, LONG):
        total += ratios[step - 1]
        expected.append(total >= threshold or step == LONG - 1)
        total = 0.0 if expected[-1] else total
    cache = Teacache(threshold=threshold).start(model, clock, anatomy)
    go()
    assert cache.computed() == expected and 2 < sum(expected) < LONG


def test_each_guidance_branch_decides_for_itself():
    model, anatomy = tiny()
    clock = StepClock(6, layout="two_pass")
    cache = Teacache(threshold=0.15).start(model, clock, anatomy)
    calls = []
    model.blocks[1].attn.q.register_forward_hook(lambda *_: calls.append((clock.step, clock.branch)))
    with torch.no_grad():
        for step in range(6):
            for branch, seed in (("cond", 0), ("uncond", step)):
                with clock.at(step, 6, branch):
                    model(**{**inputs(seed, 0, rows=1), "timestep": torch.tensor([500])})
            clock.step += 1
    assert [step for step, branch in calls if branch == "cond"] == [0, 5], "whose input does not change"
    assert [step for step, branch in calls if branch == "uncond"] == [0, 1, 2, 3, 4, 5]
    assert cache.computed() == [True] * 6


def test_steps_that_do_not_follow_each_other_are_computed():
    model, anatomy = tiny()
    clock = StepClock(9)
    cache = Teacache(threshold=1e9).start(model, clock, anatomy)
    with torch.no_grad():
        for step in (0, 1, 4, 5, 8):
            with clock.at(step, 9, "both"):
                model(**inputs(0, step))
    assert cache.computed() == [True, False, True, False, True]


def test_polynomials():
    assert polynomial((2.0, -1.0, 3.0), 2.0) == 9.0 and COEFFICIENTS["identity"] == (1.0, 0.0)
    r = np.linspace(0, 0.3, 7)
    for coefficients in COEFFICIENTS.values():
        np.testing.assert_allclose([polynomial(coefficients, float(x)) for x in r], np.polyval(coefficients, r), rtol=1e-9)
    assert Teacache(coefficients="hunyuan").semantic()["coefficients"][0] == 733.226126
    assert Teacache().batch_dependent


class Swapped(nn.Module):
    """Gives its two streams in the order opposite to that in which it takes them, by keyword."""

    def __init__(self, same):
        super().__init__()
        self.same = same

    def forward(self, video, text=None):
        return (text * 2, video * 3) if not self.same else (text, text)


class TwoStreams(nn.Module):
    def __init__(self, same=False):
        super().__init__()
        self.blocks = nn.ModuleList(Swapped(same) for _ in range(2))

    def forward(self, video, text):
        for block in self.blocks:
            text, video = block(video, text=text)
        return video, text


def test_streams_are_told_apart_by_their_shape():
    model, clock = TwoStreams(), StepClock()
    anatomy = Anatomy(("blocks.0", "blocks.1"), lambda block, args, kwargs: args[0])
    cache = Teacache(threshold=1e9).start(model, clock, anatomy)
    clock.reset(3)
    model(torch.ones(1, 4, 2), torch.ones(1, 3, 2))
    clock.advance()
    video, text = model(torch.zeros(1, 4, 2), torch.ones(1, 3, 2))
    assert torch.equal(video, torch.full((1, 4, 2), 8.0)) and torch.equal(text, torch.full((1, 3, 2), 4.0))
    cache.close()
    same = TwoStreams(same=True)
    Teacache().start(same, clock, anatomy)
    with pytest.raises(Unsupported, match="cannot be told apart"):
        same(torch.ones(1, 4, 2), torch.ones(1, 3, 2))


def test_refusals():
    model, _ = tiny()
    with pytest.raises(Unsupported, match=r"teacache needs a model that names its blocks .* remove it from method.reuse"):
        Teacache().start(model, StepClock(), Anatomy())
    for options in ({"threshold": -0.1}, {"coefficients": "wan"}):
        with pytest.raises(ConfigError, match=r"method\.reuse\.teacache\.(threshold|coefficients)="):
            build(find("reuses", "teacache", ""), options)


@pytest.mark.parametrize("schedule", [{"policy": "fixed"}, {"policy": "delta_gbs"}, {"policy": "pattern", "order": "abs"}])
def test_reuse_composes_with_schedules(schedule):
    model, clock = stdit(), StepClock()
    anatomy = stdit_anatomy(model)
    made = recipe("dynamic", 4, 6, schedule=schedule, reuse={"teacache": {"threshold": 1e9}})
    with quantize(model, roles(model), made, None, clock, anatomy=anatomy) as quantized:
        sample(model, clock, 0)
        trace = quantized.trace()
    assert trace["computed"] == [True, False, False, True]
    expected = {"fixed": 6, "delta_gbs": None, "pattern": (4 + 8) / 2}[schedule["policy"]]
    if expected is None:
        assert len(trace["chosen"]) == STEPS, "decided at skipped steps, too"
        expected = (trace["chosen"][0] + trace["chosen"][3]) / 2
    assert trace["activation_bits"] == pytest.approx(expected)


def test_reuse_of_the_unquantized_model():
    model, clock = stdit(), StepClock()
    made = recipe("fp", reuse={"teacache": {"threshold": 1e9}})
    with quantize(model, roles(model), made, None, clock, anatomy=stdit_anatomy(model)) as quantized:
        sample(model, clock, 0)
        assert quantized.trace()["computed"] == [True, False, False, True] and quantized.trace()["activation_bits"] == 16
