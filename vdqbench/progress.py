"""One live line per stage, with counts and time left, in a terminal; plain lines in a log; nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Reports stages on standard error; standard output stays free for tables. Several processes take plain lines (`live` off)."""

    def __init__(self, quiet: bool = False, interval: float = 10.0, live: bool = True) -> None:
        self.quiet, self.interval, self.live = quiet, interval, live
        self.console = Console(stderr=True, quiet=quiet)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Within it, call the yielded function with the number of units just finished."""
        if self.console.is_terminal and self.live and not self.quiet:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            with Bar(*columns, console=self.console) as bar:
                task = bar.add_task(name, total=total)
                yield lambda count: bar.advance(task, count)
            return
        began = reported = time.monotonic()
        done = 0

        def advance(count: int) -> None:
            nonlocal done, reported
            done += count
            now = time.monotonic()
            if now - reported >= self.interval and done < total:
                left = (now - began) / done * (total - done)
                self.say(f"{name}: {done}/{total}, {left:.0f} s left")
                reported = now

        yield advance
        self.say(f"{name}: {done}/{total} in {time.monotonic() - began:.1f} s")


def width() -> int:
    """Columns of the terminal, 110 where there is none."""
    return Console().width if sys.stdout.isatty() else 110
