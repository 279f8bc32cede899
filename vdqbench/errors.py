"""Errors a user can act on: each is one sentence that names the key, the value, what is expected and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """What was asked for is wrong; nothing has run yet. Exit code 2."""


class NotHere(ConfigError):  # noqa: N818 - what is so, not whose fault
    """Weights are not on this machine; the sentence ends with the command that fetches them."""


class Unsupported(RuntimeError):  # noqa: N818 - the name of the state, not of a fault
    """Parts that are valid by themselves do not work together; the cell is skipped with this sentence as its reason."""


def nearest(word: object, names: Iterable[str]) -> str:
    """` (did you mean a or b?)` with the closest names, else ` (expected one of ...)` with all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(str(word), known, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    return f" (expected one of {', '.join(known)})" if known else " (there are none)"


def unknown(key: str, value: object, names: Iterable[str]) -> ConfigError:
    """A ConfigError for a name that does not exist, with the nearest existing ones."""
    return ConfigError(f"{key} has no {value!r}{nearest(value, names)}")
