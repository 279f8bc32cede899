"""The process that sends: what it sends again, what it gives up, and that it always goes on."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tracked import results

from vdqbench.record import Record
from vdqbench.track import Published
from vdqbench.track import background as bg
from vdqbench.track.queue import Job, Queue
from vdqbench.track.wandb import mark, start

OFFLINE = {"mode": "offline", "timeout": 180}


class Fake:
    """A sender that notes what it is asked for and answers from a list."""

    def __init__(self, out: Path, *answers: Published) -> None:
        self.out, self.answers, self.asked = out, list(answers), []

    def send(self, job: Job, seconds: float) -> Published:
        self.asked.append((job.path.name, job.options["mode"], seconds))
        return self.answers.pop(0) if self.answers else Published(True, "kept")


def test_what_has_not_changed_is_not_sent_again(tmp_path):
    run, fake = results(tmp_path)["tsq"], Fake(tmp_path)
    first = bg.deliver(fake, Job(run, OFFLINE))
    assert first == bg.deliver(fake, Job(run, OFFLINE)) == (True, "kept") and len(fake.asked) == 1
    bg.deliver(fake, Job(run, OFFLINE, again=True))
    bg.deliver(fake, Job(run, {**OFFLINE, "project": "other"}))
    record = Record.load(run / "record.json")
    record.scores["clipsim"]["mean"] = 0.5
    record.save(run / "record.json")
    bg.deliver(fake, Job(run, {**OFFLINE, "project": "other"}))
    assert len(fake.asked) == 4


def test_a_table_is_sent_again_when_its_file_changes(tmp_path):
    table, fake = results(tmp_path)["table"], Fake(tmp_path)
    for text in (table.read_text(), table.read_text(), table.read_text() + " "):
        table.write_text(text)
        assert bg.deliver(fake, Job(table, OFFLINE)).ok
    assert len(fake.asked) == 2 and (tmp_path / "wandb/table-mine-table1/wandb/published.json").exists()


def test_what_cannot_be_sent_is_kept_offline_and_tried_again(tmp_path):
    run = results(tmp_path)["tsq"]
    fake = Fake(
        tmp_path, Published(False, "no server"), Published(True, "kept in x"), Published(False, "no"), Published(False, "disk full")
    )
    job = Job(run, {"mode": "online", "timeout": 5})
    assert bg.deliver(fake, job) == (False, "no server; kept in x")
    assert mark(tmp_path, run) | {"finished": None} == {
        "ok": False,
        "reason": "no server; kept in x",
        "fingerprint": None,
        "finished": None,
    }
    assert bg.deliver(fake, job) == (False, "no; nor could it be kept offline: disk full")
    assert bg.deliver(fake, job) == (True, "kept")
    assert [asked[1:] for asked in fake.asked] == [("online", 5), ("offline", 5)] * 2 + [("online", 5)]


def test_half_a_run_is_not_left_lying(tmp_path):
    run = results(tmp_path)["tsq"]
    (run / "wandb/offline-run-1-old").mkdir(parents=True)

    class Breaks(Fake):
        def send(self, job: Job, seconds: float) -> Published:
            (run / f"wandb/offline-run-2-{len(self.answers)}").mkdir()
            return super().send(job, seconds)

    sender = Breaks(tmp_path, Published(False, "broke"), Published(True, "kept"))
    for expected in (["offline-run-1-old"], ["offline-run-1-old", "offline-run-2-1"]):
        bg.deliver(sender, Job(run, OFFLINE))
        assert sorted(path.name for path in (run / "wandb").glob("offline-run-*")) == expected


@pytest.mark.parametrize("what", ["run", "record"])
def test_what_is_not_there_is_a_reason(tmp_path, what):
    run = results(tmp_path)["tsq"]
    if what == "record":
        (run / "record.json").write_text("{")
    ok, reason = bg.deliver(Fake(tmp_path), Job(run if what == "record" else tmp_path / "runs/m/gone", OFFLINE))
    assert not ok and reason.startswith("there is nothing to send (") and not (tmp_path / "runs/m/gone").exists()


def stand_in(monkeypatch, folder: Path, code: str) -> None:
    """Put another `wandb` before the real one, for the process that sends."""
    (folder / "fake").mkdir()
    (folder / "fake" / "wandb.py").write_text(code)
    package = Path(bg.__file__).parents[2]
    monkeypatch.setattr(bg, "environment", lambda *_: {**os.environ, "PYTHONPATH": f"{folder / 'fake'}:{package}"})


BASE = """
import os, signal, sys, time
class Run: pass
class Html: pass
class Table: pass
class Video: pass
Settings = dict
"""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('no wandb here')", "ImportError: no wandb here"),
        ("def init(**options): raise RuntimeError('init\\nbroke')", "RuntimeError: init broke"),
        ("def init(**options): os.kill(os.getpid(), signal.SIGKILL)", "wandb ended with exit code -9"),
        (
            "def init(**options): print('[true, \"\"]'); sys.stderr.write('bad things\\n'); os._exit(4)",
            "wandb ended with exit code 4: bad things",
        ),
    ],
)
def test_whatever_wandb_does_is_a_reason_and_the_next_one_is_sent(tmp_path, monkeypatch, code, words):
    folders = results(tmp_path)
    stand_in(monkeypatch, tmp_path, BASE + code)
    for name in ("tsq", "fp"):
        Queue(tmp_path).put(Job(folders[name], {"mode": "offline", "timeout": 180}))
    found = dict(bg.empty(tmp_path))
    assert found.keys() == {folders["tsq"], folders["fp"]} and all(not ok and words in reason for ok, reason in found.values()), found


def test_one_that_hangs_is_ended_with_all_it_started(tmp_path, monkeypatch):
    code = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
time.sleep(600)
"""
    run = results(tmp_path)["tsq"]
    stand_in(monkeypatch, tmp_path, BASE + code)
    Queue(tmp_path).put(Job(run, {"mode": "offline", "timeout": 10}))
    ((_, result),) = bg.empty(tmp_path)
    assert result == (False, "wandb was not done within tracker.timeout=10 s and was stopped")
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z", f"{pid} lives on"


def test_a_run_is_finished_even_when_logging_fails(tmp_path, monkeypatch):
    code = f"""
class Run:
    class summary:
        def update(values): raise ValueError("summary broke")
    def finish(self, exit_code): open({str(tmp_path / "finished")!r}, "w").write(str(exit_code))
def init(**options): return Run()
"""
    run = results(tmp_path)["tsq"]
    stand_in(monkeypatch, tmp_path, BASE + code)
    Queue(tmp_path).put(Job(run, {"mode": "offline", "timeout": 180}))
    ((_, result),) = bg.empty(tmp_path)
    assert result == (False, "ValueError: summary broke") and (tmp_path / "finished").read_text() == "1"


def test_the_environment_keeps_wandb_below_the_results_and_the_users_runs_out(tmp_path, monkeypatch):
    for name in bg.DROPPED:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    offline, online = bg.environment(tmp_path, "offline"), bg.environment(tmp_path, "online")
    assert not set(bg.DROPPED) & offline.keys() and offline["WANDB_BASE_URL"] == "https://wandb.example.org"
    assert offline["WANDB_CACHE_DIR"] == str(tmp_path / "wandb/cache") and "WANDB_CONFIG_DIR" not in online.keys() - os.environ.keys()


def test_only_a_session_of_its_own_steps_aside():
    """The scheduler weighs whole sessions: the one that the tests run in must stay as it is."""
    code = (
        "import os; from vdqbench.track.background import step_aside; step_aside(); print(os.nice(0), open('/proc/self/autogroup').read())"
    )
    before = Path("/proc/self/autogroup")
    if not before.exists() or not before.read_text().split():
        pytest.skip("sessions are not weighed here")
    weight = before.read_text().split()[-1]
    own, shared = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, start_new_session=alone).stdout.split()
        for alone in (True, False)
    )
    assert (own[0], own[-1], shared[0], shared[-1]) == ("10", "10", "10", weight) and before.read_text().split()[-1] == weight


def test_what_is_started_empties_the_queue_by_itself(tmp_path):
    """With nothing but the folder to go by, no output, and nobody who waits for it."""
    gone = tmp_path / "runs/mini_stdit/gone"
    gone.mkdir(parents=True)
    Queue(tmp_path).put(Job(gone, OFFLINE))
    start(tmp_path, linger=0)
    until = time.monotonic() + 300
    while Queue(tmp_path).pending(gone) and time.monotonic() < until:
        time.sleep(0.1)
    note = mark(tmp_path, gone)
    assert note is not None and not note["ok"] and "there is nothing to send" in note["reason"]
    assert list((tmp_path / "wandb/queue").iterdir()) == []


def test_the_process_says_nothing_and_ends_well(tmp_path):
    command = [sys.executable, "-P", "-m", "vdqbench.track.background", str(tmp_path), "0"]
    done = subprocess.run(command, capture_output=True, timeout=300, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
