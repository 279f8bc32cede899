"""What the plots of a report show, as numbers: the page and the figures for a paper are both drawn from these."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vdqbench.record import Record
from vdqbench.report.paired import over_prompts
from vdqbench.report.pareto import front
from vdqbench.report.settings import Setting, bits, flat, identity, setting_key
from vdqbench.score import needs_references

COSTS = {"weight_size": "Weight size (MB)", "tbops": "TBOPs", "seconds_per_step": "Time per step (s)"}
"""Scores that quality is set against; the last one is a measurement."""
MEASURED = ("seconds_per_step", "peak_memory")
"""Scores that a simulation says nothing about."""


@dataclass(frozen=True)
class Axis:
    """A score: its name in records, its label, and whether higher is better (None: neither)."""

    name: str
    label: str
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Point:
    """A cell in a plot, by its record's identity; `se` is the standard error of y over prompts."""

    cell: str
    x: float
    y: float
    se: float | None = None


@dataclass(frozen=True)
class Tradeoff:
    """Score against cost, the cells that no other one beats in both (`front`), and for measured costs the machine."""

    cost: Axis
    score: Axis
    points: tuple[Point, ...]
    front: tuple[str, ...]
    machine: str | None = None


@dataclass(frozen=True)
class Line:
    """Points that belong together, by rising x."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curves:
    """A score along bit-widths or along one option.

    Attributes:
        kind: `bits`, `ranges` or `threshold`.
        x: what x is; `ticks` names the positions 0, 1, ... where x is no number.
        reference: the score in full precision, if it has one.
    """

    kind: str
    x: str
    score: Axis
    lines: tuple[Line, ...]
    ticks: tuple[str, ...] = ()
    reference: float | None = None


@dataclass(frozen=True)
class HeatMap:
    """Values of layers (rows) at steps (columns); None where there is none."""

    rows: tuple[str, ...]
    roles: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]

    @property
    def steps(self) -> int:
        return max((len(row) for row in self.values), default=0)


@dataclass(frozen=True)
class Pattern:
    """What was decided at each step of each video: activation bits, and whether the step was computed; None where nothing was decided."""

    samples: tuple[str, ...]
    bits: tuple[tuple[int, ...], ...] | None
    computed: tuple[tuple[bool, ...], ...] | None


def qualities(records: Sequence[Record]) -> list[Axis]:
    """Scores with a direction that are not costs, the ones that most records have first."""
    found: dict[str, Axis] = {}
    counts: dict[str, int] = {}
    for record in records:
        for name, entry in record.scores.items():
            if entry.get("higher_is_better") is None or name in (*COSTS, *MEASURED) or entry.get("metric") == "system":
                continue
            found.setdefault(name, Axis(name, str(entry.get("label") or name), bool(entry["higher_is_better"])))
            counts[name] = counts.get(name, 0) + 1
    return sorted(found.values(), key=lambda axis: -counts[axis.name])


def mean(record: Record, score: str) -> float | None:
    """The mean of a score; None if the record has none that is finite, or one that says nothing."""
    value = record.scores.get(score, {}).get("mean")
    return None if value is None or not math.isfinite(value) or meaningless(record, score) else float(value)


def meaningless(record: Record, score: str) -> str | None:
    """Why a score of this record says nothing: a measurement of a simulation, or a comparison of the reference with itself."""
    if score in MEASURED and record.cell.get("kernel") == "sim":
        return "only measured with integer kernels; kernel=sim computes in floating point"
    if is_compared(record, score) and record.key == setting_key(record):
        return "a comparison with the reference, which this is"
    return None


def is_compared(record: Record, score: str) -> bool:
    """Whether the score compares videos, one by one or as a set, with the full-precision ones."""
    metric = record.scores.get(score, {}).get("metric")
    return needs_references((record.config.get("metric") or {}).get(metric) or {})


def _point(record: Record, x: float, score: Axis) -> Point | None:
    y = mean(record, score.name)
    own = over_prompts(record.by_sample(score.name))
    return None if y is None else Point(identity(record), x, y, own.se if own else None)


def tradeoffs(setting: Setting, score: Axis) -> list[Tradeoff]:
    """The score against each cost that two cells or more have; measured ones machine by machine, and only where a kernel was measured."""
    made = []
    for name, label in COSTS.items():
        machines: dict[str | None, list[Point]] = {}
        for record in setting.records:
            cost = mean(record, name)
            if cost is not None and (point := _point(record, cost, score)) is not None:
                machines.setdefault(machine(record) if name in MEASURED else None, []).append(point)
        measured = {identity(record) for record in setting.records if record.cell.get("kernel") not in (None, "sim")}
        for where, points in machines.items():
            if len(points) < 2 or (name in MEASURED and not measured & {point.cell for point in points}):
                continue
            best = front([(point.x, point.y) for point in points], score.higher_is_better is not False)
            made.append(Tradeoff(Axis(name, label, False), score, tuple(points), tuple(points[i].cell for i in best), where))
    return made


def machine(record: Record) -> str:
    """What a measurement was made on: the accelerator where the record names one, else the processor."""
    about = record.environment
    return str(about.get("accelerator") or about.get("gpu") or about.get("processor") or "an unknown machine")


def bit_curves(setting: Setting, score: Axis) -> Curves | None:
    """The score along the bit-widths, a line for each method and its options; None if no method has two bit-widths."""
    names = {record.key: str(record.cell.get("bits")) for record in setting.quantized}
    widths = {names[record.key]: bits(record) for record in setting.quantized}
    ticks = sorted(widths, key=lambda name: (-widths[name][0], -widths[name][1], name))
    lines: dict[str, list[Point]] = {}
    for record in setting.quantized:
        point = _point(record, float(ticks.index(names[record.key])), score)
        if point is not None:
            lines.setdefault(setting.families[identity(record)], []).append(point)
    found = _lines(lines)
    if not any(len(line.points) > 1 for line in found):
        return None
    return Curves("bits", "bits of weights and activations", score, found, tuple(ticks), _reference(setting, score))


def range_count(record: Record) -> tuple[str, float] | None:
    """What the cell is besides its number of time ranges, and that number; None for a method without static ranges."""
    method = record.config.get("method") or {}
    count = _at(method, "activation.ranges")
    if count is None or (record.cell.get("bits") in (None, "fp")):
        return None
    return _rest(record, lambda name: name == "ranges" or name.endswith(".ranges")), float(count)


def threshold(record: Record) -> tuple[str, float] | None:
    """What the cell is besides the threshold of its bit switching, and that threshold, which may be infinite; None without one."""
    method = record.config.get("method") or {}
    if _at(method, "schedule.policy") != "delta_gbs" or (delta := _at(method, "schedule.delta")) is None:
        return None
    return _rest(record, lambda name: name == "schedule.delta"), float(delta)


SWEEPS: Mapping[str, tuple[str, Callable[[Record], tuple[str, float] | None]]] = {
    "ranges": ("time ranges", range_count),
    "threshold": ("threshold δ of bit switching", threshold),
}
"""Options that a score is drawn along: label, and how cells are told apart."""


def sweep_curves(setting: Setting, kind: str, score: Axis) -> Curves | None:
    """The score along one option, a line for all cells that differ in nothing else; None if no line has two values of the option."""
    x, key = SWEEPS[kind]
    groups: dict[str, list[tuple[Record, float]]] = {}
    for record in {record.key: record for record in setting.quantized}.values():
        if (found := key(record)) is not None:
            groups.setdefault(found[0], []).append((record, found[1]))
    lines: dict[str, list[Point]] = {}
    for members in groups.values():
        points = [point for record, value in members if math.isfinite(value) and (point := _point(record, value, score)) is not None]
        if len({point.x for point in points}) > 1:
            name = f"{_family(record for record, _ in members)} {members[0][0].cell.get('bits')}"
            lines[name if name not in lines else f"{name} [{members[0][0].key[:6]}]"] = points
    return Curves(kind, x, score, _lines(lines), (), _reference(setting, score)) if lines else None


def _family(records: Iterator[Record]) -> str:
    return "/".join(dict.fromkeys(str(record.cell.get("method")) for record in records))


def _rest(record: Record, dropped: Callable[[str], bool]) -> str:
    options = {name: value for name, value in flat(record.config.get("method") or {}).items() if name != "name" and not dropped(name)}
    return json.dumps([record.cell.get("bits"), record.cell.get("kernel"), options], sort_keys=True, default=str)


def _at(node: Any, path: str) -> Any:
    for name in path.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def _lines(lines: Mapping[str, Sequence[Point]]) -> tuple[Line, ...]:
    return tuple(Line(label, tuple(sorted(points, key=lambda point: point.x))) for label, points in lines.items() if points)


def _reference(setting: Setting, score: Axis) -> float | None:
    return mean(setting.reference, score.name) if setting.reference is not None else None


def sqnr_map(record: Record) -> HeatMap | None:
    """Signal-to-noise ratio of the layers' outputs by step, in dB; None where it was not measured."""
    found = record.quantization.get("sqnr") or {}
    layers, roles = found.get("layers") or {}, found.get("roles") or {}
    if not layers:
        return None
    values = tuple(tuple(None if value is None else float(value) for value in row) for row in layers.values())
    return HeatMap(tuple(layers), tuple(str(roles.get(name, "")) for name in layers), values)


def pattern(record: Record) -> Pattern | None:
    """What a schedule or a reuse of steps decided on the way; None where nothing was left to decide."""
    traces = record.quantization.get("trace") or []
    if not traces:
        return None
    if len(traces) == len(record.videos):
        names = tuple(f"{video['prompt_id']} · seed {video['seed']}" for video in record.videos)
    else:
        names = tuple(f"video {i + 1}" for i in range(len(traces)))
    chosen = tuple(tuple(int(width) for width in trace["chosen"]) for trace in traces if trace.get("chosen") and _switches(record))
    computed = tuple(tuple(bool(step) for step in trace["computed"]) for trace in traces if trace.get("computed"))
    found = Pattern(names, chosen if len(chosen) == len(traces) else None, computed if len(computed) == len(traces) else None)
    return found if found.bits or found.computed else None


def _switches(record: Record) -> bool:
    """Whether any layer takes part in bit switching: its own activation bits lie strictly between the few and the many."""
    schedule, sites = (_at(record.config, f"method.{part}") or {} for part in ("schedule", "sites"))
    low, high = schedule.get("low", 4), schedule.get("high", 8)
    own = [value for value in flat({"cell": bits(record)[1], **(sites.get("bits") or {})}).values() if isinstance(value, int | float)]
    return sites.get("file") is not None or any(low < width < high for width in own)
