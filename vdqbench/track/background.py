"""The process that empties the queue of a results folder, one run after the other, and notes beside each what became of it."""

from __future__ import annotations

import datetime
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vdqbench.store import key_of, write_atomic
from vdqbench.track import Published
from vdqbench.track.facts import LAYOUT, Facts
from vdqbench.track.queue import Job, Queue
from vdqbench.track.wandb import home, mark

NICE = 10
"""Niceness of the process; each step weighs 1.25 times less."""
DROPPED = ("WANDB_MODE", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_SERVICE", "WANDB_NAME", "WANDB_JOB_TYPE")
"""Variables that would make a run into another one, or tie it to the user's own program."""


class Sender:
    """A process with wandb in it, started when it is needed and again after anything went wrong."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.mode: str | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.log = out / "wandb" / "sender.log"

    def send(self, job: Job, seconds: float) -> Published:
        """Have one run made; ends the process, and all it started, when that takes too long."""
        if self.process is None or self.mode != job.options["mode"]:
            self.close()
            self._start(str(job.options["mode"]))
        assert self.process is not None and self.process.stdin is not None
        try:
            self.process.stdin.write(f"{job.to_json()}\n".encode())
            self.process.stdin.flush()
            ok, reason = json.loads(self._line(time.monotonic() + seconds))
        except TimeoutError:
            self.kill()
            return Published(False, f"wandb was not done within tracker.timeout={seconds:g} s and was stopped")
        except (OSError, EOFError, ValueError):
            return Published(False, f"wandb ended with exit code {self.kill()}: {self._last_error()}")
        if not ok:
            self.kill()
        return Published(bool(ok), str(reason))

    def close(self, seconds: float = 30) -> None:
        """Let it end by itself."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        self.kill()

    def kill(self) -> int | None:
        """End it, and what it started; returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return process.returncode

    def _start(self, mode: str) -> None:
        self.mode = mode
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "vdqbench.track.sender", str(self.out)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(self.out, mode),
                process_group=0,
            )

    def _line(self, until: float) -> bytes:
        """The next line of its output.

        Raises:
            TimeoutError: there is none in time.
            EOFError: it has ended.
        """
        assert self.process is not None and self.process.stdout is not None
        pipe, line = self.process.stdout.fileno(), b""
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([pipe], [], [], left)[0]:
                raise TimeoutError
            part = os.read(pipe, 65536)
            if not part:
                raise EOFError
            line += part
        return line

    def _last_error(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "no message"


def environment(out: Path, mode: str) -> dict[str, str]:
    """The environment of that process: wandb's own folders below the results, and this package importable.

    Online, the user's configuration folder stays in use: it may name the server.
    """
    kinds = ("CACHE", "ARTIFACT") + (() if mode == "online" else ("CONFIG",))
    own = {f"WANDB_{kind}_DIR": str(out / "wandb" / kind.lower()) for kind in kinds}
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(dict.fromkeys(part for part in (package, *os.environ.get("PYTHONPATH", "").split(os.pathsep)) if part))
    inherited = {key: value for key, value in os.environ.items() if key not in DROPPED}
    return {**inherited, **own, "PYTHONPATH": path, "WANDB_SILENT": "true"}


def deliver(sender: Sender, job: Job) -> Published:
    """Have a job sent unless it was before and has not changed; what cannot be sent online is kept offline. Notes what became of it."""
    out = sender.out
    try:
        fingerprint = (
            key_of([LAYOUT, job.path.read_text(), dict(job.options)]) if job.is_table else Facts.of(job.path).fingerprint(job.options)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return _note(out, job, Published(False, f"there is nothing to send ({type(error).__name__}: {error})"), None)
    before = mark(out, job.path)
    if not job.again and before is not None and before["fingerprint"] == fingerprint:
        return Published(True, before["reason"])
    seconds = float(job.options["timeout"])
    result = _attempt(sender, job, seconds)
    if not result.ok and job.options["mode"] == "online":
        kept = _attempt(sender, replace(job, options={**job.options, "mode": "offline"}), seconds)
        result = Published(False, f"{result.reason}; {kept.reason if kept.ok else f'nor could it be kept offline: {kept.reason}'}")
    return _note(out, job, result, fingerprint if result.ok else None)


def _attempt(sender: Sender, job: Job, seconds: float) -> Published:
    """Have it sent; half a run is not left lying, because `wandb sync` would send it."""
    folder = home(sender.out, job.path) / "wandb"
    before = set(folder.glob("*run-*"))
    result = sender.send(job, seconds)
    for path in set() if result.ok else set(folder.glob("*run-*")) - before:
        shutil.rmtree(path, ignore_errors=True)
    return result


def _note(out: Path, job: Job, result: Published, fingerprint: str | None) -> Published:
    finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    text = json.dumps({**result._asdict(), "fingerprint": fingerprint, "finished": finished}) + "\n"
    folder = home(out, job.path) / "wandb"
    if job.is_table or job.path.is_dir():
        write_atomic(folder / "published.json", lambda file: file.write_text(text, encoding="utf-8"))
    return result


def empty(out: Path, wait: bool = False, linger: float = 0) -> Iterator[tuple[Path, Published]]:
    """Send everything that waits in the queue of a results folder; yields what became of each. Arguments as of `Queue.drain`."""
    sender = Sender(out)
    try:
        yield from Queue(out).drain(lambda job: deliver(sender, job), wait, linger)
    finally:
        sender.close()


def step_aside() -> None:
    """Take a tenth of what a run takes where both want a core: as a process, and as the session that schedulers weigh as a whole."""
    os.nice(NICE)
    if os.getsid(0) == os.getpid():  # else it is the user's session, and everything in it would wait
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(NICE))


if __name__ == "__main__":
    step_aside()
    for _ in empty(Path(sys.argv[1]), linger=float(sys.argv[2])):
        pass
