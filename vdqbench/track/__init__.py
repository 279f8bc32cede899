"""Trackers publish records and tables elsewhere; what is on disk is the truth, and no tracker can fail a run or hold it up."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

PATIENCE = 10.0
"""Seconds that a tracker has to take something over; what takes longer is its own business, in the background."""


class Published(NamedTuple):
    """Whether it worked, and one sentence: why not, or where to; empty where there is nothing to say."""

    ok: bool
    reason: str


class Tracker(Protocol):
    """What the `_target_` of a `tracker` node makes from the node's other options."""

    def publish(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """Take over finished cells, by their run folders, and tables, by their .json files, all below `out`; returns at once."""

    def settle(self, out: Path, runs: Sequence[Path], tables: Sequence[Path]) -> Published:
        """How it stands with them, when the command that asked for them ends."""


def publish(out: str | Path, runs: Sequence[Path], tables: Sequence[Path], options: Mapping[str, Any]) -> Published:
    """Hand finished cells and tables to the tracker of a `tracker` node.

    Never raises, and comes back after PATIENCE seconds: what goes wrong is the reason.
    """
    return _within(PATIENCE, lambda: _build(options).publish(Path(out), runs, tables))


def settle(out: str | Path, runs: Sequence[Path], tables: Sequence[Path], options: Mapping[str, Any]) -> Published:
    """How it stands with what was handed over; the tracker may take the seconds of its option `wait` to see it through. Never raises."""
    try:
        seconds = float(options.get("wait", 0))
    except (TypeError, ValueError):
        return Published(False, f"tracker.wait={options.get('wait')} must be a number of seconds")
    return _within(PATIENCE + seconds, lambda: _build(options).settle(Path(out), runs, tables))


def _build(options: Mapping[str, Any]) -> Tracker:
    keywords = dict(options)
    module, name = keywords.pop("_target_").rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**keywords)


def _within(seconds: float, call: Callable[[], Published]) -> Published:
    """Its answer; a reason where it raises or has not come back after so many seconds."""
    answers: list[Published] = []

    def answer() -> None:
        try:
            answers.append(Published(*call()))
        except BaseException as error:
            answers.append(Published(False, f"{type(error).__name__}: {' '.join(str(error).split())}"))

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else Published(False, f"the tracker had not answered after {seconds:g} s and was left behind")
