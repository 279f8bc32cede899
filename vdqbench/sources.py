"""Where weights come from and what names their content: packaged ones, a folder, the hub's local cache, or a download from the web."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from vdqbench.errors import ConfigError
from vdqbench.store import sha256, write_atomic

WEIGHTS = Path(__file__).resolve().parent / "models" / "weights"
REMEMBERED = 64 * 2**20
"""Files of at least so many bytes are hashed once per machine, not once per process."""


@dataclass(frozen=True)
class Source:
    """A place of weights: `packaged` or `packaged/NAME`, `hub:OWNER/NAME` or `hub:OWNER/NAME@REVISION`, an address, or a folder.

    What an address (`https://...`, or `torchvision:NAME` for one that torchvision knows) stands for is one file, kept below the user's
    cache once it was fetched (`vdqbench.fetch`).
    """

    text: str

    @property
    def repository(self) -> str | None:
        """OWNER/NAME of a source on the hub."""
        return self.text.removeprefix("hub:").partition("@")[0] if self.text.startswith("hub:") else None

    @property
    def revision(self) -> str | None:
        """Branch, tag or commit of a source on the hub; None for its main branch."""
        return self.text.partition("@")[2] or None if self.repository else None

    @property
    def address(self) -> str | None:
        """Of a file on the web."""
        return self.text if re.match(r"https?://|torchvision:", self.text) else None

    @property
    def folder(self) -> Path | None:
        """Where the files are on this machine; None if the hub's cache has no snapshot. Nothing is fetched."""
        if self.repository:
            return _snapshot(self.repository, self.revision)
        if self.address:
            return cache("assets") / hashlib.sha256(self.address.encode()).hexdigest()[:12]
        if re.fullmatch(r"packaged(/\w+)?", self.text):
            return WEIGHTS / self.text.removeprefix("packaged").removeprefix("/")
        return Path(self.text).expanduser()

    def missing(self, patterns: Iterable[str]) -> list[str]:
        """Which of the files (paths below the folder, or patterns such as `vae/*`) are not here, parts that an index names included."""
        folder, wanted = self.folder, list(patterns)
        if folder is None:
            return wanted
        found = {one: matches(folder, one) for one in wanted}
        indices = [file for files in found.values() for file in files if file.name.endswith(".index.json")]
        parts = dict.fromkeys(part.relative_to(folder).as_posix() for index in indices for part in _parts(index))
        asked = [part for part in parts if any(fnmatchcase(part, one) for one in wanted)]  # an index of weights in another format is none
        return [one for one, files in found.items() if not files] + [part for part in asked if not (folder / part).is_file()]

    def identity(self, patterns: Iterable[str]) -> dict[str, str]:
        """What names the content of the files: the commit of a source on the hub, else the SHA-256 of each file by its path.

        Raises:
            ConfigError: there is nothing to name.
        """
        folder = self.folder
        if folder is None:
            raise ConfigError(f"{self.text} is not on this machine")
        if self.repository:
            return {f"hub:{self.repository}": folder.name}
        files = dict.fromkeys(file for one in patterns for file in matches(folder, one))
        return {file.relative_to(folder).as_posix(): digest(file) for file in files}


def matches(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder that a path or a pattern stands for, in the order of their names."""
    if not any(sign in pattern for sign in "*?["):
        return [folder / pattern] if (folder / pattern).is_file() else []
    return sorted(file for file in folder.glob(pattern) if file.is_file())


def _parts(index: Path) -> list[Path]:
    """Files that the weights of an index are in, beside it."""
    with suppress(OSError, ValueError, KeyError, AttributeError):
        return [index.parent / name for name in dict.fromkeys(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())]
    return []


def _snapshot(repository: str, revision: str | None) -> Path | None:
    """The folder of a snapshot in the hub's cache, named by its commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[], local_files_only=True))  # whole or not
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(f"hub:{repository} does not name a repository; write hub:OWNER/NAME") from error


def digest(path: Path) -> str:
    """SHA-256 of a file of weights, computed once as long as the file stays as it is (by path, time of change and size)."""
    status = path.stat()
    return _digest(path.resolve(), status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _digest(path: Path, modified: int, size: int) -> str:
    if size < REMEMBERED:
        return sha256(path)
    about = [str(path), modified, size]
    memory = cache("digests") / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(memory.read_text())
        if known["file"] == about:
            return str(known["sha256"])
    found = sha256(path)
    with suppress(OSError):  # a home that cannot be written to: it is hashed again next time
        write_atomic(memory, lambda file: file.write_text(json.dumps({"file": about, "sha256": found})))
    return found


def cache(name: str) -> Path:
    """A folder of the user's cache, which need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vdqbench" / name
