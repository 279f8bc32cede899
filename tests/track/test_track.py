"""Trackers cannot fail a run or hold it up, whatever they do; nothing that was to be published is lost."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from filelock import FileLock

from vdqbench import track
from vdqbench.cli import main
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.runner import run_cell
from vdqbench.track import Published, publish, settle
from vdqbench.track.queue import Job, Queue, table_id
from vdqbench.track.wandb import Wandb, account, chosen_mode

CONF = Path(__file__).resolve().parents[2] / "conf" / "tracker"


class Raises:
    def publish(self, *_):
        raise RuntimeError("it\nbroke")

    def settle(self, *_):
        raise SystemExit(3)


class Hangs:
    """Does not come back before it is told to."""

    go = threading.Event()

    def __init__(self, wait=0):
        self.wait = wait

    def publish(self, *_):
        self.go.wait(60)
        return Published(True, "")

    settle = publish


def options(name: str) -> dict:
    return {"_target_": f"{__name__}.{name}"}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(track, "PATIENCE", 0.2)
    Hangs.go.clear()
    yield
    Hangs.go.set()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (options("Raises"), "RuntimeError: it broke"),
        ({"_target_": "vdqbench.track.nowhere.Tracker"}, "ModuleNotFoundError"),
        ({"_target_": "nodots"}, "ValueError"),
        ({}, "KeyError"),
        ({"_target_": "vdqbench.track.none.Nothing", "project": "x"}, "TypeError"),
        ({"_target_": "vdqbench.track.wandb.Wandb", "mode": "sometimes"}, "tracker.mode=sometimes must be one of auto, online"),
    ],
)
def test_whatever_goes_wrong_is_a_sentence(tmp_path, wrong, words):
    ok, reason = publish(tmp_path, [], [], wrong)
    assert not ok and words in reason and "\n" not in reason


def test_one_that_would_end_the_process_does_not(tmp_path):
    assert settle(tmp_path, [], [], options("Raises")) == (False, "SystemExit: 3")


def test_one_that_hangs_is_left_behind(tmp_path, impatient):
    ok, reason = publish(tmp_path, [], [], options("Hangs"))
    assert not ok and reason == "the tracker had not answered after 0.2 s and was left behind"
    assert "after 0.3 s" in settle(tmp_path, [], [], {**options("Hangs"), "wait": 0.1}).reason
    assert settle(tmp_path, [], [], {**options("Hangs"), "wait": "long"}).reason == "tracker.wait=long must be a number of seconds"


@pytest.mark.parametrize(("name", "words"), [("Raises", "RuntimeError: it broke"), ("Hangs", "the tracker had not answered")])
def test_a_run_is_done_all_the_same(tmp_path, monkeypatch, request, name, words, capsys):
    if name == "Hangs":
        request.getfixturevalue("impatient")
    monkeypatch.setattr("vdqbench.runner._run", lambda *_: None)
    config = Composer().plain(["method=fp", f"out={tmp_path}"])
    cell = Cell.from_config({**config, "tracker": options(name)})
    assert run_cell(cell, Progress()).state == "done"
    assert Record.load(cell.run_dir / "record.json").state == "done"
    assert f"fp: not published: {words}" in capsys.readouterr().err


class Notes:
    """Writes down what it is handed."""

    calls: ClassVar[list] = []

    def publish(self, out, runs, tables):
        self.calls.append(("publish", [run.name for run in runs], [table.relative_to(out).as_posix() for table in tables]))
        return Published(True, "")

    def settle(self, out, runs, tables):
        self.calls.append(("settle", len(runs), len(tables)))
        return Published(True, "all is well")


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """Cells that are done without computing anything, and the arguments that choose the tracker."""
    monkeypatch.setattr("vdqbench.runner._run", lambda *_: None)
    monkeypatch.setattr("vdqbench.sweep.try_out", lambda cells: None)
    (tmp_path / "conf/tracker").mkdir(parents=True)
    (tmp_path / "conf/tracker/notes.yaml").write_text(f"_target_: {__name__}.Notes\n")
    Notes.calls.clear()
    return ["--config-dir", str(tmp_path / "conf"), "tracker=notes", f"out={tmp_path / 'out'}", "prompts.limit=1"]


def test_every_cell_is_handed_over_when_it_is_done_and_the_table_at_the_end(noted, tmp_path, capsys):
    (tmp_path / "conf/table").mkdir()
    (tmp_path / "conf/table/small.yaml").write_text(
        """# @package table
name: small
title: A small one
columns: [{score: clipsim}]
rows: [{label: FP, reference: true, overrides: [method=fp]}, {label: TSQ, overrides: [method=tsq, bits=w4a8]}]
"""
    )
    assert main(["table=small", *noted]) == 0
    found = {file.parent.name: Record.load(file) for file in (tmp_path / "out").glob("runs/*/*/record.json")}
    fp, tsq = sorted(found)
    assert Notes.calls == [
        ("publish", [fp], []),
        ("publish", [tsq], []),
        ("publish", [fp, tsq], ["tables/small.json"]),
        ("settle", 2, 1),
    ]
    assert {record.config["study"] for record in found.values()} == {"small"} and "all is well" in capsys.readouterr().err


def test_the_cells_of_a_sweep_have_a_group_of_their_own(noted, tmp_path):
    words = ["method=fp,cw_tw", "bits=w8a8"]
    assert main([*words, *noted]) == 0

    def groups(folder: str) -> set:
        return {Record.load(file).config["study"] for file in (tmp_path / folder).glob("runs/*/*/record.json")}

    (group,) = groups("out")
    assert group.startswith("sweep-") and len(group) == 14
    assert [call[0] for call in Notes.calls] == ["publish", "publish", "publish", "settle"]
    others = [word.replace("/out", "/two") for word in noted]
    assert main([*words, *others]) == 0 and groups("two") == {group}, "the same words make the same group, wherever they are run"
    others = [word.replace("/out", "/three") for word in noted]
    assert main([*words, *others, "study=mine"]) == 0 and groups("three") == {"mine"}
    others = [word.replace("/out", "/four") for word in noted]
    assert main(["method=fp", *others]) == 0 and groups("four") == {None}, "one cell is no sweep"


def test_no_tracker_loses_nothing_and_says_nothing(tmp_path, monkeypatch):
    none = yaml.safe_load((CONF / "none.yaml").read_text())
    assert publish(tmp_path, [tmp_path / "runs/m/c"], [], none) == settle(tmp_path, [], [], none) == (True, "")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    wandb = yaml.safe_load((CONF / "wandb.yaml").read_text())
    assert publish(tmp_path, [tmp_path / "runs/m/c"], [], wandb) == settle(tmp_path, [], [], wandb) == (True, "")
    assert list(tmp_path.iterdir()) == []


def test_the_shipped_options_are_the_defaults():
    wandb = yaml.safe_load((CONF / "wandb.yaml").read_text())
    assert wandb.pop("_target_") == "vdqbench.track.wandb.Wandb" and Wandb(**wandb) == Wandb()


def test_publishing_only_leaves_notes_and_starts_a_process(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("vdqbench.track.wandb.start", started.append)
    runs, tables = [tmp_path / "runs/m/asq-w8a8-1"], [tmp_path / "tables/mine/t.json"]
    assert Wandb(mode="offline", project="p").publish(tmp_path, runs, tables) == (True, "")
    assert started == [tmp_path]
    notes = {file.name: json.loads(file.read_text()) for file in (tmp_path / "wandb/queue").iterdir()}
    assert sorted(notes) == ["asq-w8a8-1.json", "table-mine-t.json"]
    note = notes["asq-w8a8-1.json"]
    assert note["path"] == str(runs[0]) and note["options"]["project"] == "p" and note["options"]["mode"] == "offline" and not note["again"]
    assert account(tmp_path, [*runs, *tables]) == (True, "wandb: 2 runs on the way in the background")


def test_how_it_stands(tmp_path):
    runs = [tmp_path / "runs/m" / name for name in "abcd"]
    for run, ok in zip(runs, (True, True, False), strict=False):
        (run / "wandb").mkdir(parents=True)
        (run / "wandb/published.json").write_text(json.dumps({"ok": ok, "reason": "no network", "fingerprint": None}))
    assert account(tmp_path, runs) == (False, "wandb: 2 runs published, 1 run not published (no network), 1 run never published")
    Queue(tmp_path).put(Job(runs[2]))
    assert account(tmp_path, runs[1:3]) == (True, "wandb: 1 run published, 1 run on the way in the background")
    assert account(tmp_path, []) == (True, "")


def test_settling_waits_for_the_queue_as_long_as_it_is_told(tmp_path):
    run, queue = tmp_path / "runs/m/a", Queue(tmp_path)
    queue.put(Job(run))
    assert "1 run on the way" in Wandb(mode="offline").settle(tmp_path, [run], []).reason
    threading.Timer(0.3, lambda: list(queue.drain(lambda job: Published(True, "")))).start()
    assert Wandb(mode="offline", wait=60).settle(tmp_path, [run], []).reason == "wandb: 1 run never published"


def names(results) -> list[str]:
    return [path.name for path, _ in results]


def test_the_queue_is_emptied_oldest_first_and_holds_a_path_once(tmp_path):
    queue, seen = Queue(tmp_path), []
    for i, name in enumerate(("b", "a", "c", "b")):
        queue.put(Job(tmp_path / name, {"i": i}))
        os.utime(tmp_path / "wandb/queue" / f"{name}.json", (i, i))

    def deliver(job: Job) -> Published:
        seen.append(job.options["i"])
        assert queue.pending(job.path)
        if job.path.name == "c":
            queue.put(Job(tmp_path / "late", {"i": 9}))
        return Published(True, "")

    assert names(queue.drain(deliver)) == ["a", "c", "b", "late"] and seen == [1, 2, 3, 9]
    assert not queue.pending(tmp_path / "a") and list((tmp_path / "wandb/queue").iterdir()) == []


def test_what_a_killed_process_had_taken_is_taken_again_and_nonsense_is_dropped(tmp_path):
    queue = Queue(tmp_path)
    queue.put(Job(tmp_path / "a"))
    os.replace(tmp_path / "wandb/queue/a.json", tmp_path / "wandb/queue/a.taken")
    queue.put(Job(tmp_path / "b"))
    (tmp_path / "wandb/queue/c.json").write_text("{")
    assert sorted(names(queue.drain(lambda job: Published(True, "")))) == ["a", "b"]
    assert list((tmp_path / "wandb/queue").iterdir()) == []


def test_one_process_at_a_time_sends_and_none_misses_a_job(tmp_path):
    queue = Queue(tmp_path)
    queue.put(Job(tmp_path / "a"))
    with FileLock(tmp_path / "wandb/queue.lock"):
        assert names(Queue(tmp_path).drain(lambda job: Published(True, ""))) == [] and queue.pending(tmp_path / "a")

    def deliver(job: Job) -> Published:  # another puts a job and finds the queue taken
        if job.path.name == "a":
            queue.put(Job(tmp_path / "b"))
            results = []
            other = threading.Thread(target=lambda: results.extend(Queue(tmp_path).drain(lambda job: Published(False, "stolen"))))
            other.start()
            other.join()
            assert results == []
        return Published(True, "")

    assert names(queue.drain(deliver)) == ["a", "b"]


def test_it_lingers_for_the_next_job_and_who_waits_goes_when_all_are_done(tmp_path):
    queue, taken, done = Queue(tmp_path), [], threading.Event()
    queue.put(Job(tmp_path / "a"))

    def lingering() -> None:
        for path, _ in queue.drain(lambda job: Published(True, ""), linger=60):
            taken.append(path.name)
            if path.name == "b":
                done.set()

    threading.Thread(target=lingering, daemon=True).start()
    while not taken:
        time.sleep(0.01)
    queue.put(Job(tmp_path / "b"))
    assert names(Queue(tmp_path).drain(lambda job: Published(False, "stolen"), wait=True)) == [] and not queue.pending(tmp_path / "b")
    assert done.wait(30) and taken == ["a", "b"]


def test_tables_have_ids_of_their_own(tmp_path):
    assert table_id(tmp_path, tmp_path / "tables/asq_tsq/table3-mini.json") == "table-asq_tsq-table3-mini"


def test_the_mode_follows_the_login(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert chosen_mode("auto", home) == "offline" and chosen_mode("online", home) == "online"
    assert chosen_mode("auto", {**home, "WANDB_API_KEY": "x"}) == "online"
    assert chosen_mode("auto", {**home, "WANDB_API_KEY": "x", "WANDB_MODE": "offline"}) == "offline"
    (tmp_path / ".netrc").write_text("machine example.org login a password b\n")
    assert chosen_mode("auto", home) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert chosen_mode("auto", home) == "online"
    assert chosen_mode("auto", {**home, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    assert chosen_mode("auto", {**home, "NETRC": str(tmp_path / "nothing")}) == "offline"
