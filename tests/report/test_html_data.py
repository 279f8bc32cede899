"""The mapping of the page: a function of what was read, and nothing else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import made_results
import pytest
from made_results import MODEL, OTHER, REASON, REFERENCE

from vdqbench.report.html.data import digits, page_data
from vdqbench.report.html.gather import Clip, Found, Run, Videos
from vdqbench.report.series import HeatMap
from vdqbench.report.settings import identity

SAMPLE = ("0000", 0)


def found_of(records, **more) -> Found:
    return Found(tuple(Run(record, Path("nowhere"), ("method=tsq", "metric=[a,b]")) for record in records), **more)


@pytest.fixture(scope="module")
def data():
    made = made_results.records()
    clip = Clip("data:video/mp4;base64,AAAA", 8, 8.0, 32, 32)
    other = replace(clip, source="data:video/mp4;base64,BBBB")
    clips = {(identity(made[0]), SAMPLE): clip, (identity(made[1]), SAMPLE): other, (identity(made[2]), SAMPLE): clip}
    references = {(REFERENCE[MODEL], SAMPLE): clip}
    heat = HeatMap(("a",), ("self_attn.q",), ((1.23456, None, 2.0),))
    more = {"activations": {made_results.STATISTICS: heat}, "troubles": ("torn",), "tables": (made_results.table(made),)}
    found = found_of(made, clips=clips, references=references, **more)
    return page_data(found, "Title", "2026-01-01T00:00+00:00", "0.1.0", Videos(1))


def cell(data, method, bits):
    return next(one for one in data["cells"] if (one["method"], one["bits"], one["model"]) == (method, bits, MODEL))


def test_the_same_input_gives_the_same_page():
    pages = [page_data(found_of(made_results.records()), "T", "now", "0", Videos()) for _ in range(2)]
    assert pages[0] == pages[1]


def test_every_record_is_a_cell_and_every_state_is_counted(data):
    assert data["counts"] == {"done": 8, "failed": 1, "skipped": 1} and len(data["cells"]) == 10
    failed, skipped = cell(data, "gptq", "w4a4"), cell(data, "qvd", "w4a8")
    assert failed["reason"] == REASON and failed["traceback"] == f"Traceback\n{REASON}" and failed["scores"] == {}
    assert skipped["state"] == "skipped" and skipped["reason"] == "log2 features need a temporal layer"


def test_a_mini_says_mini(data):
    assert [text.split(" is ")[0] for text in data["minis"]] == [OTHER, MODEL] and all(one["mini"] for one in data["cells"])
    assert "not those of a model in a paper" in data["minis"][0]
    real = made_results.record("asq", "w8a8", 0.5)
    real.cell["model"] = "opensora_v1"
    assert page_data(found_of([real]), "T", "now", "0", Videos())["minis"] == []


def test_scores_have_means_errors_and_paired_differences(data):
    tsq = cell(data, "tsq", "w8a8")["scores"]
    assert tsq["clipsim"]["mean"] == pytest.approx(0.79) and tsq["clipsim"]["se"] == pytest.approx(0.02 / math.sqrt(3))
    apart = tsq["clipsim"]["apart"]
    assert apart["mean"] == pytest.approx(-0.01) and apart["se"] == pytest.approx(0, abs=1e-12) and apart["n"] == 3
    assert "apart" not in tsq["psnr"] and tsq["psnr"]["mean"] == pytest.approx(79 * 0.95)
    assert tsq["weight_size"]["se"] is None


def test_what_says_nothing_is_a_hole_with_a_reason(data):
    assert cell(data, "tsq", "w8a8")["scores"]["seconds_per_step"] == {
        "mean": None,
        "why": "only measured with integer kernels; kernel=sim computes in floating point",
    }
    assert cell(data, "dynamic", "w8a8")["scores"]["seconds_per_step"]["mean"] == 0.25
    fp = cell(data, "fp", "fp")
    assert fp["scores"]["psnr"]["mean"] is None and "psnr" not in fp["videos"][0]["values"]
    assert "psnr" in cell(data, "tsq", "w8a8")["videos"][0]["values"]


def test_times_and_memory_of_a_simulation_are_not_shown_as_the_models(data):
    simulated, integer = dict(cell(data, "tsq", "w8a8")["run"]), dict(cell(data, "dynamic", "w8a8")["run"])
    assert simulated["Latency and memory of the model"].startswith("–, because kernel=sim") and "Peak memory" not in simulated
    assert integer["Peak memory"] == "1000.0 MB" and integer["This run: generate"] == "12.0 s"


def test_provenance_and_config_are_complete(data):
    tsq = cell(data, "tsq", "w8a8")
    known = dict(tsq["provenance"])
    assert known["Key"] == tsq["key"] and known["Packages"] == "torch 2.0" and known["Key of metric clip"] == "aa"
    assert known["Environment: processor"] == "a processor" and known["vdqbench"] == "0.1.0"
    assert "ranges: 4" in tsq["config"] and tsq["command"] == "vdqbench method=tsq 'metric=[a,b]'"
    assert dict(tsq["account"])["Stored in all"] == "2.000 MB" and dict(tsq["account"])["Layers quantized"] == "3 of 4"
    assert tsq["protocols"][0] == ["CLIPSIM, PSNR (dB), Weight size (MB), TBOPs, Activation bits, Time per step (s)", "{version: 1}"]


def test_equal_clips_are_held_once(data):
    assert [clip["source"][-4:] for clip in data["clips"]] == ["AAAA", "BBBB"]
    assert [cell(data, *which)["videos"][0]["clip"] for which in (("fp", "fp"), ("tsq", "w8a8"), ("tsq", "w4a4"))] == [0, 1, 0]
    assert cell(data, "tsq", "w8a8")["videos"][1]["clip"] is None and data["videos"] == {"most": 1, "linked": False}
    assert data["settings"][0]["samples"][0] == {"id": "0000", "seed": 0, "prompt": "a red circle", "clip": 0}


def test_plots_point_to_cells(data):
    known = {one["id"] for one in data["cells"]}
    plots = data["settings"][0]
    assert {one["cost"]["name"] for one in plots["tradeoffs"]} == {"weight_size", "tbops", "seconds_per_step"}
    assert {one["kind"] for one in plots["curves"]} == {"bits", "ranges", "threshold"}
    assert {point["cell"] for one in plots["tradeoffs"] for point in one["points"]} <= known and set(plots["cells"]) <= known
    assert data["activations"][0]["values"] == [[1.235, None, 2.0]] and data["activations"][0]["label"].endswith("calibrated on toy_calib")


def test_scores_that_were_taken_differently_are_warned_about():
    made = made_results.records()
    made[1].scores["clipsim"]["protocol"] = {"version": 2}
    warnings = page_data(found_of(made), "T", "now", "0", Videos())["warnings"]
    assert warnings == [
        "mini_toy, 3 prompts of toys, ddim6: CLIPSIM was taken by different protocols and does not compare: {version: 1} | {version: 2}"
    ]


def test_a_record_that_could_not_be_read_stands_there(data):
    from vdqbench.record import Record

    lost = Record("0" * 16, {"model": "m", "method": "lost"}, "failed", "its record cannot be read")
    page = page_data(found_of([lost]), "T", "now", "0", Videos())
    assert page["cells"][0]["label"] == "lost" and page["settings"] == [] and page["cells"][0]["scores"] == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.8133], 4), ([50.3], 2), ([100.0], 1), ([1000.0], 0), ([12345.0], 0), ([0.0007], 6), ([0.0], 2), ([], 2), ([math.inf, 0.5], 4)],
)
def test_decimals_show_four_digits(values, expected):
    assert digits(values) == expected
