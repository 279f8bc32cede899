"""The verbs over a results folder: report, store, doctor."""

from __future__ import annotations

import pytest

from vdqbench.cli import main
from vdqbench.record import Record
from vdqbench.store import Store
from vdqbench.verbs.store import needed


@pytest.fixture
def out(tmp_path):
    """A results folder with one done and one failed record, what the first was made from, and something nobody needs."""
    store = Store(tmp_path / "store")
    for kind, key in (
        ("video", "aa01"),
        ("video", "bb02"),
        ("scores", "cc03"),
        ("report", "dd04"),
        ("calibration", "ee05"),
        ("video", "ff06"),
    ):
        store.put(kind, key, ".bin", lambda path: path.write_bytes(b"x" * 10))
    cell = dict(model="mini_stdit", method="asq", bits="w8a8", weight=8, activation=8, prompts="p", n=1, seeds=1, seed=0, sampler="ddim20")
    keys = dict(calibration="ee05", report="dd04", videos=["aa01"], reference_videos=["bb02"], metrics={"clip": "cc03"}, reference="k")
    score = dict(mean=0.5, values=[0.5], n=1, label="CLIPSIM", higher_is_better=True, protocol={})
    video = dict(prompt_id="0000", prompt="p", seed=0, mp4="videos/0000-0.mp4")
    Record(key="1" * 16, cell=cell, state="done", keys=keys, scores={"clipsim": score}, videos=[video]).save(
        tmp_path / "runs/m/a/record.json"
    )
    lost = Record(key="2" * 16, cell={**cell, "method": "tsq"}, state="failed", reason="it broke", keys={**keys, "videos": []})
    lost.save(tmp_path / "runs/m/b/record.json")
    return tmp_path


def test_report_shows_every_record(out, capsys):
    assert main(["report", str(out)]) == 0
    text = capsys.readouterr().out
    assert "asq" in text and "tsq" in text and "it broke" in text and "1 failed" in text
    lines = (out / "report.csv").read_text().splitlines()
    assert len(lines) == 3 and "clipsim" in lines[0]


def test_store_shows_and_prunes_what_no_record_needs(out, capsys):
    assert main(["store", str(out)]) == 0
    assert "calibration" in capsys.readouterr().out
    assert main(["store", str(out), "--prune"]) == 0
    assert "deleted 2 files" in capsys.readouterr().out
    assert {(kind, key) for kind, key, _ in Store(out / "store").entries()} <= needed(out)
    assert not Store(out / "store").has("video", "ff06", ".bin")


def test_store_deletes_nothing_when_a_record_cannot_be_read(out, capsys):
    (out / "runs/m/b/record.json").write_text("{")
    assert main(["store", str(out), "--prune"]) == 2
    assert "nothing was deleted" in capsys.readouterr().err
    assert Store(out / "store").has("video", "ff06", ".bin")


def test_doctor_finds_this_installation_well(tmp_path, capsys, monkeypatch):
    assert main(["doctor", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "torch" in text and "packaged weights" in text and "MISSING" not in text
    monkeypatch.setattr("vdqbench.config.WEIGHTS", tmp_path)
    assert main(["doctor", str(tmp_path)]) == 1
    assert "mini_stdit.safetensors" in capsys.readouterr().out
