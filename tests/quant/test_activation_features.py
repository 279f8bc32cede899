"""Grids of the timestep's features on a model: HiDi-TQ, the table, the disturbances, and static ranges for each step."""

from __future__ import annotations

import re

import pytest
import torch
from tiny_stdit import STEPS, inputs, recipe, sample, stdit

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.models.roles import stdit_roles
from vdqbench.quant.parts import build, find
from vdqbench.quant.quantize import quantize
from vdqbench.quant.temporal import LogGrid
from vdqbench.replay import CallRecorder

TIME = ["time_proj", "time_emb.*"]


@pytest.fixture(scope="module")
def calibrated():
    model, clock = stdit(), StepClock()
    recorder = CallRecorder(clock)
    runs = [lambda p=p: sample(model, clock, p) for p in range(2)]
    return calibrate(model, stdit_roles(model), runs, clock, calls=recorder), recorder.recorded()


def features(step):
    """(before, after) the activation function, from the model's own modules."""
    model = stdit()
    before = model.t_embedder(inputs(0, step)["timestep"][:1])
    return before, torch.nn.functional.silu(before)


class Run:
    """A trajectory of the quantized model, and what `t_block.1` was called with and computed."""

    def __init__(self, calibrated, temporal, weight=16, activation=8, only=("time_proj", "time_emb.out"), **changes):
        statistics, calls = calibrated
        self.model, clock = stdit(), StepClock()
        made = recipe("dynamic", weight, activation, activation__temporal=temporal, sites__only=list(only), **changes)
        self.inputs, self.sources = [], []
        block = self.model.t_block[1]
        with quantize(self.model, stdit_roles(self.model), made, statistics, clock, calls=lambda: calls) as self.quantized:
            plan = block.run.plan
            self.activation = plan.activation
            self.output = self.model.t_embedder.mlp[2].run.plan.output if "time_emb.out" in only else None
            hooks = [
                block.register_forward_hook(lambda module, args, output: self.inputs.append((args[0], output))),
                self.model.t_embedder.mlp[2].register_forward_hook(lambda module, args, output: self.sources.append(output)),
            ]
            self.outputs = sample(self.model, clock, 0)
        for hook in hooks:
            hook.remove()

    def read(self, step):
        """What `t_block.1` multiplied with its weight, from what it gave: its weight has more rows than columns."""
        weight, bias = self.model.t_block[1].weight, self.model.t_block[1].bias
        return torch.linalg.lstsq(weight.double(), (self.inputs[step][1] - bias).double().T).solution.T


def test_hidi_tq_quantizes_what_the_projection_reads(calibrated):
    run = Run(calibrated, {"grid": "hidi_tq"}, only=("time_proj",))
    rows = torch.cat([features(step)[1] for step in range(STEPS)])
    found = run.activation.found(8, 0)
    torch.testing.assert_close(run.activation.features[0].rows, rows)
    grid = LogGrid(found.scale, found.beta, 2**7)
    for step in range(STEPS):
        torch.testing.assert_close(run.read(step).float(), grid(rows[step : step + 1]).expand(2, -1), rtol=1e-3, atol=1e-4)
        ratio = (run.read(step)[0] - found.beta) / (rows[step].double() - found.beta)
        assert ratio.min() > 2**-0.5 - 1e-3 and ratio.max() < 2**0.5 + 1e-3


def test_bits_are_all_the_bits(calibrated):
    magnitudes = torch.exp2(torch.linspace(-40, 10, 1000))

    def values(bits, **options):
        grid = Run(calibrated, {"grid": "hidi_tq", "sign_mode": "log2", **options}, activation=bits).activation.grid(bits, 0)
        return grid(torch.cat([magnitudes, -magnitudes])).unique(), grid

    four, five, extra = values(4)[0], values(5)[0], values(4, sign_is_extra=True)[0]
    assert len(four) == 2**4 and len(five) == 2**5 and len(extra) == 2**5, "the sign is one of the bits, or one more"
    assert values(4, sign_is_extra=True)[1].levels == values(5)[1].levels


def test_log2_is_an_offset_of_zero(calibrated):
    log2 = Run(calibrated, {"grid": "hidi_tq", "sign_mode": "log2"})
    assert log2.activation.found(8, 0).beta == 0
    shifted, paper = (Run(calibrated, {"grid": "hidi_tq", "sign_mode": mode}) for mode in ("shifted", "paper"))
    best = [sum(run.activation.found(8, 0)[2:]) for run in (shifted, paper, log2)]
    assert best[0] <= best[2] + 1e-6 and best[1] <= best[2] + 1e-6
    assert log2.activation.grid(8, 0).paper_sign is False and paper.activation.grid(8, 0).paper_sign


def test_at_the_site_before_the_activation_function(calibrated):
    run = Run(calibrated, {"grid": "hidi_tq", "site": "pre"})
    before = torch.cat([features(step)[0] for step in range(STEPS)])
    torch.testing.assert_close(run.output.features[0].rows, before)
    assert run.activation is None, "not quantized again"
    grid = run.output.grid(8, 0)
    assert all((source[0] == grid(source[0])).float().mean() > 0.9 for source in run.sources)
    torch.testing.assert_close(run.inputs[1][0], torch.nn.functional.silu(run.sources[1]))


def test_a_scale_for_each_step(calibrated):
    run = Run(calibrated, {"grid": "hidi_tq", "ranges": STEPS})
    assert run.activation.ranges == STEPS and len({run.activation.found(8, i).scale for i in range(STEPS)}) == STEPS
    assert build(find("activations", "hidi_tq", ""), {"ranges": STEPS}).values((4, 4), STEPS) == 2 * STEPS
    before = Run(calibrated, {"grid": "hidi_tq", "ranges": STEPS, "site": "pre"})
    assert before.activation is None and before.output.ranges == STEPS  # each step's output is on the grid of its own step
    for step in range(STEPS):
        found = before.output.found(8, step)
        magnitude = (before.sources[step][0] - found.beta).abs() / found.scale
        octaves = magnitude[magnitude > 2.0**-126].log2()
        torch.testing.assert_close(octaves, octaves.round(), atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match="must divide the 4 steps"):
        recipe("dynamic", activation__temporal={"grid": "hidi_tq", "ranges": 3})


def test_what_was_searched_is_remembered(calibrated):
    statistics, calls = calibrated
    known = {}

    def remember(key, make):
        return known.setdefault(repr(key), None) or known.update({repr(key): make()}) or known[repr(key)]

    for _ in range(2):
        model, clock = stdit(), StepClock()
        made = recipe("dynamic", 8, 8, activation__temporal={"grid": "hidi_tq"}, sites__only=TIME)
        with quantize(model, stdit_roles(model), made, statistics, clock, calls=lambda: calls, remember=remember):
            sample(model, clock, 0)
    assert len(known) == 1


def test_the_table_gives_the_unquantized_rows_whatever_comes(calibrated):
    run = Run(calibrated, {"grid": "lookup"}, weight=4, activation=4)
    for step in range(STEPS):
        row = features(step)[1]
        assert (run.inputs[step][0] - row).abs().max() > 1e-2, "layers before are quantized"
        coded = run.activation.encoder(4, step, "both", None)(torch.full((2, 16), 9.0))
        torch.testing.assert_close(coded.values, row.expand(2, -1))
        coded.values.zero_()
        torch.testing.assert_close(run.activation.rows[step : step + 1], row)
    only = Run(calibrated, {"grid": "lookup"}, only=("time_proj",), activation=4)
    for ours, plain in zip(only.outputs, sample(stdit(), StepClock(), 0), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


def test_the_table_needs_all_steps_and_features_of_the_step_alone(calibrated):
    with pytest.raises(Unsupported, match=r"a table needs all 4 steps, and method\.calibration draws 2: use draw=all"):
        Run(calibrated, {"grid": "lookup"}, calibration={"draw": "stride", "moments": 2})
    with pytest.raises(Unsupported, match=r"grid=lookup replaces what layers read: use .*site=post"):
        Run(calibrated, {"grid": "lookup", "site": "pre"})

    class Mixed(torch.nn.Module):
        """Adds the text to the features of the timestep."""

        def __init__(self):
            super().__init__()
            self.time, self.project = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

        def forward(self, x, text):
            return self.project(self.time(x) + text)

    model, clock = Mixed(), StepClock()
    recorder, names = CallRecorder(clock), {"time": "time_emb.out", "project": "time_proj"}

    def trajectory(prompt):
        clock.reset(2)
        for step in range(2):
            model(torch.full((2, 4), float(step)), torch.randn(1, 4, generator=torch.Generator().manual_seed(prompt)))
            clock.advance()

    statistics = calibrate(model, names, [lambda p=p: trajectory(p) for p in range(3)], clock, calls=recorder)

    def made(grid):
        recipe_ = recipe("dynamic", 8, 8, steps=2, activation__temporal={"grid": grid})
        return quantize(model, names, recipe_, statistics, clock, calls=recorder.recorded)

    with pytest.raises(Unsupported, match="differ between inputs of one step, so they are not a table"):
        made("lookup")
    with made("hidi_tq"):
        found = model.project.run.plan.activation.features[0]
    assert found.step == (0, 0, 0, 1, 1, 1) and found.variant == (0, 1, 2, 0, 1, 2), "one for each prompt, not for each row"


def test_disturbances(calibrated):
    rows = torch.cat([features(step)[1] for step in range(STEPS)])
    low, high = rows.min(), rows.max()
    near = Run(calibrated, {"grid": "perturb", "kind": "near_zero"}, only=("time_proj",)).activation
    out = near.encoder(8, 0, "both", None)(rows).values
    inside = (rows >= 0.5 * low) & (rows <= 0.5 * high)
    assert 0 < inside.sum() < rows.numel() and out[inside].abs().max() == 0 and torch.equal(out[~inside], rows[~inside])
    first, again, other = (
        Run(calibrated, {"grid": "perturb", "kind": "outliers", "seed": seed}, only=("time_proj",)).activation for seed in (0, 0, 1)
    )
    x = torch.cat([rows, torch.full((2, 16), float(high))])
    out = first.encoder(8, 0, "both", None)(x).values
    outliers = x >= 0.9 * high
    assert outliers[-1].all() and torch.equal(out[~outliers], x[~outliers])
    factors = out[-1] / high
    assert factors.abs().max() <= 1.5 and factors.std() > 0.5 and torch.equal(out[-2], out[-1]), "of the channel, at every step"
    assert torch.equal(again.factors, first.factors) and not torch.equal(other.factors, first.factors)
    assert "seed" not in build(find("activations", "perturb", ""), {"kind": "near_zero"}).semantic()
    with pytest.raises(ConfigError, match=r"method\.activation\.kind=outlier is not .*did you mean outliers"):
        build(find("activations", "perturb", ""), {"kind": "outlier"})


def test_static_ranges_for_each_step(calibrated):
    rows = torch.cat([features(step)[1] for step in range(STEPS)])
    run = Run(calibrated, {"grid": "static", "ranges": STEPS}, only=("time_proj",))
    torch.testing.assert_close(run.activation.lo[:, 0], rows.amin(1))
    torch.testing.assert_close(run.activation.hi[:, 0], rows.amax(1))
    for step in range(STEPS):
        delta = (rows[step].max() - rows[step].min().clamp(max=0)) / 255
        assert (run.read(step)[0] - rows[step].double()).abs().max() <= delta * 0.51 + 1e-4


def test_floating_point_features_and_quantized_ones_differ_in_them_alone(calibrated):
    fp = Run(calibrated, "fp", weight=16, activation=4, only=("time_proj",))
    assert fp.activation is None and all(torch.equal(a, b) for a, b in zip(fp.outputs, sample(stdit(), StepClock(), 0), strict=True))
    errors = {}
    for name, temporal in {
        "hidi_tq": {"grid": "hidi_tq"},
        "static": {"grid": "static"},
        "lookup": {"grid": "lookup"},
        "perturb": {"grid": "perturb", "kind": "near_zero"},
    }.items():
        run = Run(calibrated, temporal, activation=4, only=("time_proj",))
        errors[name] = float(torch.stack([(a - b).norm() for a, b in zip(run.outputs, fp.outputs, strict=True)]).mean())
    assert errors["lookup"] < 1e-3 < min(errors["hidi_tq"], errors["static"], errors["perturb"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"sign_mode": "shift"}, "method.activation.sign_mode=shift is not one of its values (did you mean shifted?)"),
        ({"neighbours": 0}, "method.activation.neighbours=0 must be a whole number of at least 1"),
        ({"eps": 0.0}, "method.activation.eps=0.0 must be a number above 0"),
        ({"l2_reduction": "max"}, "method.activation.l2_reduction=max is not one of its values"),
    ],
)
def test_errors_are_one_sentence(options, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        build(find("activations", "hidi_tq", ""), options)
