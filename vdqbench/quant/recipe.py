"""A method as a value: one part or none in each of the five slots, and the bit-widths. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vdqbench.errors import ConfigError, Unsupported, nearest
from vdqbench.quant.format import FLOAT_BITS, families, make, of_tensor
from vdqbench.quant.parts import (
    ActivationPart,
    Bits,
    DrawPart,
    Part,
    ReusePart,
    SchedulePart,
    Site,
    SitePart,
    TransformPart,
    WeightPart,
    build,
    check_ranges,
    find,
    names,
)

VERSION = 1
"""Of what all recipes share; raise it when their output changes."""
KEYS = ("name", "ranges", "sites", "transform", "weight", "activation", "schedule", "reuse", "calibration")
TEMPORAL, TEMPORAL_SOURCE = ("time_proj", "modulation"), "time_emb.out"
"""Roles of the layers that read the features of the timestep (alone, or mixed with others), and of the one that makes them."""


@dataclass(frozen=True)
class Temporal:
    """How the features of the timestep are quantized, where not as every other input.

    Attributes:
        part: their grid; None keeps them in floating point.
        site: `post`: as the input of the layers that read them (after the activation function); `pre`: as the output of the
            layer that makes them, and not again as an input.
    """

    part: ActivationPart | None
    site: str = "post"

    @classmethod
    def from_config(cls, node: Any) -> Temporal | None:
        """From `method.activation.temporal`: nothing, `fp`, or a grid with a site."""
        if node is None or node == "fp":
            return cls(None) if node else None
        if not isinstance(node, Mapping):
            raise ConfigError(f"method.activation.temporal={node} must be null (as other inputs), fp, or a grid with its options")
        site = node.get("site", "post")
        if site not in ("pre", "post"):
            raise ConfigError(f"method.activation.temporal.site={site} must be pre (before the activation function) or post")
        rest = {key: value for key, value in node.items() if key != "site"}
        return cls(_selected(rest, "activation.temporal", "activations", "grid"), site)

    def semantic(self) -> dict[str, Any]:
        return {"slot": "method.activation.temporal", "site": self.site, "grid": self.part.semantic() if self.part else None}


def on_model(method: Mapping[str, Any], sites: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `method` node with what a model brings along.

    Args:
        sites: `only`, layers that are quantized on this model besides those that the method names, and `bits`, which count where the
            method does not say what becomes of a layer: its own patterns come after them, and one with a grid of its own for the
            features of the timestep says all about the layers that read them.

    Raises:
        ConfigError: another key in `sites`.
    """
    for key in sites:
        if key not in ("only", "bits"):
            raise ConfigError(f"model.sites.{key} is not an option of a model{nearest(str(key), ('only', 'bits'))}")
    own, bits = _mapping(method, "sites"), sites.get("bits", {})
    if _mapping(method, "activation").get("temporal") is not None:
        bits = {pattern: given for pattern, given in bits.items() if pattern not in TEMPORAL}
    merged = {**own, "bits": {**bits, **(own.get("bits") or {})}}
    if "*" not in (only := list(own.get("only", ["*"]))):
        merged["only"] = [*only, *(pattern for pattern in sites.get("only", []) if pattern not in only)]
    return {**method, "sites": merged} if sites else method


@dataclass(frozen=True)
class Recipe:
    """What is done to a model.

    Attributes:
        steps: number of steps of the sampler.
        weight_bits, activation_bits: 2..15, or None where weights or activations stay in floating point.
        formats: families of number formats of weights and activations.
        temporal: of the features of the timestep, where it differs from `activation`.
        draw: the moments of calibration that are looked at.
    """

    name: str
    steps: int
    weight_bits: int | None
    activation_bits: int | None
    sites: tuple[SitePart, ...]
    transforms: tuple[TransformPart, ...]
    weight: WeightPart | None
    activation: ActivationPart | None
    schedule: SchedulePart
    formats: tuple[str, str]
    temporal: Temporal | None
    reuse: tuple[ReusePart, ...]
    draw: DrawPart

    @classmethod
    def from_config(cls, method: Mapping[str, Any], bits: Mapping[str, Any], steps: int) -> Recipe:
        """Validate a `method` node and a `bits` node (plain mappings, resolved) for a sampler of `steps` steps.

        Raises:
            ConfigError: one sentence with key, value and expectation.
        """
        for key in method:
            if key not in KEYS:
                raise ConfigError(f"method.{key} is not an option of a method{nearest(str(key), KEYS)}")
        weight, activation = _named(method, "weight", "weights", "grid"), _named(method, "activation", "activations", "grid", ("temporal",))
        sites, transform, reuse = _mapping(method, "sites"), _mapping(method, "transform"), _mapping(method, "reuse")
        weight_bits, activation_bits = _bits(bits, "weight") if weight else None, _bits(bits, "activation") if activation else None
        recipe = cls(
            name=str(method.get("name")),
            steps=steps,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
            sites=tuple(build(find("sites", key, "method.sites"), {"value": value}) for key, value in sites.items()),
            transforms=tuple(build(find("transforms", key, "method.transform"), options or {}) for key, options in transform.items()),
            weight=weight,
            activation=activation,
            schedule=_named(method, "schedule", "schedules", "policy") or build(find("schedules", "fixed", ""), {}),
            formats=_formats(bits, weight_bits, activation_bits),
            temporal=Temporal.from_config(_mapping(method, "activation").get("temporal")),
            reuse=tuple(build(find("reuses", key, "method.reuse"), options or {}) for key, options in reuse.items()),
            draw=_named(method, "calibration", "draws", "draw") or build(find("draws", "all", ""), {}),
        )
        ranges = method.get("ranges")  # which parts refer to
        if ranges is not None and any(getattr(part, "ranges", None) == ranges for part in recipe.parts):
            check_ranges("method.ranges", ranges, steps)
        for part in recipe.parts:
            part.check(steps)
        return recipe

    @property
    def is_fp(self) -> bool:
        """Whether the model stays as it is."""
        return self.weight_bits is None and self.activation_bits is None and not self._bits_vary and not self.reuse

    @property
    def _bits_vary(self) -> bool:
        return any(part.sets_bits for part in (*self.sites, self.schedule))

    @property
    def parts(self) -> list[Part]:
        """The parts that change the output."""
        if self.is_fp:
            return []
        if self.weight_bits is None and self.activation_bits is None and not self._bits_vary:
            return [*self.reuse]
        weight = [self.weight] if self.weight and (self.weight_bits or self._bits_vary) else []
        activation = [self.activation] if self.activation and (self.activation_bits or self._bits_vary) else []
        temporal = [self.temporal.part] if activation and self.temporal and self.temporal.part else []
        parts: list[Part] = [*self.sites, *self.transforms, *weight, *activation, *temporal, self.schedule, *self.reuse]
        return [*parts, self.draw] if any(part.needs for part in parts) else parts

    @property
    def needs(self) -> set[str]:
        """What of calibration the parts need: names of statistics, or `calls`."""
        return {name for part in self.parts for name in part.needs}

    @property
    def needs_calibration(self) -> bool:
        return bool(self.needs)

    @property
    def batch_dependent(self) -> bool:
        """Whether a video depends on what else is in its batch, so that it must be generated by itself."""
        of_batch = self.activation in self.parts and of_tensor(self.formats[1])
        return of_batch or any(part.batch_dependent for part in self.parts)

    @property
    def notes(self) -> list[str]:
        """What must stand beside every result of the recipe, such as a search that was cut short."""
        suffix = self.weight.label_suffix() if self.weight is not None and self.weight in self.parts else ""
        return [suffix] if suffix else []

    @property
    def copies(self) -> int:
        """Number of differently transformed weights of each layer."""
        return 1 if self.is_fp else max((part.ranges for part in self.transforms), default=1)

    def semantic(self) -> dict[str, Any]:
        """What changes the output, as JSON values: two recipes with the same dict make the same videos."""
        if self.is_fp:
            return {"fp": True}
        temporal = self.temporal.part if self.temporal else None
        parts = [{"slot": type(part).where.partition(".{")[0], **part.semantic()} for part in self.parts if part is not temporal]
        if self.temporal and self.activation in self.parts:
            parts.append(self.temporal.semantic())
        effective = [part for part in parts if part.get("value", True)]  # an exception for no layer is none
        return {"version": VERSION, "bits": [self.weight_bits, self.activation_bits], "formats": list(self.formats), "parts": effective}

    def activation_at(self, site: Site) -> tuple[ActivationPart | None, ActivationPart | None]:
        """How the input and the output of a layer are quantized; None is not at all."""
        if self.activation is None or self.activation not in self.parts:
            return None, None
        temporal = self.temporal
        if temporal and site.role in TEMPORAL:
            return (temporal.part if temporal.site == "post" else None), None
        if temporal and temporal.site == "pre" and site.role == TEMPORAL_SOURCE:
            return self.activation, temporal.part
        return self.activation, None

    def assign(self, layers: Iterable[Site]) -> list[Site]:
        """The layers with the bits that this recipe gives them."""
        sites = [Site(s.name, s.role, s.shape, self.weight_bits, self.activation_bits, formats=self.formats) for s in layers]
        for part in self.sites:
            sites = part.apply(sites)
        return sites

    def plan(self, site: Site, chosen: Sequence[int] | None = None) -> list[Bits]:
        """Bits of a layer at each step as they count: the schedule's, and none for an input that its grid leaves in floating point."""
        plan = self.schedule.plan(site, self.steps, chosen)
        of_input, _ = self.activation_at(site)
        return plan if of_input is not None and not of_input.floating else [(weight, None) for weight, _ in plan]

    def quantized(self, sites: Iterable[Site]) -> list[Site]:
        """Those of the layers that are quantized at some step."""
        return [site for site in sites if any(bits != (None, None) for bits in self.schedule.plan(site, self.steps))]

    def average_bits(
        self, layers: Iterable[Site], chosen: Sequence[int] | None = None, computed: Sequence[bool] | None = None
    ) -> tuple[float, float]:
        """Bits of weights and activations, averaged over computed steps and layers, which count by their weight elements.

        Layers kept in floating point count with 16 bits; layers that the recipe leaves out (`sites.only`) do not count.

        Args:
            chosen: what a schedule that decides on the way chose at each step of a trajectory; nominal bits without it.
            computed: which steps were computed; all without it.
        """
        total, weight, activation = 0, 0.0, 0.0
        for site in self.assign(layers):
            plan = self.plan(site, chosen)
            plan = [bits for bits, counts in zip(plan, computed or [True] * self.steps, strict=True) if counts]
            total += site.elements
            weight += site.elements * sum(_stored(w, site.formats[0]) for w, _ in plan) / len(plan)
            activation += site.elements * sum(_stored(a, site.formats[1]) for _, a in plan) / len(plan)
        return (weight / total, activation / total) if total else (float(FLOAT_BITS), float(FLOAT_BITS))


def _stored(bits: int | None, family: str) -> float:
    """Bits of an element, its share of a block's scale included."""
    return FLOAT_BITS if bits is None else make(family, bits).stored_bits


def _mapping(method: Mapping[str, Any], slot: str) -> Mapping[str, Any]:
    node = method.get(slot) or {}
    if not isinstance(node, Mapping):
        raise ConfigError(f"method.{slot}={node} must be a mapping from names of parts to their options, or {{}}")
    return node


def _named(method: Mapping[str, Any], slot: str, folder: str, selector: str, apart: Sequence[str] = ()) -> Any:
    """The part that `method.<slot>.<selector>` names, with the other keys (but those `apart`) as its options; None for null."""
    return _selected({key: value for key, value in _mapping(method, slot).items() if key not in apart}, slot, folder, selector)


def _selected(node: Mapping[str, Any], slot: str, folder: str, selector: str) -> Any:
    if not node:
        return None
    if selector not in node:
        raise ConfigError(f"method.{slot}.{selector} is missing{nearest('', names(folder))}")
    options = {key: value for key, value in node.items() if key != selector}
    return build(find(folder, node[selector], f"method.{slot}.{selector}"), options)


def _bits(bits: Mapping[str, Any], key: str) -> int | None:
    value = bits.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 2 <= value <= FLOAT_BITS:
        raise ConfigError(f"bits.{key}={value} must be a whole number in 2..{FLOAT_BITS}; {FLOAT_BITS} keeps floating point")
    return None if value == FLOAT_BITS else value


def _formats(bits: Mapping[str, Any], weight: int | None, activation: int | None) -> tuple[str, str]:
    """Families of weights and activations from `bits.format`, one name or {weight, activation}."""
    given = bits.get("format") or "int"
    both = given if isinstance(given, Mapping) else {"weight": given, "activation": given}
    chosen = []
    for key, width in (("weight", weight), ("activation", activation)):
        name = both.get(key, "int")
        if name not in families():
            raise ConfigError(f"bits.format={given}: {name} is not a number format{nearest(str(name), families())}")
        if width is not None:
            try:
                make(name, width)
            except Unsupported as error:
                raise ConfigError(f"bits.{key}={width}: {error}") from None
        chosen.append(name)
    return chosen[0], chosen[1]
