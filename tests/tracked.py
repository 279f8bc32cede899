"""A results folder made up by hand for tests of trackers: a reference, a done cell, a failed one, and a table with a paper's numbers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdqbench import video
from vdqbench.record import Record
from vdqbench.report import render
from vdqbench.report.spec import Table
from vdqbench.report.table import rows

FP, TSQ, ASQ = "f" * 16, "00112233aabbccdd", "a" * 16
PROMPTS = ("one", "two", "three")
METRICS = {
    "clip": {"mode": "single"},
    "fidelity": {"mode": "paired"},
    "frechet": {"mode": "set", "reference": "fp"},
    "system": {"mode": "system"},
}
TABLE = {
    "name": "mine/table1",
    "title": "A table of mine",
    "group_label": "W/A",
    "paper": {"title": "A paper", "arxiv": "0000.00000", "table": 1, "model": "mini_stdit"},
    "columns": [
        {"score": "clipsim", "digits": 2, "paper": "clipsim"},
        {"score": "psnr", "digits": 1, "paired": True},
        {"score": "weight_size", "label": "Size (GB)", "scale": 0.001, "digits": 4, "paper": "size"},
    ],
    "rows": [
        {"label": "FP", "reference": True, "overrides": ["method=fp"], "paper": {"clipsim": 0.8}},
        {"label": "TSQ", "group": "4/8", "overrides": ["method=tsq"], "paper": {"clipsim": 0.77, "size": 0.002}},
        {"label": "ASQ", "group": "4/8", "overrides": ["method=asq"], "paper": {"clipsim": 0.7}},
    ],
}


def score(mean: float, values: list[float] | None, metric: str, label: str, better: bool | None) -> dict[str, Any]:
    return {
        **{"mean": mean, "values": values, "n": len(values or [0]), "label": label, "higher_is_better": better},
        **{"metric": metric, "protocol": {"version": 1}, "interval": None},
    }


def record(key: str, method: str, bits: str, scores: dict[str, Any], **more: Any) -> Record:
    return Record(
        key=key,
        cell={
            **{"model": "mini_stdit", "method": method, "bits": bits, "weight": 16 if bits == "fp" else 4, "activation": 8, "n": 3},
            **{"prompts": "shapes_small", "sampler": "ddim20", "kernel": None if bits == "fp" else "sim", "notes": []},
        },
        **{"state": "done", **more},
        config={"method": {"name": method, "ranges": 20}, "metric": METRICS, "study": "mine/table1", "out": "/nowhere", "seed": 0},
        keys={"reference": FP, "videos": ["1" * 16]},
        scores=scores,
        videos=[{"prompt_id": p, "prompt": f"a {p}", "seed": 0, "mp4": f"videos/{p}-0.mp4"} for p in PROMPTS],
        timings={"generate": 1.5},
    )


def records() -> dict[str, Record]:
    """By the name of the run folder."""
    fp = {
        "clipsim": score(0.81, [0.8, 0.82, 0.81], "clip", "CLIPSIM", True),
        "psnr": score(100.0, [100.0] * 3, "fidelity", "PSNR", True),
        "frechet": score(0.0, None, "frechet", "FVD", False),
        "weight_size": score(4.0, None, "system", "Size", False),
    }
    tsq = {
        "clipsim": score(0.75, [0.7, 0.75, 0.8], "clip", "CLIPSIM", True),
        "psnr": score(30.0, [29.0, 30.0, 31.0], "fidelity", "PSNR", True),
        "frechet": score(12.5, None, "frechet", "FVD", False),
        "weight_size": score(2.5, None, "system", "Size", False),
    }
    trace = [{"chosen": [8, 4, 4], "computed": [True, True, False]}, {"chosen": [8, 8, 4], "computed": [True, False, False]}]
    sqnr = {
        "layers": {"a.up": [10.0, 20.0, 30.0], "b.q": [30.0, None, 10.0], "c.up": [20.0, 40.0, None]},
        "roles": {"a.up": "ffn.up", "b.q": "self_attn.q", "c.up": "ffn.up"},
    }
    lost = record(ASQ, "asq", "w4a8", {}, state="failed", reason="it broke")
    lost.videos = []
    return {
        f"fp-{FP}": record(FP, "fp", "fp", fp),
        f"tsq-w4a8-{TSQ}": record(TSQ, "tsq", "w4a8", tsq, quantization={"trace": trace, "sqnr": sqnr}, peak_memory_bytes=7),
        f"asq-w4a8-{ASQ}": lost,
    }


def results(out: Path, table: Mapping[str, Any] | None = TABLE, films: bool = False) -> dict[str, Path]:
    """Write the folder; returns the run folders by method, and the table's file as `table`. With `films`, two videos of each done cell."""
    folders = {}
    for i, (name, one) in enumerate(records().items()):
        folders[str(one.cell["method"])] = folder = out / "runs" / "mini_stdit" / name
        one.save(folder / "record.json")
        for j, entry in enumerate(one.videos[:2] if films else []):
            (folder / "videos").mkdir(exist_ok=True)
            video.write_mp4(folder / entry["mp4"], np.full((4, 32, 32, 3), 60 * i + 20 * j, np.uint8), 8)
    if table is not None:
        filled = rows(Table.from_config(table), list(records().values()))
        folders["table"] = next(path for path in render.write_all(filled, out / "tables") if path.suffix == ".json")
    return folders


def entries(path: Path, block: int = 32768) -> Iterator[Any]:
    """The records of a .wandb file: leveldb's log format, blocks of 32 KiB, chunks of crc (4), length (2), type (1)."""
    from wandb.proto import wandb_internal_pb2

    data, position, buffer = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        chunk = data[position + 7 : position + 7 + length]
        buffer = chunk if kind in (1, 2) else buffer + chunk
        position += 7 + length
        if kind in (1, 4):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(buffer)
            yield entry


def values(items: Any) -> dict[str, Any]:
    """By key, nested ones joined by a dot."""
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class Sent:
    """What an offline run holds, read from its own file."""

    def __init__(self, folder: Path) -> None:
        (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
        self.files = file.parent / "files"
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.exits: list[int] = []
        for entry in entries(file):
            kind = entry.WhichOneof("record_type")
            if kind == "run":
                self.run = entry.run
                self.config |= values(entry.run.config.update)
            elif kind == "config":
                self.config |= values(entry.config.update)
            elif kind == "summary":
                self.summary |= values(entry.summary.update)
            elif kind == "history":
                self.history.append(values(entry.history.item))
            elif kind == "metric" and entry.metric.step_metric:
                self.axes[entry.metric.glob_name or entry.metric.name] = entry.metric.step_metric
            elif kind == "exit":
                self.exits.append(entry.exit.exit_code)

    def table(self, name: str) -> dict[str, Any]:
        (file,) = self.files.glob(f"media/table/{name}_*.table.json")
        return json.loads(file.read_text())
