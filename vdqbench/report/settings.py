"""Which cells can be compared, and what tells them apart: cells of one setting share reference, prompts, noise and sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vdqbench.record import Record


@dataclass(frozen=True)
class Setting:
    """Cells with one full-precision reference: the same model, sampler, prompts and noise.

    Attributes:
        key: of the reference cell.
        label: model, prompts with their number, sampler.
        records: the done ones of its cells, the reference first.
        reference: the reference's record, where it was run as a cell of its own.
        families: method and options of each record, by its identity: what bits are varied of.
    """

    key: str
    label: str
    model: str
    records: tuple[Record, ...]
    reference: Record | None
    families: Mapping[str, str]

    @property
    def quantized(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record is not self.reference)


def settings(records: Sequence[Record]) -> list[Setting]:
    """Settings of the done records, the one with most cells first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.state == "done" and setting_key(record):
            groups.setdefault(setting_key(record), []).append(record)
    named = families(records)
    titles = {key: _title(members[0]) for key, members in groups.items()}
    counts = Counter(titles.values())
    made = []
    for key, members in groups.items():
        members.sort(key=lambda record: (record.key != key or record.cell.get("method") != "fp", record.key != key, *_order(record)))
        reference = members[0] if members[0].key == key else None
        label = titles[key] if counts[titles[key]] == 1 else f"{titles[key]}, reference {key[:8]}"
        made.append(Setting(key, label, str(members[0].cell.get("model")), tuple(members), reference, named))
    return sorted(made, key=lambda setting: (-len(setting.records), setting.label))


def setting_key(record: Record) -> str:
    """Key of the record's reference cell; empty for a record that could not be read."""
    return str(record.keys.get("reference") or "")


def identity(record: Record) -> str:
    """What tells records apart: two methods that come to the same (ASQ is TSQ with one range) are cells with one key."""
    return f"{record.cell.get('method')}-{record.key}"


def _order(record: Record) -> tuple[str, float, float, str]:
    weight, activation = bits(record)
    return str(record.cell.get("method")), -weight, -activation, record.key


def bits(record: Record) -> tuple[float, float]:
    """Bits of weights and activations that the cell asks for."""
    return float(record.cell.get("weight") or 16), float(record.cell.get("activation") or 16)


def _title(record: Record) -> str:
    cell = record.cell
    seeds = f" × {cell['seeds']} seeds" if int(cell.get("seeds") or 1) > 1 else ""
    prompts = len({video["prompt_id"] for video in record.videos}) or cell.get("n")
    count = f"{prompts} {'prompt' if prompts == 1 else 'prompts'}"
    return f"{cell.get('model')}, {count} of {cell.get('prompts')}{seeds}, {cell.get('sampler')}"


def variants(records: Sequence[Record]) -> dict[str, str]:
    """What a method's cells differ in besides their bits, by the record's identity: `ranges=4`, or nothing where all have the same options.

    Of options that always change together (`ranges`, `activation.ranges`) the one with the shortest name stands for all.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(f"{record.cell.get('model')} {record.cell.get('method')}", []).append(record)
    return {key: text for members in groups.values() for key, text in _differences(members).items()}


def _differences(members: Sequence[Record]) -> dict[str, str]:
    flat = [_options(record) for record in members]
    columns = {name: tuple(str(options.get(name, "–")) for options in flat) for name in dict.fromkeys(n for o in flat for n in o)}
    short = _suffixes(columns)
    told: dict[tuple[str, ...], str] = {}
    for name in sorted(columns, key=lambda name: (name.count("."), len(name), name)):
        if len(set(columns[name])) > 1:
            told.setdefault(columns[name], name)
    return {
        identity(record): ", ".join(f"{short[name]}={values[i]}" for values, name in sorted(told.items(), key=lambda item: item[1]))
        for i, record in enumerate(members)
    }


def _suffixes(names: Iterable[str]) -> dict[str, str]:
    """The shortest end of each dotted name that no other one has: `delta` of `schedule.delta`."""
    ends = Counter(".".join(name.split(".")[i:]) for name in names for i in range(name.count(".") + 1))
    tails = {name: [".".join(name.split(".")[i:]) for i in range(name.count("."), -1, -1)] for name in names}
    return {name: next((tail for tail in tails[name] if ends[tail] == 1), name) for name in names}


def _options(record: Record) -> dict[str, Any]:
    """The options of the method, flat, and those of kernel and calibration under their names."""
    config = record.config
    return {
        **flat({key: value for key, value in (config.get("method") or {}).items() if key != "name"}),
        **flat({name: config.get(name) or {} for name in ("kernel", "calibration")}),
    }


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted names; lists are values."""
    made: dict[str, Any] = {}
    for name, value in node.items():
        made |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return made


def families(records: Sequence[Record]) -> dict[str, str]:
    """Method, with its options in brackets where they differ between the records, by the record's identity."""
    told = variants(records)
    return {name: str(r.cell.get("method")) + (f" ({told[name]})" if told[name] else "") for r in records for name in [identity(r)]}


def labels(records: Sequence[Record]) -> dict[str, str]:
    """A name for each record by its identity, unique in its setting: `method (options) bits`, and part of the key where needed."""
    names = families(records)
    for record in records:
        full = record.cell.get("bits") in (None, "fp")
        names[identity(record)] += "" if full else f" {record.cell.get('bits')}"
    counts = Counter((setting_key(record), names[identity(record)]) for record in records)
    alike = {identity(record): counts[setting_key(record), names[identity(record)]] > 1 for record in records}
    return {name: names[name] + (f" [{r.key[:6]}]" if alike[name] else "") for r in records for name in [identity(r)]}
