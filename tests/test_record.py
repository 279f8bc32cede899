"""The record file: what is written comes back, whole or not at all."""

from __future__ import annotations

import json
import math

import pytest

from vdqbench.record import Record

CELL = {"model": "mini_stdit", "method": "tsq", "bits": "w4a8", "prompts": "shapes_small"}
VIDEOS = [{"prompt_id": p, "prompt": f"prompt {p}", "seed": s, "mp4": f"videos/{p}-{s}.mp4"} for s in (0, 1) for p in ("a", "b")]


def score(values, **more):
    return {"mean": sum(values) / len(values), "values": values, "n": len(values), "label": "PSNR", "higher_is_better": True, **more}


def test_a_record_survives_the_disk(tmp_path):
    record = Record("00ff" * 4, CELL, "done", videos=VIDEOS, scores={"psnr": score([1.5, 2.5, 3.5, 4.5])}, timings={"generate": 2.0})
    path = tmp_path / "deep" / "record.json"
    record.save(path)
    assert Record.load(path) == record
    assert json.loads(path.read_text())["schema"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["record.json"]


def test_values_are_found_by_prompt_and_seed():
    record = Record("k", CELL, videos=VIDEOS, scores={"psnr": score([1.5, 2.5, 3.5, 4.0]), "size": {"mean": 1.0, "values": None}})
    assert record.by_sample("psnr") == {("a", 0): 1.5, ("b", 0): 2.5, ("a", 1): 3.5, ("b", 1): 4.0}
    assert record.by_sample("size") == {} == record.by_sample("no_such_score")
    record.videos = VIDEOS[:2]
    with pytest.raises(ValueError, match="4 values of psnr for 2 videos"):
        record.by_sample("psnr")


def test_numbers_without_a_json_form_are_words_on_disk(tmp_path):
    record = Record("k", CELL, "done", videos=VIDEOS[:3], scores={"psnr": score([math.inf, -math.inf, math.nan])})
    record.save(tmp_path / "record.json")
    text = (tmp_path / "record.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    values = Record.load(tmp_path / "record.json").scores["psnr"]["values"]
    assert values[:2] == [math.inf, -math.inf] and math.isnan(values[2])


def test_a_failed_save_leaves_the_old_record(tmp_path):
    path = tmp_path / "record.json"
    Record("old", CELL).save(path)
    broken = Record("new", CELL, config={"set": {1, 2}})
    with pytest.raises(TypeError):
        broken.save(path)
    assert Record.load(path).key == "old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("{", ValueError, "double quotes"),
        ("[]", TypeError, "a record is a JSON object"),
        ('{"schema": 2, "key": "k", "cell": {}}', ValueError, "schema=2"),
        ('{"schema": 1, "key": "k", "cell": {}, "state": "running"}', ValueError, "state=running"),
        ('{"schema": 1, "cell": {}}', TypeError, "key"),
        ('{"schema": 1, "key": "k", "cell": {}, "scores": [1]}', TypeError, "scores of a record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, text, error, words):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(error, match=words):
        Record.load(tmp_path / "record.json")


def test_names_leave_out_bits_in_full_precision():
    assert Record("k", CELL).name == "mini_stdit-tsq-w4a8"
    assert Record("k", {**CELL, "method": "fp", "bits": "fp"}).name == "mini_stdit-fp"
