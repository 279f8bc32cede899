"""ARQ against its formula, sample by sample, and the traps of its scales."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_stdit import inputs, method_config, roles, sample, stdit

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.activations.arq import Arq, Divided
from vdqbench.quant.activations.dynamic import DynamicRange
from vdqbench.quant.format import PerToken
from vdqbench.quant.parts import Site, build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.recipe import Recipe
from vdqbench.quant.view import LayerView


def view(role="ffn.up", shape=(8, 24)):
    weight = torch.zeros(shape)
    return LayerView(Site("layer", role, shape, 4, 4), weight, (weight,), {})


def seen(x, bits=4, branch="both", multiplier=None, role="ffn.up", **options):
    """What the layer sees of an input."""
    coded = Arq(**options).fit([view(role, (8, x.shape[-1]))]).encoder(bits, 0, branch, multiplier)(x)
    return coded.values * coded.delta


def data(seed=0, batch=1, tokens=20, channels=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tokens, channels, generator=generator) * torch.logspace(-1, 1, channels)


def reference(x, bits, block, inner, symmetric):
    """Of one sample [tokens, C], in float64, in loops over channels and tokens."""
    x, s = x.double(), torch.ones(x.shape[1], dtype=torch.float64)
    if 0 < block < x.shape[1]:
        for start in range(0, x.shape[1], block):
            s[start : start + block] = x[:, start : start + block].abs().max() or 1.0
    divided, out = x / s, torch.empty_like(x)
    for t in range(len(x)):
        row = divided[t] if inner == "token" else divided
        top = 2 ** (bits - 1) - 1
        if symmetric:
            delta = max(float(row.abs().max()) / top, 1e-12)
            out[t] = (divided[t] / delta).round().clamp(-top - 1, top) * delta
        else:
            lo, hi = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
            delta = max((hi - lo) / (2**bits - 1), 1e-12)
            zero = round(-lo / delta)
            out[t] = ((divided[t] / delta).round() + zero).clamp(0, 2**bits - 1).sub(zero) * delta
    return out * s


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.integers(3, 8), st.sampled_from([0, 1, 5, 8, 24]), st.sampled_from(["token", "tensor"]), st.booleans())
def test_the_formula(seed, bits, block, inner, symmetric):
    x = data(seed)
    out = seen(x, bits, scale_block=block, inner=inner, symmetric=symmetric)
    expected = reference(x[0], bits, block, inner, symmetric)
    ours, theirs = (out[0] - x[0]).abs().double(), (expected - x[0]).abs()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(x.abs().max()), msg="but for which side a tie is rounded to")
    off = (out[0].double() - expected).abs() > 1e-4 * x.abs().max()
    assert off.float().mean() <= (0.06 if inner == "tensor" else 0.02)


def test_one_block_is_plain_per_token():
    x = data(tokens=7)
    plain = DynamicRange(PerToken(), True).encoder(4, 0, "both", None)(x)
    for block in (0, None, 24, 25, 128):
        assert torch.equal(seen(x, scale_block=block), plain.values * plain.delta)
    assert not torch.equal(seen(x, scale_block=12), plain.values * plain.delta)


def test_a_column_of_one_magnitude_is_nearly_exact_and_many_bits_are_the_identity():
    x = torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(1))
    x[..., 3] = 100.0
    out = seen(x, scale_block=1)
    assert (out[..., 3] - 100).abs().max() < 100 / 7 / 2 + 1e-3 and (out[..., :3] - x[..., :3]).abs().max() < 1
    assert (seen(x, scale_block=0)[..., :3]).abs().max() == 0, "without the division the others vanish beside it"
    tensor = seen(x, scale_block=1, inner="tensor")
    torch.testing.assert_close(tensor[..., 3], x[..., 3], msg="with one inner scale of 1 it is exact")
    torch.testing.assert_close(seen(x, bits=15), x, rtol=2e-4, atol=2e-4)


def test_the_table_of_the_two_inner_scales():
    """Token-constant channels gain from the division; massive tokens break it unless each has a scale of its own."""
    generator = torch.Generator().manual_seed(0)
    plain = torch.randn(1, 512, 256, generator=generator)
    offset, massive = plain.clone(), plain.clone()
    offset[..., :16] += 12
    massive[:, 5] = massive[:, 5].sign() * 60  # one extreme channel of a token, after a rotation

    def error(x, **options):
        return float((seen(x, **options) - x).norm(dim=-1).median() / x.norm(dim=-1).median())

    assert error(offset) < 0.75 * error(offset, scale_block=0)
    assert error(massive, inner="tensor") > 3 * error(massive, inner="token")
    assert error(massive) == pytest.approx(error(massive, scale_block=0), rel=0.1)
    assert error(plain) == pytest.approx(error(plain, scale_block=0), rel=0.1)


def test_zeros_are_guarded():
    x = data()
    x[..., 2] = 0
    x[:, 4] = 0
    out = seen(x)
    assert out.isfinite().all() and out[..., 2].abs().max() == 0 and out[:, 4].abs().max() == 0
    rest = [c for c in range(24) if c != 2]
    assert torch.equal(out[..., rest], seen(x[..., rest])), "a dead channel changes no other"
    assert torch.equal(seen(torch.zeros(1, 3, 24)), torch.zeros(1, 3, 24))


def test_scales_are_of_one_sample():
    x = data(batch=2)
    x[1] *= 30
    halves = torch.cat([seen(x[:1]), seen(x[1:])])
    assert torch.equal(seen(x), halves), "the guidance branches of a call"
    one = seen(x, branch="cond")
    assert torch.equal(one, seen(x.reshape(1, 40, 24)).view_as(x)) and not torch.equal(one, halves), "rows of one sample"
    folded = x.reshape(2 * 5, 4, 24)  # frames or positions in the batch dimension
    assert torch.equal(seen(folded).view_as(x), halves)
    assert Arq().batch_dependent


def test_a_single_token_would_be_exact_and_is_not():
    """Divided by itself every entry is 1: an error of 0 that no integer format has."""
    x = data(tokens=1)
    s = x.abs().amax(1, keepdim=True)
    assert torch.equal((x / s).round() * s, x)
    plain = DynamicRange(PerToken(), True).encoder(4, 0, "both", None)
    cases = [(x, "ffn.up"), (x[0], "ffn.up"), (data(batch=3)[:, 0], "modulation"), (data(), "time_proj"), (data(), "time_emb.up")]
    for given_, role in cases:
        coded = plain(given_)
        assert torch.equal(seen(given_, role=role), coded.values * coded.delta)
        assert (seen(given_, role=role, inner="tensor") - given_).abs().max() > 0.1


def test_half_precision_and_multipliers():
    x, factor = data(), torch.logspace(-2, 2, 24)
    torch.testing.assert_close(seen(x, multiplier=factor), seen(x * factor))
    half = (x * 1000).half()
    assert torch.equal(seen(half), seen(half.float())) and seen(half).isfinite().all()
    kept = x.clone()
    encoder = Divided(1, True, True, "int").encoder(4, 0, "both", None)
    encoder(x).values.mul_(0)
    assert torch.equal(x, kept)


def test_refusals():
    with pytest.raises(Unsupported, match=r"layer layer is a convolution, whose input has no tokens: list it in method\.sites\.keep_fp"):
        Arq().fit([view(shape=(8, 4, 3, 3))])
    for options in ({"inner": "channel"}, {"scale_block": -1}):
        with pytest.raises(ConfigError, match=r"method\.activation\.(inner|scale_block)="):
            build(find("activations", "arq", ""), options)


def test_frames_of_a_call_with_one_embedded_branch_are_one_sample():
    """An even number of frames in dimension 0 is not two guidance branches."""
    x = data(batch=4)
    x[2:] *= 30
    model = torch.nn.Sequential(torch.nn.Linear(24, 24, bias=False))
    model[0].weight.data = torch.eye(24)
    made = Recipe.from_config({"name": "m", "activation": {"grid": "arq"}}, {"weight": 16, "activation": 4}, 1)
    for layout, expected in (("embedded", seen(x, branch="cond")), ("batched", seen(x))):
        with quantize(model, {"0": "ffn.up"}, made, None, StepClock(1, layout=layout)):
            torch.testing.assert_close(model(x), expected)
    assert not torch.allclose(seen(x), seen(x, branch="cond"))


def test_on_a_model_a_video_does_not_depend_on_its_other_branch():
    """Both branches in one call against each by itself; text tokens, which come unpadded in one row, stay in floating point."""
    config = method_config("dynamic", 1, sites__only=["self_attn.*", "temporal_attn.*", "ffn.*"])
    made = Recipe.from_config({**config, "activation": {"grid": "arq"}}, {"weight": 8, "activation": 4}, 1)
    assert made.batch_dependent and not made.needs_calibration
    model, clock = stdit(), StepClock(1)
    given_ = inputs(0, 0)
    given_["x"][1] *= 5
    plain = model(**given_)
    with quantize(model, roles(model), made, None, clock):
        both = model(**given_)
        clock.layout = "two_pass"
        apart = []
        for i, branch in enumerate(("cond", "uncond")):
            with clock.at(0, 1, branch):
                apart.append(model(**{name: value[i : i + 1] for name, value in given_.items()}))
    torch.testing.assert_close(both, torch.cat(apart), rtol=1e-3, atol=1e-3)
    assert 0.01 < (both - plain).norm() / plain.norm() < 1
    assert torch.equal(model(**given_), plain) and len(sample(model, StepClock(), 0)) == 4
