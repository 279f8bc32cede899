"""Weights & Biases: one run per cell and one per table, made in the background from what is on disk.

The bench only leaves a note in a queue and starts a process of its own, which outlives it; that process sends one run after the other
through a third one, the only one that imports wandb, and ends it when it takes too long. So whatever wandb does to signals, environment
or the network, and however long it waits, neither the result nor the time of a run depends on it.
"""

from __future__ import annotations

import json
import netrc
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vdqbench.track import Published
from vdqbench.track.queue import Job, Queue, table_id

MODES = ("auto", "online", "offline", "disabled")
SERVER = "https://api.wandb.ai"
LINGER = 60.0
"""Seconds that the process waits for the next cell: to start wandb costs ten times as much as to send a small cell."""


@dataclass(frozen=True)
class Wandb:
    """Options of `conf/tracker/wandb.yaml`.

    Raises:
        ValueError: an unknown mode.
    """

    project: str = "vdqbench"
    entity: str | None = None
    group: str | None = None
    mode: str = "auto"
    max_videos: int = 16
    init_timeout: float = 20
    timeout: float = 600
    wait: float = 0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tracker.mode={self.mode} must be one of {', '.join(MODES)}")

    def publish(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """Queue them and start the process that sends them; what has been sent before, and has not changed, is not sent again."""
        if self.queue(out, [*runs, *tables]):
            start(out)
        return Published(True, "")

    def queue(self, out: Path, paths: Sequence[Path], again: bool = False) -> bool:
        """Queue them only, also what has not changed if `again`; False if wandb is disabled."""
        mode = chosen_mode(self.mode, os.environ)
        if mode == "disabled":
            return False
        options = asdict(replace(self, mode=mode, wait=0))
        queue = Queue(out.resolve())
        for path in paths:
            queue.put(Job(path.resolve(), options, again))
        return True

    def settle(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """Wait for at most `wait` seconds until they are sent, and say how many are, and how many are not, and why."""
        mode = chosen_mode(self.mode, os.environ)
        if mode == "disabled":
            return Published(True, "")
        out, paths = out.resolve(), list(dict.fromkeys(path.resolve() for path in (*runs, *tables)))
        queue, until = Queue(out), time.monotonic() + self.wait
        while any(queue.pending(path) for path in paths) and time.monotonic() < until:
            time.sleep(0.1)
        return account(out, paths)


def account(out: Path, paths: Sequence[Path]) -> Published:
    """How it stands with run folders and tables: published, still in the queue, not published and why."""
    queue = Queue(out)
    states: Counter[str] = Counter()
    reasons: dict[str, None] = {}
    for path in paths:
        note = mark(out, path)
        state = "pending" if queue.pending(path) else "never" if note is None else "published" if note["ok"] else "failed"
        states[state] += 1
        if state == "failed":
            reasons[str(note and note["reason"])] = None
    words = []
    if states["published"]:
        words.append(f"{_runs(states['published'])} published")
    if states["pending"]:
        words.append(f"{_runs(states['pending'])} on the way in the background")
    for state, word in (("failed", "not published"), ("never", "never published")):
        if states[state]:
            words.append(f"{_runs(states[state])} {word}" + (f" ({'; '.join(reasons)})" if state == "failed" else ""))
    return Published(not states["failed"], "wandb: " + ", ".join(words) if words else "")


def _runs(count: int) -> str:
    return f"{count} {'run' if count == 1 else 'runs'}"


def home(out: Path, path: Path) -> Path:
    """The folder below which wandb writes for a run folder or a table."""
    return out / "wandb" / table_id(out, path) if path.suffix == ".json" else path


def mark(out: Path, path: Path) -> dict[str, Any] | None:
    """What became of the last attempt: ok, reason, fingerprint, finished; None if there was none."""
    try:
        note = json.loads((home(out, path) / "wandb" / "published.json").read_text(encoding="utf-8"))
        return note if {"ok", "reason", "fingerprint"} <= note.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def start(out: Path, linger: float = LINGER) -> None:
    """Start the process that empties the queue of a results folder; it outlives this one, which is not told of its end."""
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH", "")) if part)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "vdqbench.track.background", str(out.resolve()), str(linger)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    threading.Thread(target=process.wait, daemon=True).start()


def chosen_mode(mode: str, environment: Mapping[str, str]) -> str:
    """`auto` made definite: the user's WANDB_MODE if set, else online where there is a login for the server, else offline."""
    if mode != "auto":
        return mode
    if environment.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return environment["WANDB_MODE"]
    return "online" if environment.get("WANDB_API_KEY") or _in_netrc(environment) else "offline"


def _in_netrc(environment: Mapping[str, str]) -> bool:
    host = urlsplit(environment.get("WANDB_BASE_URL", SERVER)).hostname or ""
    home = Path(environment.get("HOME", "~")).expanduser()
    for path in (Path(environment["NETRC"]),) if "NETRC" in environment else (home / ".netrc", home / "_netrc"):
        try:
            if netrc.netrc(str(path)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
