"""What a sensitivity run is asked for, groups of layers, and what is found of each; plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.quant.format import FLOAT_BITS
from vdqbench.sensitivity.allocate import ALLOCATIONS
from vdqbench.tune import FAST

if TYPE_CHECKING:
    from vdqbench.models.base import Anatomy
    from vdqbench.quant.parts import Site

KEYS = ("kind", "role", "block", "layer", "range")
ASKED = {"cross_attn": "text", "temporal_attn": "time"}
"""What kinds of layers are judged for in ViDiT-Q's metric-decoupled analysis (arXiv 2406.02540); all others for quality."""
PROXIES = {"text": "guidance_error", "time": "temporal_error", "quality": "output_error"}
"""Errors of the denoiser in the place of scores, for `by=proxies`: not what the paper measures."""


@dataclass(frozen=True)
class Request:
    """What is to be measured, and what to make of it.

    Attributes:
        overrides, folders: of the cell, whose bits every group is quantized to.
        by: one of `vdqbench.probe.ERRORS`; a score; `proxies` or `metrics`, where each kind of layer has its own judge.
        group: what tells groups apart, of `KEYS`.
        ranges: equal parts of the steps, where groups are told apart by range.
        moments: of each range that are repeated, for the errors.
        budget, activation_budget: average bits of weights and activations to give out; None leaves those of the cell.
        candidates: widths to choose from.
        allocation: `greedy` or `decoupled`.
        judges: scores for `text`, `time` and `quality`, for `by=metrics`.
        name: of the folder of results; None names it after the cell.

    Raises:
        ConfigError: one sentence for what cannot be.
    """

    overrides: tuple[str, ...]
    folders: tuple[str, ...] = ()
    by: str = "output_error"
    group: tuple[str, ...] = ("role", "block", "range")
    ranges: int = 4
    moments: int = 2
    budget: float | None = None
    activation_budget: float | None = None
    candidates: tuple[int, ...] = (4, 6, 8)
    allocation: str = "greedy"
    judges: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None

    def __post_init__(self) -> None:
        for key in self.group:
            if key not in KEYS:
                raise ConfigError(f"group={','.join(self.group)}: {key} does not tell groups apart{nearest(key, KEYS)}")
        if not self.group or len(set(self.group)) != len(self.group):
            raise ConfigError(f"group={','.join(self.group)} must list different ones of {', '.join(KEYS)}")
        if self.allocation not in ALLOCATIONS:
            raise ConfigError(f"allocation={self.allocation} is not one{nearest(self.allocation, ALLOCATIONS)}")
        for name, value in (("ranges", self.ranges), ("moments", self.moments)):
            if value < 1:
                raise ConfigError(f"{name}={value} must be at least 1")
        if any(not 2 <= bits < FLOAT_BITS for bits in self.candidates) or len(set(self.candidates)) < 2:
            raise ConfigError(f"candidates={','.join(map(str, self.candidates))} must be at least two different widths in 2..15")
        if self.allocation == "decoupled" and (self.by not in ("proxies", "metrics") or not {"kind", "role", "layer"} & set(self.group)):
            raise ConfigError(
                "allocation=decoupled judges each kind of layer by its own score: give by=metrics (or by=proxies, errors of the "
                "denoiser in their place), and kind, role or layer in group"
            )
        if self.judges and self.by != "metrics":
            raise ConfigError(f"judge.{next(iter(self.judges))} is of by=metrics, and by={self.by}")

    @property
    def labels(self) -> list[str]:
        """What tells groups of layers apart."""
        return [key for key in self.group if key != "range"]

    @property
    def parts(self) -> int:
        """Ranges that are told apart."""
        return self.ranges if "range" in self.group else 1

    @property
    def fast(self) -> bool:
        """Whether errors of the denoiser judge, and no videos are made."""
        return self.by in (*FAST, "proxies")

    @property
    def variants(self) -> list[Variant]:
        """The cell's bits first, then those that an allocation chooses from."""
        found = [Variant("cell")]
        if self.budget is not None:
            found += [Variant("weight", bits) for bits in self.candidates]
        if self.activation_budget is not None:
            found += [Variant("activation", bits) for bits in self.candidates]
        return found

    def judge(self, group: Group, mini: bool) -> str:
        """The error or score that a group is judged by; on a mini, quality is what the minis' own network says."""
        if self.by == "proxies":
            return PROXIES[ASKED.get(group.kind or "", "quality")]
        if self.by != "metrics":
            return self.by
        scores = {"text": "clipsim", "time": "clip_temp", "quality": "mini_vqa_t" if mini else "vqa", **self.judges}
        return scores[ASKED.get(group.kind or "", "quality")]


@dataclass(frozen=True)
class Variant:
    """To what a group is quantized: `cell`, as the cell says; `weight` or `activation`, that alone to so many bits."""

    side: str
    bits: int | None = None

    @property
    def name(self) -> str:
        return self.side if self.bits is None else f"{self.side[0]}{self.bits}"

    @property
    def overrides(self) -> list[str]:
        """Of the cell."""
        return [] if self.bits is None else [f"bits.{key}={bits}" for key, bits in zip(("weight", "activation"), self.pair, strict=True)]

    @property
    def pair(self) -> tuple[int, int]:
        """Bits of weight and activation.

        Raises:
            ValueError: they are the cell's.
        """
        if self.bits is None:
            raise ValueError("the bits of this variant are the cell's")
        return (self.bits, FLOAT_BITS) if self.side == "weight" else (FLOAT_BITS, self.bits)


@dataclass(frozen=True)
class Group:
    """Layers that are quantized together.

    Attributes:
        labels: by what tells it from others (without the range).
        kind: of its layers (`self_attn`); None if they differ.
    """

    labels: Mapping[str, str]
    kind: str | None
    layers: tuple[Site, ...]

    @property
    def name(self) -> str:
        return "-".join(self.labels.values()) or "all"

    @property
    def elements(self) -> int:
        return sum(layer.elements for layer in self.layers)


@dataclass(frozen=True)
class Row:
    """What quantizing a group in a range of steps costs.

    Attributes:
        value: the error, or the score (None where its cell left none, for a reason).
        loss: the error, or by how much the score is worse than in full precision.
    """

    group: Group
    range: int
    variant: Variant
    judge: str
    value: float | None
    loss: float | None
    reason: str | None = None


def grouped(sites: Sequence[Site], anatomy: Anatomy, keys: Sequence[str]) -> list[Group]:
    """The layers in groups, in their order."""
    found: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        every = {"kind": site.role.partition(".")[0], "role": site.role, "block": _block(site.name, anatomy), "layer": site.name}
        found.setdefault(tuple(every[key] for key in keys), []).append(site)
    groups = []
    for labels, layers in found.items():
        kinds = {layer.role.partition(".")[0] for layer in layers}
        groups.append(Group(dict(zip(keys, labels, strict=True)), kinds.pop() if len(kinds) == 1 else None, tuple(layers)))
    return groups


def _block(layer: str, anatomy: Anatomy) -> str:
    """Index of the block that a layer is in; `-` outside of all blocks."""
    return next((str(i) for i, block in enumerate(anatomy.blocks) if layer.startswith(f"{block}.")), "-")


def sites_file(layers: Mapping[str, Any], ranges: int, comments: Sequence[str]) -> str:
    """The text of a file for `method.sites.file`: [weight, activation] bits of each layer in each range."""
    lines = [f"# {comment}" for comment in comments] + [f"ranges: {ranges}", "layers:"]
    return "\n".join(lines + [f"  {name}: {table}" for name, table in layers.items()]) + "\n"


def alone(group: Group, part: int, parts: int, variant: Variant) -> str:
    """A sites file that quantizes one group in one range, in a cell of floating point."""

    def bits(layer: Site) -> list[int]:
        own = (layer.weight_bits or FLOAT_BITS, layer.activation_bits or FLOAT_BITS)
        wanted = own if variant.bits is None else variant.pair
        return [FLOAT_BITS if before == FLOAT_BITS else new for before, new in zip(own, wanted, strict=True)]

    table = {layer.name: [bits(layer) if r == part else [FLOAT_BITS, FLOAT_BITS] for r in range(parts)] for layer in group.layers}
    return sites_file(table, parts, [f"{group.name} alone, in range {part} of {parts}"])
