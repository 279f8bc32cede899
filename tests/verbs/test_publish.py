"""The verb publish: what it sends, what it says, and what it refuses; the sending itself is tested with the tracker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tracked import ASQ, FP, TSQ, results

from vdqbench.cli import main
from vdqbench.record import Record
from vdqbench.track import Published, background
from vdqbench.track.queue import Job


@pytest.fixture
def sender(monkeypatch):
    """In place of the process with wandb: notes the jobs; the asq cell fails."""
    asked: list[Job] = []

    class Fake:
        def __init__(self, out: Path) -> None:
            self.out = out

        def send(self, job: Job, seconds: float) -> Published:
            asked.append(job)
            return Published("asq" not in job.path.name, "no network" if "asq" in job.path.name else "kept in x")

        def close(self) -> None:
            pass

    monkeypatch.setattr(background, "Sender", Fake)
    return asked


def names(jobs: list[Job]) -> list[str]:
    return [job.path.name for job in jobs]


def test_everything_is_sent_and_what_is_not_is_named(tmp_path, sender, capsys):
    results(tmp_path)
    assert main(["publish", f"out={tmp_path}", "quiet=true"]) == 1
    assert sorted(names(sender)) == [f"asq-w4a8-{ASQ}", f"fp-{FP}", "table1.json", f"tsq-w4a8-{TSQ}"]
    assert all(job.options["mode"] == "offline" and job.options["project"] == "vdqbench" for job in sender)
    text = capsys.readouterr().out
    assert f"runs/mini_stdit/asq-w4a8-{ASQ}: " in text and "no network" in text and f"tsq-w4a8-{TSQ}" not in text
    assert "wandb: 3 runs published, 1 run not published (no network)" in text
    assert main(["publish", f"out={tmp_path}", "tracker.project=ptq", f"{TSQ}", "fp-*"]) == 0
    assert names(sender)[4:] == [f"tsq-w4a8-{TSQ}", f"fp-{FP}"] and sender[-1].options["project"] == "ptq"


@pytest.mark.parametrize("word", ["tsq-*", "tsq-w4a8", "mini_stdit/tsq*", TSQ, "PATH", "PATH/record.json"])
def test_a_cell_goes_by_any_of_its_names(tmp_path, sender, word):
    folder = results(tmp_path)["tsq"]
    assert main(["publish", word.replace("PATH", str(folder)), f"out={tmp_path}", "quiet=true"]) == 0
    assert [job.path for job in sender] == [folder]


def test_a_plan_sends_nothing(tmp_path, sender, capsys):
    results(tmp_path)
    assert main(["publish", f"out={tmp_path}", "tsq-*", "quiet=true"]) == 0
    capsys.readouterr()
    assert main(["publish", f"out={tmp_path}", "plan=true"]) == 0 and len(sender) == 1
    text = capsys.readouterr().out
    assert f"tsq-w4a8-{TSQ}: 20" in text and "kept in x" in text and f"fp-{FP}: never published" in text
    assert "wandb: 1 run published, 3 runs never published" in text
    assert not list((tmp_path / "wandb/queue").glob("*"))


def test_a_table_is_filled_from_the_records_that_there_are(tmp_path, sender):
    from vdqbench.compose import Composer
    from vdqbench.config import Cell
    from vdqbench.runner import new_record

    conf = tmp_path / "conf/table"
    conf.mkdir(parents=True)
    (conf / "small.yaml").write_text(
        """# @package table
name: small
title: A small one
base: [model=mini_stdit, prompts=shapes_small, prompts.limit=2, "metric=[clip]"]
columns: [{score: clipsim, digits: 2}]
rows:
  - {label: FP, reference: true, overrides: [method=fp]}
  - {label: TSQ, overrides: [method=tsq, bits=w4a8]}
"""
    )
    base = ["model=mini_stdit", "prompts=shapes_small", "prompts.limit=2", "metric=[clip]", "method=fp", f"out={tmp_path}"]
    cell = Cell.from_config(Composer().plain(base))
    record = new_record(cell)
    record.state, record.scores = "done", {"clipsim": {"mean": 0.5, "values": None, "n": 2, "label": "CLIPSIM", "higher_is_better": True}}
    record.save(cell.run_dir / "record.json")
    words = ["publish", "--config-dir", str(tmp_path / "conf"), "table=small", f"out={tmp_path}", "quiet=true"]
    assert main(words) == 0
    assert names(sender) == [cell.run_dir.name, "small.json"]
    lines = json.loads((tmp_path / "tables/small.json").read_text())["lines"]
    assert [(line["state"], line["key"], line["cells"][0]["mean"]) for line in lines] == [("done", cell.key, 0.5), ("missing", None, None)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nosuch-*"], "nosuch-* is no record below"),
        (["tsqw4a8"], "did you mean tsq-w4a8"),
        (["method=tsq"], "method=tsq is not an option of vdqbench publish"),
        (["tracker.mode=sometimes"], "tracker.mode=sometimes must be one of"),
        (["tracker.projct=x"], "tracker has no option projct (did you mean project?)"),
        (["tracker=none"], "must be one for Weights & Biases"),
        (["tracker.mode=disabled"], "tracker.mode=disabled publishes nothing"),
        (["plan=perhaps"], "plan=perhaps must be true or false"),
        (["tsq-*", "table=quickstart"], "a table names its own cells"),
        (["table=quickstart"], "table=quickstart has no cell that was run; run it first"),
        (["--cfg"], "--cfg belongs to cells"),
    ],
)
def test_wrong_use(tmp_path, sender, capsys, words, said):
    results(tmp_path)
    assert main(["publish", f"out={tmp_path}", *words]) == 2
    assert said in capsys.readouterr().err and sender == []


def test_without_records_and_with_help(tmp_path, capsys):
    assert main(["publish", f"out={tmp_path}"]) == 2 and "holds no records" in capsys.readouterr().err
    assert main(["publish", "--help"]) == 0 and "tracker.mode=online" in capsys.readouterr().out


def test_records_are_left_as_they_are(tmp_path, sender):
    folder = results(tmp_path)["tsq"]
    before = (folder / "record.json").read_bytes()
    assert main(["publish", "tsq-*", f"out={tmp_path}", "quiet=true"]) == 0
    assert (folder / "record.json").read_bytes() == before and Record.load(folder / "record.json").state == "done"
