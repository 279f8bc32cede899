"""What the run of a cell says, as plain values: configuration, summary, curves by step and by layer, the table of its videos."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vdqbench.record import Record
from vdqbench.report.paired import difference, over_prompts
from vdqbench.track.facts import Facts

LEFT_OUT = ("out", "plan", "preset", "quiet", "tracker")
"""Options that say where and how, not what."""


def config(facts: Facts) -> dict[str, Any]:
    """Nested, the configuration; flat under `cell`, the columns by which runs are grouped and filtered; keys, revision, versions."""
    record = facts.record
    keys = {name: key for name, key in record.keys.items() if isinstance(key, str)}
    return {
        **{name: value for name, value in record.config.items() if name not in LEFT_OUT},
        "cell": {**record.cell, "key": record.key, "tables": list(facts.tables)},
        **{"keys": keys, "git": record.git, "version": record.version, "environment": record.environment},
    }


def summary(facts: Facts) -> dict[str, Any]:
    """State, reason and costs; and of each score, under names that stay as they are:

    `<score>` its mean; `/stderr` the standard error over prompts and `/n` the videos; `/delta_fp` the paired difference to full precision
    and `/delta_fp_stderr` its standard error (of a score without values per video, the plain difference); `/paper` a paper's number and
    `/delta_paper` ours minus it, which only a cell of the paper's own model has. What is unknown or not finite is left out.
    """
    record = facts.record
    values: dict[str, Any] = {"state": record.state, "reason": record.reason, "peak_memory_bytes": record.peak_memory_bytes}
    for name, score in record.scores.items():
        samples = record.by_sample(name)
        own = over_prompts(samples)
        values |= {name: score["mean"], f"{name}/n": score.get("n"), f"{name}/stderr": own.se if own else None}
        values |= _against_reference(facts, name)
        values |= {f"{name}/paper": facts.paper.get(name), f"{name}/delta_paper": facts.apart.get(name)}
    values |= {f"seconds/{stage}": seconds for stage, seconds in record.timings.items()}
    return {name: value for name, value in values.items() if value is not None and not _infinite(value)}


def _against_reference(facts: Facts, name: str) -> dict[str, float | None]:
    reference = facts.reference
    if reference is None or facts.compares(name) or reference.scores.get(name, {}).get("mean") is None:
        return {}
    ours, theirs = facts.record.by_sample(name), reference.by_sample(name)
    if ours and theirs:
        apart = difference(ours, theirs)
        return {f"{name}/delta_fp": apart.mean, f"{name}/delta_fp_stderr": apart.se} if apart else {}
    return {f"{name}/delta_fp": facts.record.scores[name]["mean"] - reference.scores[name]["mean"]}


def _infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def per_video(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of videos: prompt_id, prompt, seed, mp4 (its path), every score that has a value per video."""
    scores = {name: values for name in record.scores if (values := record.by_sample(name))}
    rows = [
        [
            *(v[key] for key in ("prompt_id", "prompt", "seed")),
            v.get("mp4"),
            *(None if _infinite(value) else value for value in _of(scores, v)),
        ]
        for v in record.videos
    ]
    return ["prompt_id", "prompt", "seed", "mp4", *scores], rows


def _of(scores: Mapping[str, Mapping[Any, float]], video: Mapping[str, Any]) -> Iterator[float | None]:
    return (values.get((str(video["prompt_id"]), int(video["seed"]))) for values in scores.values())


def by_step(record: Record) -> list[dict[str, float]]:
    """A mapping for each sampling step, with its number as `step`.

    `curve/sqnr` (dB, mean over layers) and `curve/sqnr_<group>` (layers whose role begins so), where SQNR was measured;
    `curve/activation_bits` (of switched layers) and `curve/computed` (share), means over videos, where that was decided on the way.
    """
    layers, roles = _sqnr(record)
    curves: dict[str, Sequence[float | None]] = {}
    groups = sorted({roles[name].partition(".")[0] for name in layers})
    for label, members in {"": list(layers), **{f"_{g}": [n for n in layers if roles[n].partition(".")[0] == g] for g in groups}}.items():
        if members:
            curves[f"curve/sqnr{label}"] = [_mean(values) for values in zip(*(layers[name] for name in members), strict=True)]
    traces = record.quantization.get("trace") or []
    for name, key in (("activation_bits", "chosen"), ("computed", "computed")):
        decided = [trace[key] for trace in traces if trace.get(key)]
        if decided:
            curves[f"curve/{name}"] = [_mean([float(value) for value in values]) for values in zip(*decided, strict=True)]
    steps = max((len(values) for values in curves.values()), default=0)
    rows = [{name: values[i] for name, values in curves.items() if i < len(values)} for i in range(steps)]
    return [{"step": i, **{name: value for name, value in row.items() if value is not None}} for i, row in enumerate(rows)]


def by_layer(record: Record) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the table of layers: its number, name and role, SQNR in dB as mean and least over steps, and the worst step."""
    layers, roles = _sqnr(record)
    rows = []
    for i, (name, values) in enumerate(layers.items()):
        known = [(value, step) for step, value in enumerate(values) if value is not None]
        least = min(known, default=(None, None))
        rows.append([i, name, roles[name], _mean(values), *least])
    return ["layer", "name", "role", "sqnr", "least_sqnr", "worst_step"], rows


def _sqnr(record: Record) -> tuple[dict[str, list[float | None]], dict[str, str]]:
    measured = record.quantization.get("sqnr") or {}
    return measured.get("layers") or {}, measured.get("roles") or {}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
