"""Searched scales (SCRI, OS+, SVDQuant's smoothing): what is tried is what is deployed, and the search finds what its space holds."""

from __future__ import annotations

import pytest
import torch
from tiny_layers import ROLES, STEPS, Block, block, observe, recipe_of, tokens
from torch import nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.transforms.osplus import OSPlus, Shifted
from vdqbench.quant.transforms.scri import Scri
from vdqbench.quant.transforms.smooth import Diagonal, Identity, input_bounds
from vdqbench.quant.transforms.smooth_search import SmoothSearch
from vdqbench.quant.trial import ModuleError, compare, trial


@pytest.fixture(scope="module")
def observed():
    return observe(block(), ROLES, tokens(32))


def fitted(observed, recipe, **options):
    """The views of each layer, and the evidence."""
    with observed.quantized(recipe, **options) as quantized:
        plans = {name: run.plan for name, run in quantized.runs.items()}
    return {name: plan.views for name, plan in plans.items()}, next(iter(plans.values())).views[0].evidence


def raw_view(observed, name, bits=(8, 8)):
    """A layer before any transform, quantized by min-max grids."""
    return fitted(observed, recipe_of({"scri": {"mode": "literal", "roles": []}}, bits))[1].views[name]


@torch.no_grad()
@pytest.mark.parametrize(
    ("grid", "ranges"),
    [({"grid": "static"}, 1), ({"grid": "static", "ranges": 2}, 1), ({"grid": "static", "ranges": 2}, 2), ({"grid": "dynamic"}, 2)],
)
def test_a_trial_computes_what_is_deployed(observed, grid, ranges):
    smooth = {"smooth": {"ranges": ranges}}
    recipe = recipe_of(smooth, (4, 6), activation=grid, draw={"draw": "all"})
    none = {"scri": {"mode": "literal", "roles": []}}
    views, _ = fitted(observed, recipe_of({**smooth, **none}, (4, 6), activation=grid, draw={"draw": "all"}))
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    with observed.quantized(recipe):
        for step in range(STEPS):
            with observed.clock.at(step, STEPS, "both"):
                for name in ("attn.q", "mlp.up"):
                    view = views[name][step * ranges // STEPS]
                    assert torch.equal(trial(view)(x), observed.model.get_submodule(name)(x)), (name, step)


def test_the_literal_threshold_cancels():
    """One factor for all channels does nothing to grids that follow their data.

    On symmetric ones, that is: literal scaling gives an input equal ends, whose zero point lies on a tie of an asymmetric grid.
    """
    torch.manual_seed(0)
    model, sample = Scaled(320, 1.0, 0.5).double().requires_grad_(False), tokens(320, 64)
    observed = observe(model, PAIR, lambda p, k: (sample(p, k)[0].double(),), prompts=1)
    recipe = recipe_of({"scri": {"mode": "literal", "roles": []}}, activation={"grid": "static", "symmetric": True})
    view = fitted(observed, recipe)[1].views["pair.q"]
    part = Scri(mode="literal", points=10)
    found = part.search(view, torch.maximum(*(bound.abs() for bound in input_bounds(view))))
    assert len(found["error"]) == 12 and found["error"].max() / found["error"].min() - 1 < 1e-5
    sizes = torch.tensor([4.0, 2.0, 1.0])
    ratios = [part.scaled(sizes, t).s / part.scaled(sizes, t).s[0] for t in (1.0, 3.0, 100.0)]
    assert all(torch.allclose(ratio, ratios[0]) for ratio in ratios)


def test_scales_of_the_three_modes():
    sizes = torch.tensor([0.0, 1e-6, 0.5, 1.0, 2.0, 8.0])
    scale = {mode: Scri(mode=mode, max_ratio=100).scaled(sizes, 2.0).s.tolist() for mode in ("literal", "shrink", "amplify")}
    assert scale["literal"] == pytest.approx([1, 0.04, 0.25, 0.5, 1, 4])
    assert scale["shrink"] == pytest.approx([1, 1, 1, 1, 1, 4])
    assert scale["amplify"] == pytest.approx([1, 0.01, 0.25, 0.5, 1, 1])
    assert torch.equal(Scri(mode="shrink").scaled(sizes, 8.0).s, torch.ones(6)), "no scaling at one end"
    assert torch.equal(Scri(mode="amplify", max_ratio=1e9).scaled(sizes, 1e-6).s, torch.ones(6)), "and at the other"


@pytest.mark.parametrize("mode", ["shrink", "amplify"])
def test_the_search_takes_the_best_threshold_and_never_loses_to_none(observed, mode):
    view = raw_view(observed, "attn.k", (6, 6))
    lo, hi = view.statistic("min").flatten(0, -2).amin(0), view.statistic("max").flatten(0, -2).amax(0)
    size = torch.maximum(-lo, hi)
    part = Scri(mode=mode, points=6)
    found = part.search(view, size)
    assert found["t"][0] == pytest.approx(float(size.min())) and found["t"][-1] == pytest.approx(float(size.max()))
    steps = found["t"][1:] / found["t"][:-1]
    assert torch.allclose(steps, steps[0].expand_as(steps)), "geometric"
    none = ModuleError(view)(Identity())
    identity = found["error"][-1 if mode == "shrink" else 0]
    assert float(identity) == pytest.approx(none, rel=1e-6)
    assert found["error"].min() < 0.7 * none and found["error"][found["best"]] == found["error"].min()
    deployed = fitted(observed, recipe_of({"scri": {"mode": mode, "points": 6}}, (6, 6)))[0]
    torch.testing.assert_close(deployed["attn.k"][0].transforms[0].s, part.scaled(size, float(found["t"][found["best"]])).s)


def test_layers_that_read_one_input_share_and_others_stay(observed):
    for options in ({"scri": {"points": 3}}, {"osplus": {"points": 5}}):
        views, _ = fitted(observed, recipe_of(options))
        q, k, v = (views[f"attn.{name}"][0].transforms[0] for name in "qkv")
        assert torch.equal(q.s, k.s) and torch.equal(q.s, v.s) and not torch.equal(q.s, torch.ones(32))
        assert type(views["attn.out"][0].transforms[0]) is type(views["mlp.down"][0].transforms[0]) is Identity
        assert not isinstance(views["mlp.up"][0].transforms[0], Identity)
    views, _ = fitted(observed, recipe_of({"scri": {"points": 3, "roles": ["self_attn.v"]}}))
    assert isinstance(views["attn.q"][0].transforms[0], Diagonal), "one s for all that read the input"
    assert isinstance(views["mlp.up"][0].transforms[0], Identity)


def test_a_search_is_made_once_for_a_module(observed):
    known, made = {}, []

    def remember(key, make):
        name = repr(key)
        if name not in known:
            made.append(key)
            known[name] = make()
        return known[name]

    for _ in range(2):
        fitted(observed, recipe_of({"scri": {"points": 2}}), remember=remember)
    assert [key["layers"] for key in made] == [["attn.k", "attn.q", "attn.v"], ["mlp.up"]]
    assert [key["module"] for key in made] == ["attn", "mlp"]
    fitted(observed, recipe_of({"scri": {"points": 2}}, (4, 8)), remember=remember)
    fitted(observed, recipe_of({"scri": {"points": 3}}), remember=remember)
    fitted(observed, recipe_of({"scri": {"points": 2}}, draw={"draw": "single", "at": 0}), remember=remember)
    assert len(made) == 8, "bits, options and draw are in the key"


def test_scope_decides_whether_the_rest_of_the_module_is_quantized(observed):
    view = raw_view(observed, "mlp.up", (4, 4))
    alone, together = ModuleError(view, "layer")(Identity()), ModuleError(view, "module")(Identity())
    assert together > 1.2 * alone > 0


def test_the_search_looks_at_the_moments_it_is_told(observed):
    recipe = recipe_of({"scri": {"mode": "literal", "roles": []}}, draw={"draw": "all"})
    view = fitted(observed, recipe)[1].views["mlp.up"]
    assert [call.step for call in ModuleError(view, moments=1).calls] == [2]
    assert [call.step for call in ModuleError(view, moments=4).calls] == [0, 1, 2, 3]
    assert [call.step for call in ModuleError(view.part_of_steps(1, 2), moments=1).calls] == [3]
    assert len(ModuleError(view, moments=100).calls) == 2 * STEPS


def test_compare_takes_the_first_of_the_best():
    errors = iter([float("nan"), 2.0, 1.0, 1.0])
    found = compare([Identity()] * 4, lambda transform: next(errors))
    assert found["best"] == 2 and found["error"].tolist() == [float("inf"), 2.0, 1.0, 1.0]


PAIR = {"pair.q": "self_attn.q", "pair.k": "self_attn.k"}


class Pair(nn.Module):
    """Two linears that read one input."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k = nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        return torch.cat([self.q(x), self.k(x)], -1)


class Scaled(nn.Module):
    def __init__(self, width, spread, offset):
        super().__init__()
        self.pair = Pair(width)
        self.register_buffer("scale", torch.exp(spread * torch.randn(width)))
        self.register_buffer("offset", offset * torch.randn(width))

    def forward(self, x):
        return self.pair((x + self.offset) * self.scale)


@pytest.fixture(scope="module")
def lognormal():
    torch.manual_seed(0)
    return observe(Scaled(320, 1.0, 0.5).requires_grad_(False), PAIR, tokens(320, 64), prompts=1)


def test_orders_of_the_family_on_lognormal_channels(lognormal):
    """On synthetic channels the clamped modes beat the literal one, which beats none; a shift helps channels with offsets."""
    transforms = {
        "none": {"scri": {"mode": "literal", "roles": []}},
        "literal": {"scri": {"mode": "literal"}},
        "shrink": {"scri": {"mode": "shrink", "points": 20}},
        "amplify": {"scri": {"mode": "amplify", "points": 20}},
        "search": {"smooth_search": {}},
        "unshifted": {"osplus": {"shift": False, "points": 60}},
        "osplus": {"osplus": {"points": 60}},
    }
    error = {name: lognormal.error(recipe_of(transform, draw={"draw": "all"})) for name, transform in transforms.items()}
    assert error["shrink"] < error["literal"] < error["none"] and error["amplify"] < error["literal"], error
    assert error["shrink"] < 0.25 * error["none"] and error["search"] < error["literal"], error
    assert error["unshifted"] == pytest.approx(error["shrink"], rel=0.1), error
    assert error["osplus"] < error["unshifted"], error


def test_a_shift_is_exact_and_creates_the_bias(lognormal):
    views, _ = fitted(lognormal, recipe_of({"osplus": {"points": 3}}))
    (view,) = views["pair.q"]
    shifted = view.transforms[0]
    assert isinstance(shifted, Shifted)
    torch.testing.assert_close(view.constant(), view.master @ shifted.z)
    lo, hi = input_bounds(view)
    torch.testing.assert_close(-lo, hi, rtol=1e-5, atol=1e-5)
    assert (shifted.s >= 1).all() and hi.max() / hi.min() < 0.9 * (shifted.s * hi).max() / (shifted.s * hi).min()


def test_dead_channels_stay_and_harm_nobody():
    torch.manual_seed(0)
    model = Scaled(16, 1.0, 0.5).requires_grad_(False)
    model.scale[3] = 0
    observed = observe(model, PAIR, tokens(16))
    for transform in ({"scri": {"points": 8}}, {"scri": {"points": 8, "mode": "shrink"}}, {"osplus": {"points": 8}}):
        view = fitted(observed, recipe_of(transform))[0]["pair.q"][0]
        assert view.transforms[0].s[3] == 1
        assert observed.error(recipe_of(transform)) <= observed.error(recipe_of({"scri": {"mode": "literal", "roles": []}}))
    model.scale.zero_()
    nothing = observe(model, observed.roles, tokens(16))
    for transform in ({"scri": {}}, {"osplus": {}}, {"smooth_search": {"points": 2}}):
        assert all(output.isfinite().all() for output in nothing.outputs(recipe_of(transform)))


def test_smooth_search_has_39_candidates_and_keeps_the_first_of_the_best(observed):
    part = SmoothSearch()
    assert len(part.candidates) == 39 and part.candidates[0] == (0.0, 0.0)
    assert (0.5, 0.0) in part.candidates and (0.25, 0.75) in part.candidates and all(a + b <= 1 for a, b in part.candidates)
    views, evidence = fitted(observed, recipe_of({"smooth_search": {"points": 5}}, (6, 6)))
    s = [views[f"attn.{name}"][0].transforms[0].s for name in "qkv"]
    assert torch.equal(s[0], s[1]) and torch.equal(s[1], s[2]) and not torch.allclose(s[0], torch.ones(32))
    raw = evidence.views["mlp.up"]
    error = ModuleError(raw, "layer", 1, "mlp.up")
    assert error(views["mlp.up"][0].transforms[0]) < 0.7 * error(Identity())


def test_a_shift_of_padded_inputs_is_refused():
    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    observed = observe(Convolutions().requires_grad_(False), {"a": "proj_in", "b": "proj_in"}, lambda p, k: (torch.randn(2, 4, 5, 5) + 1,))
    dynamic = {"grid": "dynamic", "per": "tensor"}
    with pytest.raises(Unsupported, match=r"layer a pads its input with zeros.*method.transform.osplus.shift=false"):
        observed.quantized(recipe_of({"osplus": {}}, activation=dynamic))
    assert observed.error(recipe_of({"osplus": {"shift": False, "points": 4}}, activation=dynamic)) < 1e-3


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r"method.transform.scri.mode=literall is not one of its values"):
        Scri(mode="literall")
    with pytest.raises(ConfigError, match=r"method.transform.scri.max_ratio=0.5 must be at least 1"):
        Scri(max_ratio=0.5)
    with pytest.raises(ConfigError, match=r"method.transform.osplus.points=1 must be at least 2"):
        OSPlus(points=1)
    with pytest.raises(ConfigError, match=r"method.transform.smooth_search.moments=0 must be at least 1"):
        SmoothSearch(moments=0)
    assert OSPlus().values((8, 4)) == 16 and OSPlus(shift=False).values((8, 4)) == 4 and Scri(ranges=3).values((8, 4)) == 12


def test_the_toy_is_as_uneven_as_it_should_be():
    gains = Block().norms[0].weight.detach()
    assert gains.max() / gains.min() > 50
