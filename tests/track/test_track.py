"""Trackers: what wandb finds offline in its own file format, and that nothing that goes wrong reaches the run."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vdqbench import video
from vdqbench.record import Record
from vdqbench.track import publish
from vdqbench.track import wandb as tracker

CONF = Path(__file__).resolve().parents[2] / "conf" / "tracker"


def options(name: str = "wandb", **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load((CONF / f"{name}.yaml").read_text()), **changes}


def record(run_dir: Path | None = None) -> Record:
    videos = [{"prompt_id": p, "prompt": f"a {p}", "seed": 0, "mp4": f"videos/{p}-0.mp4"} for p in ("one", "two", "three")]
    if run_dir is not None:
        for entry in videos[:2]:
            (run_dir / "videos").mkdir(parents=True, exist_ok=True)
            video.write_mp4(run_dir / entry["mp4"], np.zeros((4, 32, 32, 3), np.uint8), 8)
    return Record(
        key="00112233aabbccdd",
        cell={
            "model": "mini_stdit",
            "method": "tsq",
            "bits": "w4a8",
            "weight": 4,
            "activation": 8,
            "prompts": "shapes_small",
            "kernel": "sim",
        },
        state="done",
        config={"method": {"name": "tsq", "ranges": 20}, "seed": 0},
        scores={
            "psnr": {"mean": 30.0, "values": [29.0, 30.0, 31.0], "n": 3, "label": "PSNR", "higher_is_better": True},
            "weight_size": {"mean": 2.5, "values": None, "n": 1, "label": "Size", "higher_is_better": False},
        },
        videos=videos,
        timings={"generate": 1.5},
    )


def entries(path: Path, block: int = 32768) -> Iterator[Any]:
    """The records of a .wandb file: leveldb's log format, blocks of 32 KiB, chunks of crc (4), length (2), type (1)."""
    from wandb.proto import wandb_internal_pb2

    data, position, buffer = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        buffer = chunk if kind in (1, 2) else buffer + chunk
        position += 7 + length
        if kind in (1, 4):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(buffer)
            yield entry


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, list[Any], set[str]]:
    """A run folder after offline publishing, what its .wandb file holds, and what appeared in the home folder."""
    home, run_dir = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("runs") / "tsq-w4a8-00112233aabbccdd"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            patch.delenv(name, raising=False)
        patch.setenv("HOME", str(home))
        before = dict(os.environ)
        ok, reason = publish(record(run_dir), run_dir, options(group="quickstart", max_videos=1))
        assert ok and reason == f"`wandb sync {run_dir}/wandb/offline-run-*` sends it", reason
        assert dict(os.environ) == before
    (file,) = run_dir.glob("wandb/offline-run-*/run-00112233aabbccdd.wandb")
    return run_dir, list(entries(file)), {str(path.relative_to(home)) for path in home.rglob("*")}


def test_the_run_is_the_cell(published):
    run = next(entry.run for entry in published[1] if entry.WhichOneof("record_type") == "run")
    assert (run.run_id, run.project, run.run_group, run.job_type) == ("00112233aabbccdd", "vdqbench", "quickstart", "cell")
    assert run.display_name == "mini_stdit-tsq-w4a8" and set(run.tags) == {"mini_stdit", "tsq", "w4a8", "sim"}


def test_the_config_is_nested_and_has_the_flat_cell(published):
    found = {}
    for entry in published[1]:
        if entry.WhichOneof("record_type") == "run":
            found |= values(entry.run.config.update)
        if entry.WhichOneof("record_type") == "config":
            found |= values(entry.config.update)
    assert found["method"] == {"name": "tsq", "ranges": 20} and found["cell"]["weight"] == 4 and found["cell"]["prompts"] == "shapes_small"


def test_the_summary_has_means_and_errors_under_stable_names(published):
    found = {}
    for entry in published[1]:
        if entry.WhichOneof("record_type") == "summary":
            found |= values(entry.summary.update)
    assert found["psnr"] == 30.0 and found["psnr/se"] == pytest.approx(1 / 3**0.5) and found["psnr/n"] == 3
    assert found["weight_size"] == 2.5 and "weight_size/se" not in found
    assert found["state"] == "done" and found["seconds/generate"] == 1.5


def test_the_table_of_videos_has_all_rows_and_the_chosen_media(published):
    run_dir, found, _ = published
    history = [values(entry.history.item) for entry in found if entry.WhichOneof("record_type") == "history"]
    assert history[0]["per_video/_type"] == "table-file" and history[0]["per_video/nrows"] == 3
    assert history[0]["videos/captions"] == ["a one"] and history[0]["videos/videos"][0]["path"].endswith(".mp4")
    (file,) = run_dir.glob("wandb/offline-run-*/files/media/table/*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["prompt_id", "prompt", "seed", "psnr", "video"]
    assert [row[:4] for row in table["data"]] == [["one", "a one", 0, 29.0], ["two", "a two", 0, 30.0], ["three", "a three", 0, 31.0]]
    assert [row[4] is None for row in table["data"]] == [False, True, True]
    assert len(list(run_dir.glob("wandb/offline-run-*/files/media/videos/*.mp4"))) == 1


def test_the_run_is_closed_and_the_home_folder_untouched(published):
    exits = [entry.exit for entry in published[1] if entry.WhichOneof("record_type") == "exit"]
    assert [e.exit_code for e in exits] == [0]
    assert published[2] == set()


def silent_server() -> socket.socket:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        kept = []
        while True:
            try:
                kept.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    return server


def test_a_server_that_does_not_answer_leaves_the_run_on_disk(tmp_path, monkeypatch):
    with silent_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        ok, reason = publish(record(), tmp_path, options(mode="online", init_timeout=3))
    assert not ok and "kept offline: `wandb sync" in reason, reason
    assert any("offline-run" in str(path) for path in tmp_path.rglob("*.wandb"))


def test_a_deadline_ends_it(tmp_path):
    ok, reason = publish(record(), tmp_path, options(mode="offline", timeout=0.01))
    assert not ok and "tracker.timeout=0.01" in reason


def stand_in(folder: Path, code: str, monkeypatch) -> None:
    """Put another `wandb` before the real one, for the process that publishes."""
    (folder / "wandb.py").write_text(code)
    monkeypatch.setattr(tracker, "_environment", lambda *_: {**os.environ, "PYTHONPATH": f"{folder}:{Path(tracker.__file__).parents[2]}"})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('no wandb here')", "ImportError: no wandb here"),
        ("Settings = dict\ndef init(**options): raise RuntimeError('init broke')", "RuntimeError: init broke"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
    ],
)
def test_whatever_wandb_does_is_a_reason(tmp_path, monkeypatch, code, words):
    stand_in(tmp_path, code, monkeypatch)
    ok, reason = publish(record(), tmp_path / "run", options(mode="offline"))
    assert not ok and words in reason


def test_a_run_is_finished_even_when_logging_fails(tmp_path, monkeypatch):
    code = f"""
Settings = Video = Table = lambda *a, **k: None
class Run:
    summary = {{}}
    def log(self, data): raise ValueError("log broke")
    def finish(self, exit_code): open({str(tmp_path / "finished")!r}, "w").write(str(exit_code))
def init(**options): return Run()
"""
    stand_in(tmp_path, code, monkeypatch)
    ok, reason = publish(record(), tmp_path / "run", options(mode="offline"))
    assert not ok and reason == "ValueError: log broke" and (tmp_path / "finished").read_text() == "1"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"_target_": "vdqbench.track.nowhere.publish"}, "ModuleNotFoundError"),
        ({}, "KeyError"),
        (options(mode="sometimes"), "tracker.mode=sometimes must be one of"),
        (options("none", project="x"), "TypeError"),
    ],
)
def test_wrong_options_are_a_reason(tmp_path, wrong, words):
    ok, reason = publish(record(), tmp_path, wrong)
    assert not ok and words in reason


def test_no_tracker_loses_nothing(tmp_path, monkeypatch):
    assert publish(record(), tmp_path, options("none")).ok and list(tmp_path.iterdir()) == []
    assert publish(record(), tmp_path, options(mode="disabled")).ok and list(tmp_path.iterdir()) == []
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert publish(record(), tmp_path, options()) == (True, "wandb is disabled") and list(tmp_path.iterdir()) == []


def test_the_mode_follows_the_login(tmp_path):
    home = {"HOME": str(tmp_path)}
    assert tracker.chosen_mode("auto", home) == "offline" and tracker.chosen_mode("online", home) == "online"
    assert tracker.chosen_mode("auto", {**home, "WANDB_API_KEY": "x"}) == "online"
    assert tracker.chosen_mode("auto", {**home, "WANDB_API_KEY": "x", "WANDB_MODE": "offline"}) == "offline"
    (tmp_path / ".netrc").write_text("machine example.org login a password b\n")
    assert tracker.chosen_mode("auto", home) == "offline"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert tracker.chosen_mode("auto", home) == "online"
    assert tracker.chosen_mode("auto", {**home, "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    assert tracker.chosen_mode("auto", {**home, "NETRC": str(tmp_path / "nothing")}) == "offline"
