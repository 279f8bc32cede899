"""The only place that remembers: artefacts addressed by the hash of what they depend on.

An artefact is one file, `<root>/<kind>/<first two digits>/<key><suffix>`, with its SHA-256 beside it. It is written under
another name, synchronised and renamed, so a file that is there is whole; one whose checksum does not fit is set aside
and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)
CHECKSUM = ".sha256"


def key_of(value: Any) -> str:
    """16 hex digits that change whenever the JSON-able value does; the order of mappings does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be part of a key")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary path beside `path`, then put its file in place in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Store:
    """Artefacts of one results folder, shared by all processes that use it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, key: str, suffix: str) -> Path:
        """Where an artefact is or would be."""
        return self.root / kind / key[:2] / (key + suffix)

    def has(self, kind: str, key: str, suffix: str) -> bool:
        """Whether the artefact exists (its checksum is verified when it is read)."""
        path = self.path(kind, key, suffix)
        return path.exists() and _checksum_file(path).exists()

    def get(self, kind: str, key: str, suffix: str) -> Path | None:
        """The artefact's path; None if it is missing, or was corrupt and has been set aside."""
        path = self.path(kind, key, suffix)
        try:
            expected = _checksum_file(path).read_text().strip()
            actual = sha256(path)
        except FileNotFoundError:
            return None
        if actual == expected:
            return path
        log.warning(
            "%s is corrupt (SHA-256 %s, expected %s); set aside as %s.corrupt and made again", path, actual[:12], expected[:12], path.name
        )
        os.replace(path, path.with_name(path.name + ".corrupt"))
        return None

    def put(self, kind: str, key: str, suffix: str, write: Callable[[Path], Any]) -> Path:
        """Store what `write` writes to the path that it is given."""
        path = self.path(kind, key, suffix)

        def write_with_checksum(temporary: Path) -> None:
            write(temporary)
            write_atomic(_checksum_file(path), lambda file: file.write_text(sha256(temporary) + "\n"))

        write_atomic(path, write_with_checksum)
        log.info("made %s %s", kind, path.name)
        return path

    def discard(self, kind: str, key: str, suffix: str) -> None:
        """Delete an artefact that has served its purpose; nothing happens if it is not there."""
        path = self.path(kind, key, suffix)
        for file in (path, _checksum_file(path)):
            file.unlink(missing_ok=True)

    @contextmanager
    def lock(self, kind: str, key: str, waiting: Callable[[], Any] = lambda: None) -> Iterator[None]:
        """Hold the right to make the artefacts of one key; `waiting` is called once if another process holds it."""
        path = self.root / "locks" / f"{kind}-{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def busy(self) -> bool:
        """Whether some process is making an artefact now."""
        for path in (self.root / "locks").glob("*.lock"):
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                return True
        return False

    def entries(self) -> Iterator[tuple[str, str, Path]]:
        """(kind, key, path) of every artefact."""
        for checksum in sorted(self.root.glob(f"*/??/[!.]*{CHECKSUM}")):
            path = checksum.with_name(checksum.name.removesuffix(CHECKSUM))
            yield checksum.parents[1].name, path.name.split(".")[0], path

    def prune(self, needed: set[tuple[str, str]]) -> tuple[int, int]:
        """Delete every artefact whose (kind, key) is not needed, and what is corrupt; returns files and bytes freed."""
        files = size = 0
        doomed = [path for kind, key, path in self.entries() if (kind, key) not in needed]
        left = time.time() - 3600  # what a killed process left behind, not what a living one is writing
        doomed += [path for path in self.root.glob("*/??/*") if path.name.startswith(".") and path.stat().st_mtime < left]
        doomed += [path for path in self.root.glob("*/??/*.corrupt")]
        for path in doomed:
            for file in (path, _checksum_file(path)):
                if file.exists():
                    files, size = files + 1, size + file.stat().st_size
                    file.unlink()
        return files, size


def _checksum_file(path: Path) -> Path:
    return path.with_name(path.name + CHECKSUM)
