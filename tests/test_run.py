"""From overrides to records on the real mini: what is made, what is not made twice, what survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vdqbench import video
from vdqbench.cli import main
from vdqbench.record import Record
from vdqbench.track.background import empty

SMALL = ["prompts.limit=2", "calibration.prompts.limit=1", "sampler.steps=4", "quiet=true", "metric=[fidelity,system]"]


def records(out: Path) -> dict[str, Record]:
    """Records below a results folder, by method-bits."""
    found = [Record.load(path) for path in sorted(out.glob("runs/*/*/record.json"))]
    return {f"{r.cell['method']}-{r.cell['bits']}": r for r in found}


def artefacts(out: Path, kind: str) -> dict[str, bytes]:
    files = [path for path in (out / "store" / kind).rglob("*") if path.suffix in (".mkv", ".json", ".safetensors")]
    return {path.name: path.read_bytes() for path in files if not path.name.startswith(".")}  # what a kill left half written is hidden


def made(out: Path, kind: str) -> int:
    """How many artefacts of a kind all cells together say they made."""
    return sum(line.count(f"made {kind} ") for log in out.rglob("run.log") for line in log.read_text().splitlines())


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """A sweep of three methods by two bit pairs, in one process."""
    out = tmp_path_factory.mktemp("swept")
    assert main([*SMALL, f"out={out}", "method=fp,cw_tw,asq", "bits=w8a8,w4a6"]) == 0
    return out


def test_a_sweep_leaves_records_videos_and_scores(swept):
    found = records(swept)
    assert set(found) == {"fp-fp", "cw_tw-w8a8", "cw_tw-w4a6", "asq-w8a8", "asq-w4a6"}
    for record in found.values():
        assert record.state == "done" and record.reason is None and record.traceback is None
        assert record.cell["n"] == 2 and len(record.videos) == 2
        folder = next(swept.glob(f"runs/mini_stdit/*-{record.key}"))
        assert folder.name == f"{record.cell['method']}-{record.cell['bits']}-{record.key}".replace("fp-fp-", "fp-")
        for entry in record.videos:
            frames = video.read(folder / entry["mp4"])
            assert len(frames) == 16 and min(frames.shape[1:3]) >= 256
        assert (folder / ".hydra" / "overrides.yaml").exists()
        assert record.config["sampler"]["steps"] == 4 and record.environment["packages"]["torch"]
        assert len(record.scores["psnr"]["values"]) == record.scores["psnr"]["n"] == 2
        assert record.scores["psnr"]["mean"] == pytest.approx(np.mean(record.scores["psnr"]["values"]))
        assert record.scores["psnr"]["protocol"]
    psnr = {name: record.scores["psnr"]["mean"] for name, record in found.items()}
    assert psnr["fp-fp"] > psnr["asq-w8a8"] > psnr["asq-w4a6"] and psnr["cw_tw-w8a8"] > psnr["cw_tw-w4a6"]


def test_a_sweep_makes_each_thing_once(swept):
    assert made(swept, "calibration") == 1 == len(artefacts(swept, "calibration"))
    assert made(swept, "video") == 10 == len(artefacts(swept, "video"))


def test_running_again_does_nothing(swept, capsys):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*") if path.is_file()}
    assert main([*SMALL[:3], SMALL[4], f"out={swept}", "method=fp,cw_tw,asq", "bits=w8a8,w4a6"]) == 0
    assert "nothing to do: 5 done before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in swept.rglob("*") if path.is_file()} == before


def test_a_metric_added_later_generates_nothing(swept):
    videos = artefacts(swept, "video")
    assert main([*SMALL[:4], f"out={swept}", "method=asq", "bits=w8a8", "metric=[clip]"]) == 0
    record = records(swept)["asq-w8a8"]
    assert {"psnr", "ssim", "clipsim", "clip_temp"} <= set(record.scores) and artefacts(swept, "video") == videos
    assert made(swept, "video") == 10


def test_cells_that_differ_in_their_metrics_only_are_all_scored(swept):
    assert main([*SMALL[:4], f"out={swept}", "method=cw_tw", "bits=w8a8", "metric=[attributes],[clip]"]) == 0
    assert {"psnr", "attributes", "clipsim"} <= set(records(swept)["cw_tw-w8a8"].scores)
    assert made(swept, "video") == 10


def test_a_corrupt_video_is_made_again_the_same(swept):
    out_files = sorted((swept / "store" / "video").rglob("*.mkv"))
    original = out_files[0].read_bytes()
    out_files[0].write_bytes(original[:-20] + b"x" * 20)
    for path in swept.glob("runs/*/*/record.json"):
        path.unlink()
    assert main([*SMALL, f"out={swept}", "method=fp,cw_tw,asq", "bits=w8a8,w4a6"]) == 0
    assert out_files[0].read_bytes() == original


def test_tsq_with_one_range_is_asq(tmp_path):
    assert main([*SMALL, f"out={tmp_path}", "method=asq"]) == 0
    assert main([*SMALL, f"out={tmp_path}", "method=tsq", "method.ranges=1"]) == 0
    found = records(tmp_path)
    assert {name: r.state for name, r in found.items()} == {"asq-w8a8": "done", "tsq-w8a8": "done"}
    assert found["asq-w8a8"].scores["psnr"]["values"] == found["tsq-w8a8"].scores["psnr"]["values"]
    assert len(artefacts(tmp_path, "video")) == 4, "the same recipe has the same videos: two of it and two of the reference"


def test_batches_and_prompts_do_not_change_a_video(tmp_path):
    one = ["prompts=list", 'prompts.texts=["a red circle growing on a dark background","a blue cross moving left on a light background"]']
    for size in (1, 2):
        assert main([*SMALL[2:], *one, f"batch_size={size}", f"out={tmp_path / str(size)}", "method=fp"]) == 0
    first, second = (artefacts(tmp_path / str(size), "video") for size in (1, 2))
    assert first.keys() == second.keys()
    frames = []
    for size in (1, 2):
        frames.append([video.read(path).astype(int) for path in sorted((tmp_path / str(size) / "store" / "video").rglob("*.mkv"))])
    assert max(np.abs(a - b).max() for a, b in zip(*frames, strict=True)) <= 1


def test_a_failing_cell_does_not_stop_the_sweep(tmp_path, capsys):
    folder = tmp_path / "conf" / "model"
    folder.mkdir(parents=True)
    good = (Path(__file__).parents[1] / "conf" / "model" / "mini_stdit.yaml").read_text()
    (folder / "mini_broken.yaml").write_text(good.replace("name: mini_stdit", "name: mini_broken").replace("MiniSTDiT", "NoSuchModel"))
    out = tmp_path / "out"
    code = main(["--config-dir", str(tmp_path / "conf"), *SMALL, f"out={out}", "model=mini_broken,mini_stdit", "method=fp"])
    assert code == 1
    found = {r.cell["model"]: r for r in (Record.load(p) for p in out.glob("runs/*/*/record.json"))}
    assert found["mini_stdit"].state == "done"
    assert found["mini_broken"].state == "failed" and "NoSuchModel" in found["mini_broken"].reason
    assert "AttributeError" in found["mini_broken"].traceback
    text = capsys.readouterr().out
    assert "1 failed" in text and "NoSuchModel" in text


def test_several_seeds_per_prompt(tmp_path):
    assert main([*SMALL, f"out={tmp_path}", "method=fp", "seeds=2"]) == 0
    record = records(tmp_path)["fp-fp"]
    assert [(v["prompt_id"], v["seed"]) for v in record.videos] == [("0000", 0), ("0001", 0), ("0000", 1), ("0001", 1)]
    assert len(set(artefacts(tmp_path, "video").values())) == 4
    assert main([*SMALL, f"out={tmp_path}", "method=fp", "seeds=3"]) == 0
    assert made(tmp_path, "video") == 6, "more seeds only add videos"


def start(out: Path, *overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "vdqbench", *overrides, f"out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def test_killed_and_resumed_bit_identically(tmp_path):
    cell = ["method=tsq", "method.ranges=2", "prompts.limit=6", "sampler.steps=8", *SMALL[1:2], *SMALL[3:], "batch_size=2"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, *cell)
    deadline = time.monotonic() + 240
    while not (len(artefacts(killed, "video")) == 6 and artefacts(killed, "latents")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    survivors = artefacts(killed, "video")
    assert 6 <= len(survivors) < 12 and artefacts(killed, "latents"), "it was killed while it generated"
    assert not list(killed.glob("runs/*/*/record.json"))
    assert main([*cell, f"out={killed}"]) == 0 and main([*cell, f"out={whole}"]) == 0
    assert artefacts(killed, "video") == artefacts(whole, "video")
    assert {k: v for k, v in artefacts(killed, "video").items() if k in survivors} == survivors


@pytest.mark.parametrize("launcher", ["parallel", "cluster"])
def test_workers_on_one_store_make_shared_things_once(launcher, tmp_path):
    if launcher == "cluster":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the slurm extra")
    assert main([*SMALL, f"out={tmp_path}", f"hydra/launcher={launcher}", "method=fp,cw_tw,asq"]) == 0
    assert {name: r.state for name, r in records(tmp_path).items()} == {"fp-fp": "done", "cw_tw-w8a8": "done", "asq-w8a8": "done"}
    assert made(tmp_path, "calibration") == 1 and made(tmp_path, "video") == 6


def test_a_worker_that_dies_takes_no_other_cell_along(tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "dying.py").write_text("import os, signal\n\ndef Model(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n")
    good = (Path(__file__).parents[1] / "conf" / "model" / "mini_stdit.yaml").read_text()
    bad = good.replace("name: mini_stdit", "name: mini_dying").replace("vdqbench.models.mini_stdit.MiniSTDiT", "dying.Model")
    (tmp_path / "conf" / "model" / "mini_dying.yaml").write_text(bad)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start(
        tmp_path / "out",
        "--config-dir",
        str(tmp_path / "conf"),
        *SMALL,
        "model=mini_dying,mini_stdit",
        "method=fp",
        "hydra/launcher=parallel",
    )
    assert process.wait(300) == 1
    found = {r.cell["model"]: r for r in (Record.load(p) for p in (tmp_path / "out").glob("runs/*/*/record.json"))}
    assert found["mini_stdit"].state == "done"
    assert found["mini_dying"].state == "failed" and "ended without a record" in found["mini_dying"].reason


def test_two_processes_on_one_store(tmp_path):
    both = [start(tmp_path, *SMALL, f"method={method}") for method in ("cw_tw", "asq")]
    assert [process.wait(300) for process in both] == [0, 0]
    assert made(tmp_path, "calibration") == 1 and made(tmp_path, "video") == 6


def test_what_is_done_is_left_for_wandb(tmp_path, monkeypatch):
    monkeypatch.setattr("vdqbench.track.wandb.start", lambda out: None)
    assert main([*SMALL, f"out={tmp_path}", "method=fp", "tracker=wandb"]) == 0
    record = records(tmp_path)["fp-fp"]
    folder = next(tmp_path.glob("runs/*/*"))
    ((path, result),) = empty(tmp_path)
    assert path == folder and result.ok, result
    assert list(folder.rglob(f"*{record.key}*.wandb")), "an offline run whose id is the record's key"
    assert json.loads((folder / "record.json").read_text())["state"] == "done"
    assert os.environ.get("WANDB_RUN_ID") is None
