"""Records as one tidy long frame: a row for every cell, video and score, as pandas users want them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError
from vdqbench.record import Record
from vdqbench.store import write_atomic

if TYPE_CHECKING:
    from pandas import DataFrame

CELL = ("model", "method", "bits", "weight", "activation", "prompts", "sampler", "kernel")
COLUMNS = (
    *("key", "state", "reason"),
    *CELL,
    *("prompt_id", "prompt", "seed", "score", "label", "higher_is_better", "value"),
    "low",
    "high",
)
SUFFIXES = (".csv", ".parquet")


def long_rows(records: Sequence[Record]) -> Iterator[dict[str, Any]]:
    """One mapping by COLUMNS for each value.

    A score of a whole set or of the system has one row without a video, with its 95 % interval in `low` and `high` where it has one; a
    record without scores has one row without a score, so that what failed stays visible.
    """
    for record in records:
        cell: dict[str, Any] = dict.fromkeys(COLUMNS)
        cell |= {"key": record.key, "state": record.state, "reason": record.reason, **{name: record.cell.get(name) for name in CELL}}
        if not record.scores:
            yield cell
        for name, entry in record.scores.items():
            score = {**cell, "score": name, "label": entry.get("label"), "higher_is_better": entry.get("higher_is_better")}
            if entry.get("values") is None:
                low, high = entry.get("interval") or (None, None)
                yield {**score, "value": entry.get("mean"), "low": low, "high": high}
                continue
            for video, value in zip(record.videos, entry["values"], strict=True):
                yield {**score, **{key: video[key] for key in ("prompt_id", "prompt", "seed")}, "value": value}


def frame(records: Sequence[Record]) -> DataFrame:
    """The same as a pandas frame."""
    import pandas

    made = pandas.DataFrame(list(long_rows(records)), columns=list(COLUMNS))
    whole = {name: made[name].astype("Int64") for name in ("weight", "activation", "seed")}
    truth = {"higher_is_better": made["higher_is_better"].astype("boolean")}
    return made.assign(**whole, **truth, **{name: made[name].astype("float64") for name in ("value", "low", "high")})


def write(records: Sequence[Record], path: Path) -> Path:
    """Write the frame as .csv or .parquet, in one step; returns the path.

    Raises:
        ConfigError: another suffix, or Parquet without the package pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--to={path} must end in {' or '.join(SUFFIXES)}, which says what is written")
    if path.suffix == ".csv":
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(long_rows(records))
        write_atomic(path, lambda file: file.write_text(stream.getvalue(), encoding="utf-8"))
        return path
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--to={path} needs the package pyarrow: pip install 'vdqbench[parquet]', or write .csv instead") from error
    made = frame(records)
    write_atomic(path, lambda file: made.to_parquet(file, engine="pyarrow", index=False))
    return path
