"""What waits to be published: one small file each, so that nothing is lost when a process ends, and one process at a time sends."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from vdqbench.store import write_atomic
from vdqbench.track import Published

WAITING, TAKEN = ".json", ".taken"


@dataclass(frozen=True)
class Job:
    """The run folder of a cell or the .json file of a table, and how to send it; `again` sends also what has not changed."""

    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False

    @property
    def is_table(self) -> bool:
        return _is_table(self.path)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Raises ValueError, KeyError or TypeError for a file that is no job."""
        data = json.loads(file.read_text(encoding="utf-8"))
        return cls(Path(data["path"]), data["options"], data["again"])

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "path": str(self.path)})


class Queue:
    """The jobs of one results folder, in `<out>/wandb/queue`."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out / "wandb" / "queue"

    def name(self, path: Path) -> str:
        """What the job of a run folder or of a table is called; a second one takes the place of the first."""
        return table_id(self.out, path) if _is_table(path) else path.name

    def put(self, job: Job) -> None:
        """Add a job."""
        write_atomic(self.folder / f"{self.name(job.path)}{WAITING}", lambda file: file.write_text(job.to_json(), encoding="utf-8"))

    def pending(self, path: Path) -> bool:
        """Whether the job of a path still waits or is being sent."""
        return any((self.folder / f"{self.name(path)}{suffix}").exists() for suffix in (WAITING, TAKEN))

    def drain(self, deliver: Callable[[Job], Published], wait: bool = False, linger: float = 0) -> Iterator[tuple[Path, Published]]:
        """Take the jobs, oldest first, until none is left; yields the path of each and what became of it.

        Where another process is at it, that one takes them all, and this one goes home, or with `wait` looks on until they are done. Since
        a process looks once more after letting go, no job is left lying that was put before another's attempt.

        Args:
            linger: seconds without any job after which it ends; one that comes sooner finds everything warm.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder.parent / "queue.lock")
        while self._waiting() or (wait and self._taken()):
            try:
                lock.acquire(timeout=1 if wait else 0)
            except Timeout:
                if wait:
                    continue
                return
            try:
                for left in self._taken():  # by a process that was killed
                    os.replace(left, left.with_suffix(WAITING))
                until = time.monotonic() + linger
                while True:
                    if waiting := self._waiting():
                        yield from self._take(waiting[0], deliver)
                        until = time.monotonic() + linger
                    elif time.monotonic() < until:
                        time.sleep(0.3)
                    else:
                        break
            finally:
                lock.release()

    def _take(self, waiting: Path, deliver: Callable[[Job], Published]) -> Iterator[tuple[Path, Published]]:
        taken = waiting.with_suffix(TAKEN)
        os.replace(waiting, taken)
        try:
            job = Job.load(taken)
        except (OSError, ValueError, KeyError, TypeError):
            taken.unlink()
            return
        result = deliver(job)
        taken.unlink(missing_ok=True)
        yield job.path, result

    def _waiting(self) -> list[Path]:
        """Oldest first; a file may go while it is looked at."""
        found = []
        for file in self.folder.glob(f"[!.]*{WAITING}"):
            with suppress(FileNotFoundError):
                found.append((file.stat().st_mtime_ns, file))
        return [file for _, file in sorted(found)]

    def _taken(self) -> list[Path]:
        return sorted(self.folder.glob(f"[!.]*{TAKEN}"))


def table_id(out: Path, path: Path) -> str:
    """The run id of a table, by its file: the same whenever it is made again."""
    return "-".join(("table", *path.relative_to(out / "tables").with_suffix("").parts))


def _is_table(path: Path) -> bool:
    return path.suffix == ".json"
