"""vdqbench tune: what is chosen, from what, how it is kept, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vdqbench import generate
from vdqbench.cli import main
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.probe import Probe, applied, put_on, spread, taken_off
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.store import Store
from vdqbench.tune import Request, tune

SMALL = ("model=mini_stdit", "sampler.steps=2", "calibration.prompts.limit=1", "prompts.limit=1", "quiet=true")
ALPHA = "method.transform.smooth.alpha"


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tuned")


@pytest.fixture(scope="module")
def alpha(out):
    return tune(Request((*SMALL, f"out={out}", "method=asq", "bits=w4a8"), (), ALPHA, "0.05,0.5,0.95", moments=2))


def test_the_least_output_error_is_chosen_and_is_what_it_says(alpha, out):
    assert [row.value for row in alpha.rows] == ["0.05", "0.5", "0.95"] and all(row.reason is None for row in alpha.rows)
    assert alpha.best.result == min(row.result for row in alpha.rows) and len({row.result for row in alpha.rows}) == 3
    cell = Cell.from_config(Composer().plain(alpha.rows[0].job))
    store, quiet = Store(out / "store"), Progress(quiet=True)
    calls, adapter = generate.calls(cell, store), generate.load_adapter(cell)
    assert (calls.prompts, calls.steps) == (1, 2)

    def outputs():
        return [call.repeat(adapter.denoiser, adapter.clock, 2) for call in calls.calls]

    exact = outputs()
    with generate.quantized(cell, store, quiet):
        given = outputs()
    error = sum((a - b).square().sum() for a, b in zip(given, exact, strict=True)) / sum(b.square().sum() for b in exact)
    assert alpha.rows[0].result == pytest.approx(float(error), rel=1e-5)


def test_one_calibration_serves_all_values_and_no_video_is_made(alpha, out):
    kinds = [kind for kind, _, _ in Store(out / "store").entries()]
    assert kinds.count("calibration") == kinds.count("calls") == 1 and "video" not in kinds


def test_the_choice_is_a_method_that_a_cell_can_name(alpha, out, capsys):
    assert alpha.path == out / "tuned" / "method" / "asq_tuned.yaml"
    words = alpha.command.split()
    assert words[:3] == ["vdqbench", "--config-dir", str(out / "tuned")] and words[-1] == "method=asq_tuned" and "method=asq" not in words
    chosen = Cell.from_config(Composer([str(out / "tuned")]).plain(words[3:]))
    meant = Cell.from_config(Composer().plain(alpha.best.job))
    assert chosen.method == "asq_tuned" and chosen.key == meant.key, "only the name is new"
    first, *others = alpha.path.read_text().splitlines()
    assert first == f"# asq with transform.smooth.alpha={alpha.best.value}, chosen by output_error at w4a8 on mini_stdit"
    told = "\n".join(line for line in others if line.startswith("#"))
    assert "lower is better" in told and "0.05: " in told and "calibration prompts shapes_calib" in told and "revision" in told
    assert main(["list", "methods", "--config-dir", str(out / "tuned")]) == 0
    assert "asq_tuned" in capsys.readouterr().out


def test_a_score_is_taken_of_videos_of_the_calibration_prompts(out):
    request = Request(
        (*SMALL, f"out={out}", "method=minmax_dynamic", "bits=w4a8"), (), "method.weight.per", "channel,tensor", "psnr", name="mine"
    )
    tuned = tune(request)
    found = {record.config["method"]["weight"]["per"]: record for record in map(Record.load, out.glob("runs/*/minmax*/record.json"))}
    assert {row.value: row.result for row in tuned.rows} == {per: record.scores["psnr"]["mean"] for per, record in found.items()}
    assert tuned.best.value == max(found, key=lambda per: found[per].scores["psnr"]["mean"]), "higher is better"
    calibration = Cell.from_config(Composer().plain(tuned.rows[0].job)).calibration_prompts.items
    for record in found.values():
        assert record.cell["prompts"] == "shapes_calib" and record.cell["seed"] == 1000
        assert [video["prompt"] for video in record.videos] == [text for _, text in calibration]
        assert set(record.config["metric"]) == {"fidelity"}, "no metric is computed that is not asked for"
    assert tuned.path.name == "mine.yaml" and "higher is better" in tuned.path.read_text()


def test_what_one_value_follows_from_another_stays_so(out):
    request = Request((*SMALL, f"out={out}", "method=tsq", "method.ranges=2", "bits=w8a8"), (), "method.ranges", "1,2", moments=1)
    tuned = tune(request)
    assert "ranges: ${method.ranges}" in tuned.path.read_text()
    assert tuned.best.value in ("1", "2") and len({row.result for row in tuned.rows}) == 2


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["values=1,2"], "over= is missing"),
        (["over=method.weight.per"], "values= is missing"),
        (["over=bits.weight", "values=4,6"], "over=bits.weight must be a parameter of the method"),
        (["over=method.transform.smooth.alhpa", "values=1"], "alhpa"),
        (["over=method.weight.per", "values=channel,row"], "method.weight.per=row"),
        (["over=method.weight.per", "values=channel", "by=clipsin"], "by=clipsin is neither an error nor a score (did you mean clipsim"),
        (["over=method.weight.per", "values=channel", "bits=w4a8,w8a8"], "is about one cell, and these overrides name 2"),
        (["over=method.weight.per", "values=channel", "name=asq"], "name=asq is a method already"),
        (["over=method.weight.per", "values=channel", "moments=some"], "moments must be a whole number"),
        (["over=method.weight.per", "values=channel", "moments=0"], "moments=0 must be at least 1"),
        (["over=method.weight.per", "values=channel", "bits=w16a16"], "nothing to tune"),
        (["over=method.weight.per", "values=channel", "table=quickstart"], "table=quickstart belongs to tables"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(words, sentence, tmp_path, capsys):
    assert main(["tune", *SMALL, f"out={tmp_path}", "method=dynamic" if "alhpa" not in words[0] else "method=asq", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1
    assert not (tmp_path / "tuned").exists()


def test_a_schedule_that_decides_on_the_way_cannot_be_judged_at_single_moments(out):
    with pytest.raises(ConfigError, match="decides along the trajectory"):
        tune(Request((*SMALL, f"out={out}", "method=dvd_pbq_only", "bits=w4a4"), (), "method.schedule.delta", "0.1,0.2", moments=1))
    assert not (out / "tuned" / "method" / "dvd_pbq_only_tuned.yaml").exists()


def test_help_loads_no_torch():
    code = "import sys; from vdqbench.cli import main; code = main(sys.argv[1:]); sys.exit(code or 'torch' in sys.modules)"
    for verb in ("tune", "sensitivity"):
        done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(f"vdqbench {verb}:"), done.stderr


def test_moments_are_spread_over_steps_and_prompts():
    assert spread(3, 0, 20, 4) == [(0, 2), (1, 7), (2, 12), (0, 17)]
    assert spread(1, 5, 10, 2) == [(0, 6), (0, 8)]
    assert spread(2, 0, 2, 9) == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_layers_can_be_put_on_by_themselves(alpha, out):
    cell = Cell.from_config(Composer().plain(alpha.best.job))
    store, quiet = Store(out / "store"), Progress(quiet=True)
    probe = Probe(cell, store, quiet, 2, 1, ["output_error", "temporal_error", "guidance_error"])
    with applied(cell, store, quiet) as model:
        names = list(model.runs)
        whole = probe.errors()
        with taken_off(model):
            assert set(probe.errors().values()) == {0.0}
            with put_on(model, names[:1]):
                first = probe.errors()
            with put_on(model, names):
                assert probe.errors() == whole
        assert probe.errors() == whole
    assert probe.errors()["output_error"] == 0.0, "the model is restored"
    assert all(0 < first[kind] < whole[kind] for kind in whole)
    call = probe.calls[0][0]
    output = call.repeat(probe.adapter.denoiser, probe.adapter.clock, 2)
    assert torch.equal(output, probe.exact[0][0]) and len(output) == 2 and output.shape[2] > 1
