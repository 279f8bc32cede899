"""The numbers of the plots, against what was put into the records."""

from __future__ import annotations

import math

import made_results
import pytest
from made_results import GBS, LAYERS, MODEL, STEPS

from vdqbench.report import series
from vdqbench.report.settings import identity, settings

CLIPSIM = series.Axis("clipsim", "CLIPSIM", True)
PSNR = series.Axis("psnr", "PSNR (dB)", True)


@pytest.fixture(scope="module")
def setting():
    return settings(made_results.records())[0]


def methods(setting, keys) -> list[str]:
    names = {identity(record): f"{record.cell['method']} {record.cell['bits']}" for record in setting.records}
    return [names[key] for key in keys]


def test_qualities_have_a_direction_and_are_no_costs(setting):
    assert series.qualities(setting.records) == [CLIPSIM, PSNR]


def test_score_against_size_with_its_front(setting):
    size, operations, seconds = series.tradeoffs(setting, CLIPSIM)
    assert (size.cost.name, operations.cost.name, seconds.cost.name) == ("weight_size", "tbops", "seconds_per_step")
    points = dict(zip(methods(setting, [point.cell for point in size.points]), [(p.x, round(p.y, 9)) for p in size.points], strict=True))
    assert points["tsq w8a8"] == (2.0, 0.79) and points["fp fp"] == (4.0, 0.8) and len(size.points) == 7
    assert methods(setting, size.front) == ["tsq w4a4", "tsq w8a8", "fp fp"] and size.machine is None
    assert size.points[0].se == pytest.approx(0.02 / math.sqrt(3))


def test_latency_is_that_of_integer_kernels_and_full_precision_only(setting):
    seconds = series.tradeoffs(setting, CLIPSIM)[2]
    assert sorted(zip(methods(setting, [p.cell for p in seconds.points]), [p.x for p in seconds.points], strict=True)) == [
        ("dynamic w8a8", 0.25),
        ("fp fp", 0.5),
    ]
    assert seconds.machine == "a processor"
    simulated = [record for record in made_results.records() if record.cell["kernel"] != "int"]
    assert [one.cost.name for one in series.tradeoffs(settings(simulated)[0], CLIPSIM)] == ["weight_size", "tbops"]


def test_measurements_of_different_machines_are_not_in_one_plot():
    made = made_results.records()
    made[0].environment["processor"] = "another"
    fast = made_results.record("rtn", "w8a8", 0.7, kernel="int", seconds=0.2)
    seconds = [one for one in series.tradeoffs(settings([*made, fast])[0], CLIPSIM) if one.cost.name == "seconds_per_step"]
    assert [one.machine for one in seconds] == ["a processor"] and len(seconds[0].points) == 2


def test_the_reference_is_not_compared_with_itself(setting):
    assert series.mean(setting.reference, "clipsim") == pytest.approx(0.8) and series.mean(setting.reference, "psnr") is None
    assert series.meaningless(setting.reference, "psnr") == "a comparison with the reference, which this is"
    assert all(point.cell != identity(setting.reference) for point in series.tradeoffs(setting, PSNR)[0].points)
    assert series.meaningless(setting.quantized[0], "psnr") is None


def test_scores_that_are_not_finite_are_not_drawn():
    made = made_results.records()
    made[1].scores["clipsim"]["mean"] = math.inf
    assert series.mean(made[1], "clipsim") is None and series.mean(made[1], "nothing") is None


def test_bit_widths_fall_from_left_to_right(setting):
    curves = series.bit_curves(setting, CLIPSIM)
    assert curves.ticks == ("w8a8", "w4a6", "w4a4") and curves.reference == pytest.approx(0.8)
    lines = {line.label: [(point.x, round(point.y, 9)) for point in line.points] for line in curves.lines}
    assert lines["tsq"] == [(0.0, 0.79), (2.0, 0.6)] and lines["dvd (delta=0.2)"] == [(1.0, 0.5)]
    alone = [record for record in made_results.records() if record.cell["bits"] in ("fp", "w4a4")]
    assert series.bit_curves(settings(alone)[0], CLIPSIM) is None


def test_range_counts_join_methods_that_differ_in_nothing_else(setting):
    curves = series.sweep_curves(setting, "ranges", CLIPSIM)
    assert [line.label for line in curves.lines] == ["asq/tsq w4a4"]
    assert [(point.x, round(point.y, 9)) for point in curves.lines[0].points] == [(1.0, 0.5), (4.0, 0.6)]


def test_thresholds_make_a_line_and_infinite_ones_have_no_place_on_it(setting):
    curves = series.sweep_curves(setting, "threshold", CLIPSIM)
    assert [(p.x, round(p.y, 9)) for p in curves.lines[0].points] == [(0.1, 0.6), (0.2, 0.5)]
    endless = made_results.record("dvd", "w4a6", 0.4, options={"schedule": {**GBS, "delta": "inf"}})
    more = series.sweep_curves(settings([*made_results.records(), endless])[0], "threshold", CLIPSIM)
    assert [p.x for p in more.lines[0].points] == [0.1, 0.2]
    alone = [record for record in made_results.records() if record.config["method"].get("schedule", {}).get("delta") != 0.2]
    assert series.sweep_curves(settings(alone)[0], "threshold", CLIPSIM) is None


def test_an_option_that_is_not_swept_parts_the_lines():
    def cell(ranges, alpha):
        options = {"activation": {"ranges": ranges}, "transform": {"smooth": {"alpha": alpha}}}
        return made_results.record("tsq", "w4a4", 0.5, options=options)

    made = [cell(1, 0.5), cell(4, 0.5), cell(1, 0.7), cell(4, 0.7), cell(2, 0.9)]
    assert [len(line.points) for line in series.sweep_curves(settings(made)[0], "ranges", CLIPSIM).lines] == [2, 2]


def test_layers_by_step(setting):
    heat = series.sqnr_map(setting.quantized[0])
    assert heat.rows == tuple(LAYERS) and heat.roles == tuple(LAYERS.values()) and heat.steps == STEPS
    assert heat.values[0] == (None,) * STEPS and heat.values[2] == tuple(20.0 + k for k in range(STEPS))
    assert series.sqnr_map(setting.reference) is None


def test_patterns_are_what_was_decided():
    dvd = next(record for record in made_results.records() if record.cell["method"] == "dvd")
    found = series.pattern(dvd)
    assert found.bits == ((8, 8, 4, 4, 8, 4),) * 3 and found.computed is None and found.samples[0] == "0000 · seed 0"
    assert series.pattern(made_results.record("tsq", "w8a8", 0.5)) is None


MIXED = {"ffn": {"activation": 6}}
SWITCHES = [("w4a6", {}, True), ("w8a8", {}, False), ("w4a4", {}, False), ("w4a4", {"ffn": 6}, True), ("w4a4", MIXED, True)]


@pytest.mark.parametrize(("bits", "sites", "shown"), SWITCHES)
def test_a_switch_that_no_layer_takes_part_in_is_not_shown(bits, sites, shown):
    options = {"schedule": {**GBS, "delta": 0.1}, "sites": {"bits": sites}}
    made = made_results.record("dvd", bits, 0.5, options=options, trace=[(8, 4, 4, 4, 4, 4)] * 3)
    assert (series.pattern(made) is not None) == shown


def test_steps_that_were_reused_are_shown_without_a_switch():
    made = made_results.record("tea", "w8a8", 0.5)
    made.quantization["trace"] = [{"chosen": None, "computed": [True, False, True]}]
    found = series.pattern(made)
    assert found.bits is None and found.computed == ((True, False, True),) and found.samples == ("video 1",)


def test_costs_are_scores_of_the_system():
    from vdqbench.metrics.system import MEASURED, System

    known = {info.name: info.label for info in System.available}
    assert known.items() >= series.COSTS.items() and set(series.MEASURED) == set(MEASURED)


def test_models_are_kept_apart():
    assert {setting.model for setting in settings(made_results.records())} == {MODEL, made_results.OTHER}
