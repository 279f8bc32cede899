"""The record of a cell: what was asked for, what came out, and in which surroundings. JSON on disk, one file per cell."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vdqbench.store import write_atomic

SCHEMA = 1
STATES = ("done", "failed", "skipped")

Sample = tuple[str, int]
"""(prompt id, seed): what the paired videos of two cells have in common."""


@dataclass
class Record:
    """What is known of a cell once it has run.

    Attributes:
        key: identity of the cell, 16 hex digits.
        cell: flat description: model, method, bits, weight, activation, prompts, n, seeds, seed, sampler, kernel.
        state: `done`, `failed` (see reason and traceback) or `skipped` (see reason).
        config: the resolved configuration.
        keys: keys of the artefacts that went in: reference, calibration, metrics.
        scores: by name: mean, values (one per video in the order of `videos`; None for scores of a set or of the system),
            n, label, higher_is_better, protocol.
        videos: prompt_id, prompt, seed and mp4 (relative to the record's folder) of each video.
        quantization: the report of the quantized model.
        timings: seconds by stage.
        finished: ISO 8601 time in UTC.
    """

    key: str
    cell: dict[str, Any]
    state: str = "failed"
    reason: str | None = None
    traceback: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    keys: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    videos: list[dict[str, Any]] = field(default_factory=list)
    quantization: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    git: str | dict[str, Any] | None = None
    finished: str | None = None

    @property
    def name(self) -> str:
        """`model-method-bits`; bits are left out in full precision, where they mean nothing."""
        full = self.cell.get("bits") in (None, "fp")
        return "-".join(str(self.cell.get(part)) for part in ("model", "method") + (() if full else ("bits",)))

    def by_sample(self, score: str) -> dict[Sample, float]:
        """Values of a score by (prompt id, seed); empty if the record lacks the score or it has no value per video.

        Raises:
            ValueError: the number of values is not that of the videos.
        """
        values = self.scores.get(score, {}).get("values")
        if values is None:
            return {}
        if len(values) != len(self.videos):
            raise ValueError(f"record {self.key} has {len(values)} values of {score} for {len(self.videos)} videos; score the cell again")
        return {
            (str(video["prompt_id"]), int(video["seed"])): float(value)
            for video, value in zip(self.videos, values, strict=True)
            if value is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """As strict JSON can hold it: infinities and NaN become the words `inf`, `-inf` and `nan`."""
        return _worded({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of `to_dict`; fields that a later version added to the same schema are left aside.

        Raises:
            ValueError: another schema or an unknown state.
            TypeError: no mapping, or `key` or `cell` missing.
        """
        if not isinstance(data, dict):
            raise TypeError(f"a record is a JSON object, not {type(data).__name__}")
        if data.get("schema") != SCHEMA:
            raise ValueError(
                f"schema={data.get('schema')} of a record is not known here; expected {SCHEMA}: run the cell again with this version"
            )
        record = cls(**{f.name: data[f.name] for f in fields(cls) if f.name in data})
        if record.state not in STATES:
            raise ValueError(f"state={record.state} of a record must be one of {', '.join(STATES)}")
        for name in ("cell", "scores"):
            if not isinstance(getattr(record, name), dict):
                raise TypeError(f"{name} of a record is a JSON object, not {type(getattr(record, name)).__name__}")
        for score in record.scores.values():
            score["mean"] = _number(score["mean"])
            if score.get("values") is not None:
                score["values"] = [_number(value) for value in score["values"]]
        return record

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, in one step: a reader sees the old file or the new one."""
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"
        write_atomic(Path(path), lambda file: file.write_text(text, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a record.

        Raises:
            OSError: there is no such file.
            ValueError, TypeError, KeyError: it is not a record of this schema.
        """
        return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def _worded(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _worded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_worded(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
