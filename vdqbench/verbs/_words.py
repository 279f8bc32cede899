"""The words of a verb that is about one cell: keys of its own, and overrides of the cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vdqbench.errors import ConfigError


def split(words: Sequence[str], kinds: Mapping[str, type], verb: str) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """Values of the verb's own keys (of the given types), overrides, and folders with configurations.

    Raises:
        ConfigError: a key of the verb without a value, with two, or with one of another type.
    """
    from vdqbench.sweep import Arguments

    arguments = Arguments.parse(words)
    if arguments.show_config:
        raise ConfigError(f"--cfg shows cells; leave out the word {verb} and its own keys to see the cell")
    own: dict[str, Any] = {}
    overrides = []
    for word in arguments.overrides:
        key, _, value = word.partition("=")
        if key not in kinds:
            overrides.append(word)
            continue
        if not value or key in own:
            raise ConfigError(f"{word}: {key} of vdqbench {verb} must be given once, with a value")
        try:
            own[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(f"{word}: {key} must be a {'whole ' * (kinds[key] is int)}number") from None
    return own, tuple(overrides), tuple(arguments.folders)
