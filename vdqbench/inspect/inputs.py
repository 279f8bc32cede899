"""The distinct inputs of a model's layers: layers that read the same tensor are counted once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from vdqbench.calibrate import Calibration
from vdqbench.errors import ConfigError, nearest


@dataclass(frozen=True)
class Input:
    """What one or more layers read.

    Attributes:
        layer: the first of them, under which calibration keeps its statistics.
        role: of all of them, such as `self_attn.q/k/v`.
    """

    layer: str
    role: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """`self_attn` and the like."""
        return tuple(part.partition(".")[0] for part in self.role.split(" + "))


def chosen(layers: Mapping[str, str], patterns: str | None) -> dict[str, str]:
    """The layers whose name or role fits one of the patterns (fnmatch, separated by commas); all of them without patterns.

    Raises:
        ConfigError: a pattern fits none.
    """
    if patterns is None:
        return dict(layers)
    wanted = patterns.split(",")
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) or fnmatchcase(role, pattern) for name, role in layers.items()):
            raise ConfigError(f"layers={patterns}: {pattern} fits no layer's name or role{nearest(pattern, set(layers.values()))}")
    return {name: role for name, role in layers.items() if any(fnmatchcase(name, p) or fnmatchcase(role, p) for p in wanted)}


def inputs_of(layers: Mapping[str, str], calibration: Calibration) -> list[Input]:
    """The inputs of some layers, in the order of the model."""
    readers: dict[str, list[str]] = {}
    for name, role in layers.items():
        calibration.statistics(name)  # refuses a layer that was not observed
        readers.setdefault(calibration.source[name], []).append(role)
    return [Input(source, joined(roles)) for source, roles in readers.items()]


def joined(roles: list[str]) -> str:
    """One name for several roles.

    >>> joined(["self_attn.q", "self_attn.k", "self_attn.k", "ffn.up"])
    'self_attn.q/k + ffn.up'
    """
    parts: dict[str, dict[str, None]] = {}
    for role in roles:
        kind, _, part = role.partition(".")
        parts.setdefault(kind, {})[part] = None
    return " + ".join(kind + "." * bool("".join(own)) + "/".join(filter(None, own)) for kind, own in parts.items())
