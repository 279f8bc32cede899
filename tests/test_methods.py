"""What a sweep over methods costs, and what it takes to add one."""

from __future__ import annotations

import pytest

from vdqbench.cli import main
from vdqbench.generate import unload
from vdqbench.models.stdit import STDiT
from vdqbench.record import Record

SMALL = ["prompts.limit=2", "calibration.prompts.limit=3", "sampler.steps=4", "quiet=true"]

MINE = """\
# Mine: smoothing in two ranges, then a rotation, weights of least error, and ranges found online.
name: mine
sites:
  only: [self_attn.*, temporal_attn.*, cross_attn.*, ffn.*]
transform:
  smooth: {alpha: 0.3, ranges: 2}
  rotate: {}
weight: {grid: mse, per: channel}
activation: {grid: dynamic, per: token}
"""


@pytest.fixture
def denoiser_calls(monkeypatch) -> list[int]:
    """Rows of each call of the mini's denoiser."""
    calls: list[int] = []
    forward = STDiT.forward

    def counted(self, x, *args, **kwargs):
        calls.append(len(x))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(STDiT, "forward", counted)
    return calls


def test_one_pass_of_the_sampler_calibrates_every_range_alpha_and_bit_width(denoiser_calls, tmp_path):
    """12 cells: 3 trajectories of calibration, then one trajectory a cell, and one call of one row that counts operations."""
    sweep = ["method=asq,tsq,smoothquant", "bits=w8a8,w6a6,w4a8,w4a4", "metric=[]"]
    assert main([*SMALL, *sweep, "++method.ranges=2", f"out={tmp_path}"]) == 0  # asq and smoothquant have one range, whatever this says
    assert len(list(tmp_path.glob("runs/*/*/record.json"))) == 12
    assert [denoiser_calls.count(rows) for rows in (2, 4, 1)] == [3 * 4, 12 * 4, 1] and len(denoiser_calls) == 15 * 4 + 1


def test_parts_that_need_more_than_statistics_repeat_calls_of_the_same_pass(denoiser_calls, tmp_path):
    """GPTQ looks at the 12 kept calls once more for each of two cells that search, and a third run finds what they found."""
    for bits in ("w8a8", "w4a4"):
        assert main([*SMALL, "method=gptq", f"bits={bits}", "metric=[]", f"out={tmp_path}"]) == 0
    assert len(denoiser_calls) == 3 * 4 + 1 + 2 * (3 * 4 + 4)
    before = len(denoiser_calls)
    assert main([*SMALL, "method=gptq", "bits=w4a4", "metric=[]", "seed=5", f"out={tmp_path}"]) == 0
    assert len(denoiser_calls) == before + 4


def test_a_method_of_known_parts_is_one_yaml_in_a_folder_of_ones_own(tmp_path):
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text(MINE)
    out = tmp_path / "out"
    arguments = ["--config-dir", str(tmp_path / "conf"), *SMALL, "method=mine", "bits=w6a6", "metric=[fidelity]", f"out={out}"]
    assert main(arguments) == 0
    (record,) = (Record.load(path) for path in out.glob("runs/*/mine-w6a6-*/record.json"))
    assert record.state == "done" and record.scores["psnr"]["mean"] > 20 and record.quantization["copies"] == 2


def test_adding_a_budget_or_a_trace_shows_in_the_record(tmp_path):
    assert main([*SMALL, "method=dvd_quant", "bits=w4a6", "metric=[system]", f"out={tmp_path}"]) == 0
    (record,) = (Record.load(path) for path in tmp_path.glob("runs/*/dvd_quant-*/record.json"))
    traces = record.quantization["trace"]
    assert [len(trace["chosen"]) for trace in traces] == [4, 4] and all(trace["chosen"][:2] == [8, 8] for trace in traces)
    realised = sum(sum(trace["chosen"]) / 4 for trace in traces) / 2
    assert record.quantization["activation_bits"] == pytest.approx(realised) == record.scores["activation_bits"]["mean"]


def teardown_module() -> None:
    unload()
