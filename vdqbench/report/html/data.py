"""The mapping that the page is made of: a pure function of what was read. Nothing but this reaches the page."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import yaml

from vdqbench.record import STATES, Record, Sample
from vdqbench.report import series
from vdqbench.report.html.gather import Clip, Found, Run, Videos
from vdqbench.report.html.tables import laid_out
from vdqbench.report.paired import difference, over_prompts
from vdqbench.report.settings import Setting, families, identity, labels, setting_key, settings

FIELDS = ("model", "method", "bits", "weight", "activation", "prompts", "n", "seeds", "sampler", "kernel")
MINI = "is a small model with videos of its own domain: its numbers are not those of a model in a paper"


def page_data(found: Found, title: str, made: str, version: str, videos: Videos) -> dict[str, Any]:
    """Everything the page shows.

    Args:
        title: the heading; `made` is when (ISO 8601) and `version` by which vdqbench.
        videos: what was asked for, so that the page can say what it leaves out.
    """
    records = found.records
    groups = settings(records)
    clips = _Clips()
    counts = Counter(record.state for record in records)
    references = {setting.key: setting.reference for setting in groups}
    names, kinds = labels(records), families(records)
    return {
        "title": title,
        "made": made,
        "version": version,
        "videos": {"most": videos.most, "linked": videos.linked},
        "counts": {state: counts[state] for state in STATES},
        "minis": [f"{model} {MINI}" for model in sorted({_model(record) for record in records}) if _is_mini(model)],
        "warnings": [*found.troubles, *(text for setting in groups for text in protocol_warnings(setting))],
        "scores": _scores(records),
        "cells": [
            _cell(run, names[identity(run.record)], kinds[identity(run.record)], references.get(setting_key(run.record)), found, clips)
            for run in found.runs
        ],
        "settings": [_setting(setting, found, clips) for setting in groups],
        "activations": [{"key": key, "label": _calibrated(key, records), **_heat(heat)} for key, heat in found.activations.items()],
        "tables": [laid_out(table) for table in found.tables],
        "clips": clips.entries,
    }


class _Clips:
    """Numbers the clips, equal ones once."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.known: dict[Clip, int] = {}

    def number(self, clip: Clip | None) -> int | None:
        if clip is None:
            return None
        if clip not in self.known:
            self.known[clip] = len(self.entries)
            self.entries.append(asdict(clip))
        return self.known[clip]


def _model(record: Record) -> str:
    return str(record.cell.get("model"))


def _is_mini(model: str) -> bool:
    return model.startswith("mini_")


def _scores(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Scores of any record in the order of their first appearance, with the decimals that show four digits."""
    entries: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        for name, entry in record.scores.items():
            entries.setdefault(name, []).append(entry)
    quality = {axis.name for axis in series.qualities(records)}
    return [
        {
            "name": name,
            "label": next((str(entry["label"]) for entry in each if entry.get("label")), name),
            "better": next((entry["higher_is_better"] for entry in each if entry.get("higher_is_better") is not None), None),
            "metric": next((entry["metric"] for entry in each if entry.get("metric")), None),
            "quality": name in quality,
            "measured": name in series.MEASURED,
            "digits": digits([entry["mean"] for entry in each if entry.get("mean") is not None]),
        }
        for name, each in entries.items()
    ]


def digits(values: Sequence[float]) -> int:
    """Decimals with which values of this size show four digits, 0 to 6."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    return 2 if not sizes else min(6, max(0, 3 - math.floor(math.log10(median(sizes)))))


def protocol_warnings(setting: Setting) -> Iterator[str]:
    """Scores that the setting's cells were not given alike, so that they do not compare."""
    protocols: dict[str, set[str]] = {}
    names: dict[str, str] = {}
    for record in setting.records:
        for name, entry in record.scores.items():
            protocols.setdefault(name, set()).add(_inline(entry.get("protocol") or {}))
            names[name] = str(entry.get("label") or name)
    for name, texts in protocols.items():
        if len(texts) > 1:
            yield f"{setting.label}: {names[name]} was taken by different protocols and does not compare: {' | '.join(sorted(texts))}"


def _inline(node: Any) -> str:
    return yaml.safe_dump(node, default_flow_style=True, sort_keys=True, width=10_000, allow_unicode=True).strip()


def _cell(run: Run, label: str, family: str, reference: Record | None, found: Found, clips: _Clips) -> dict[str, Any]:
    record = run.record
    cell, own = record.cell, series.pattern(record)
    heat = series.sqnr_map(record)
    return {
        **{"id": identity(record), "key": record.key, "label": label, "family": family, "setting": setting_key(record)},
        **{name: cell.get(name) for name in FIELDS},
        **{"mini": _is_mini(_model(record)), "state": record.state, "reason": record.reason, "traceback": record.traceback},
        "reference": identity(reference) if reference is not None and reference is not record else None,
        "notes": [str(note) for note in cell.get("notes") or []],
        "scores": {name: _score(record, name, reference) for name in record.scores},
        "videos": [_video(record, i, found, clips) for i in range(len(record.videos))],
        "protocols": _protocols(record),
        "account": _account(record),
        "run": _run(record),
        "provenance": _provenance(record),
        "config": yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True) if record.config else "",
        "command": shlex.join(["vdqbench", *run.overrides]) if run.overrides else None,
        "calibrations": sorted({str(record.keys[name]) for name in ("statistics", "calibration") if record.keys.get(name)}),
        "sqnr": _heat(heat) if heat else None,
        "pattern": asdict(own) if own else None,
    }


def _score(record: Record, name: str, reference: Record | None) -> dict[str, Any]:
    """Mean, standard error over prompts, paired difference to the reference; a score that says nothing is a hole, with the reason."""
    entry = record.scores[name]
    if why := series.meaningless(record, name):
        return {"mean": None, "why": why}
    values = record.by_sample(name)
    own = over_prompts(values)
    made: dict[str, Any] = {"mean": entry["mean"], "se": own.se if own else None, "n": entry.get("n"), "interval": entry.get("interval")}
    compared = reference is not None and reference is not record and not series.is_compared(record, name)
    if reference is not None and compared and (apart := difference(values, reference.by_sample(name))) is not None:
        made["apart"] = {"mean": apart.mean, "se": apart.se, "n": apart.n, "significant": apart.significant}
    return made


def _video(record: Record, i: int, found: Found, clips: _Clips) -> dict[str, Any]:
    entry = record.videos[i]
    sample = _sample(entry)
    scored = {name: score["values"] for name, score in record.scores.items() if score.get("values") is not None}
    values = {name: each[i] for name, each in scored.items() if not series.meaningless(record, name)}
    return {
        **{"id": sample[0], "prompt": str(entry["prompt"]), "seed": sample[1], "values": values},
        "clip": clips.number(found.clips.get((identity(record), sample))),
    }


def _sample(entry: Mapping[str, Any]) -> Sample:
    return str(entry["prompt_id"]), int(entry["seed"])


def _protocols(record: Record) -> list[list[str]]:
    """(labels, protocol) of scores taken alike."""
    alike: dict[str, list[str]] = {}
    for name, entry in record.scores.items():
        if entry.get("protocol"):
            alike.setdefault(_inline(entry["protocol"]), []).append(str(entry.get("label") or name))
    return [[", ".join(names), text] for text, names in alike.items()]


def _account(record: Record) -> list[list[str]]:
    """What quantization made of the model, on paper."""
    report = record.quantization
    lines: list[list[str]] = []
    if report.get("layers") is not None:
        lines.append(["Layers quantized", f"{report.get('quantized_layers')} of {report['layers']}"])
    for name, label in (("weight_bits", "Weight bits, on average"), ("activation_bits", "Activation bits, on average")):
        if report.get(name) is not None:
            lines.append([label, f"{report[name]:.4g}"])
    lines += [
        [f"Stored {name.replace('_', ' ')}" if name != "total" else "Stored in all", f"{size / 1e6:.3f} MB"]
        for name, size in (report.get("bytes") or {}).items()
        if size
    ]
    if report.get("copies", 1) != 1:
        lines.append(["Copies of the weights, one for each time range", f"{report['copies']} ({report.get('copies_kept')})"])
    operations = report.get("bops") or {}
    kinds = [kind for kind in ("linear", "conv", "matmul", "total") if kind in operations]
    lines += [[f"Bit operations, {kind} (10⁹)", f"{operations[kind] / 1e9:.4g}"] for kind in kinds]
    if operations:
        lines.append(["Bit operations count", f"{operations.get('formula')}, {operations.get('float_bits')} bits for floating point"])
    for name, label in (("kept_fp", "Kept in floating point"), ("unmatched", "Without a role, left in floating point")):
        if report.get(name):
            lines.append([label, ", ".join(map(str, report[name]))])
    return lines


def _run(record: Record) -> list[list[str]]:
    """How long the run took; measurements of the model only where its kernel does not simulate."""
    simulated = record.cell.get("kernel") == "sim"
    lines = [[f"This run: {stage}", f"{seconds:.1f} s"] for stage, seconds in record.timings.items() if stage != "step"]
    step = record.timings.get("step")
    if record.state != "done":
        return lines
    if simulated:
        why = "–, because kernel=sim simulates in floating point; only integer kernels are measured"
        return [*lines, ["Latency and memory of the model", why]]
    if step is not None:
        lines.append(["Time per step", f"{step:.4g} s"])
    if record.peak_memory_bytes is not None:
        lines.append(["Peak memory", f"{record.peak_memory_bytes / 1e6:.1f} MB"])
    return lines


def _provenance(record: Record) -> list[list[str]]:
    about = {key: value for key, value in record.environment.items() if key != "packages"}
    git = record.git if isinstance(record.git, str | None) else _inline(record.git)
    packages = record.environment.get("packages") or {}
    lines: list[tuple[str, Any]] = [
        ("Key", record.key),
        ("Finished", record.finished),
        ("vdqbench", record.version),
        ("Revision", git),
        *((f"Environment: {name}", value if isinstance(value, str | int) else _inline(value)) for name, value in about.items()),
        ("Packages", ", ".join(f"{name} {number}" for name, number in packages.items() if number)),
        *((f"Key of {name}", value) for name, value in record.keys.items() if isinstance(value, str)),
        *((f"Key of metric {name}", value) for name, value in (record.keys.get("metrics") or {}).items()),
    ]
    return [[label, str(value)] for label, value in lines if value]


def _setting(setting: Setting, found: Found, clips: _Clips) -> dict[str, Any]:
    axes = series.qualities(setting.records)
    samples = {_sample(entry): str(entry["prompt"]) for record in setting.records for entry in record.videos}
    curves = [series.bit_curves(setting, axis) for axis in axes]
    curves += [series.sweep_curves(setting, kind, axis) for kind in series.SWEEPS for axis in axes]
    return {
        **{"key": setting.key, "label": setting.label, "model": setting.model, "mini": _is_mini(setting.model)},
        "cells": [identity(record) for record in setting.records],
        "seeds": len({seed for _, seed in samples}),
        "reference": identity(setting.reference) if setting.reference is not None else None,
        "samples": [
            {"id": sample[0], "seed": sample[1], "prompt": prompt, "clip": clips.number(found.references.get((setting.key, sample)))}
            for sample, prompt in samples.items()
        ],
        "tradeoffs": [asdict(tradeoff) for axis in axes for tradeoff in series.tradeoffs(setting, axis)],
        "curves": [asdict(one) for one in curves if one is not None],
    }


def _calibrated(key: str, records: Sequence[Record]) -> str:
    """What a calibration is of."""
    for record in records:
        if key in (record.keys.get("statistics"), record.keys.get("calibration")):
            prompts = ((record.config.get("calibration") or {}).get("prompts") or {}).get("name", "its calibration prompts")
            return f"{_model(record)}, {record.cell.get('sampler')}, calibrated on {prompts}"
    return key


def _heat(heat: series.HeatMap) -> dict[str, Any]:
    """A heat map with four digits, which is more than colours can show."""
    values = [[None if value is None else float(f"{value:.4g}") for value in row] for row in heat.values]
    return {"rows": list(heat.rows), "roles": list(heat.roles), "values": values, "steps": heat.steps}
