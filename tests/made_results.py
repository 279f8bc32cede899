"""A results folder made up in the test, without any model: every state, every plot, and texts that try to get out of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vdqbench.record import Record
from vdqbench.report import render
from vdqbench.report.table import Table, rows
from vdqbench.store import Store, key_of
from vdqbench.video import write_lossless, write_mp4

HOSTILE = 'a </script><script>window.hacked = "prompt"</script><img src=x onerror="window.hacked=1"> \u2028 & \'quoted\' <!-- '
REASON = 'ValueError: <b>bold</b></script><script>window.hacked = "reason"</script>'
PROMPTS = {"0000": "a red circle", "0001": HOSTILE, "0002": "{{DATA}} {{SCRIPT}}"}
STEPS, FRAMES, FPS, SIDE = 6, 8, 8, 48
LAYERS = {"embed": "embed", "blocks.0.attn.q": "self_attn.q", "blocks.0.attn.k": "self_attn.k", "blocks.1.mlp": "ffn.up"}
MODEL, OTHER = "mini_toy", "mini_other"
REFERENCE = {MODEL: "f" * 16, OTHER: "e" * 16}
STATISTICS = "c" * 16


def grey(frame: int, shift: int = 0) -> int:
    """Level of all pixels of a frame of the made-up videos."""
    return 40 + 20 * frame + shift


def video(shift: int = 0, frames: int = FRAMES) -> np.ndarray:
    """Frames of one grey each, brighter from frame to frame; `shift` levels brighter than the reference."""
    levels = np.array([grey(i, shift) for i in range(frames)], dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (frames, SIDE, SIDE, 3)).copy()


def score(values: list[float] | float, label: str, better: bool | None, metric: str, version: int = 1) -> dict[str, Any]:
    """An entry of a record's scores."""
    alone = not isinstance(values, list)
    return {
        **{"mean": values if alone else sum(values) / len(values), "values": None if alone else values, "n": 1 if alone else len(values)},
        **{"interval": None, "label": label, "higher_is_better": better, "metric": metric, "protocol": {"version": version}},
    }


def record(method: str, bits: str, quality: float | None, size: float = 4.0, *, model: str = MODEL, **more: Any) -> Record:
    """A record of a cell with three videos; without a `quality` it is not done.

    Args:
        more: `options` of the method, `kernel`, `seconds` per step, `state`, `reason`, `trace`.
    """
    weight, activation = (16, 16) if bits == "fp" else (int(bits[1]), int(bits[3:]))
    options = {"name": method, "activation": {"grid": "static"}, **more.get("options", {})}
    kernel = None if bits == "fp" else more.get("kernel", "sim")
    key = REFERENCE[model] if bits == "fp" else key_of([method, bits, model, options, kernel])
    samples = list(PROMPTS)
    made = Record(
        key=key,
        cell={
            **{"model": model, "method": method, "bits": bits, "weight": weight, "activation": activation, "prompts": "toys"},
            **{"n": len(samples), "seeds": 1, "seed": 0, "sampler": "ddim6", "kernel": kernel, "notes": more.get("notes", [])},
        },
        state=more.get("state", "done"),
        reason=more.get("reason"),
        traceback=f"Traceback\n{more['reason']}" if more.get("reason") else None,
        config={
            **{"model": {"name": model}, "method": options, "bits": {"name": bits}, "sampler": {"steps": STEPS}},
            **{"metric": {"clip": {"mode": "single"}, "fidelity": {"mode": "paired"}, "system": {"mode": "system"}}},
            "calibration": {"prompts": {"name": "toy_calib"}},
        },
        keys={
            **{"reference": REFERENCE[model], "statistics": STATISTICS, "calibration": STATISTICS, "metrics": {"clip": "aa"}},
            **{"videos": [], "reference_videos": [key_of([model, pid]) for pid in samples]},
        },
        environment={"python": "3.11", "processor": "a processor", "packages": {"torch": "2.0", "absent": None}},
        version="0.1.0",
        finished="2026-01-01T00:00:00+00:00",
        timings={"generate": 12.0},
        peak_memory_bytes=10**9,
    )
    if quality is not None:
        made.scores = {
            "clipsim": score([quality - 0.02, quality, quality + 0.02], "CLIPSIM", True, "clip"),
            "psnr": score([100 * quality, 90 * quality, 95 * quality], "PSNR (dB)", True, "fidelity"),
            "weight_size": score(size, "Weight size (MB)", False, "system"),
            "tbops": score(size / 10, "TBOPs", False, "system"),
            "activation_bits": score(float(activation), "Activation bits", None, "system"),
        }
        if "seconds" in more:
            made.scores["seconds_per_step"] = score(more["seconds"], "Time per step (s)", False, "system")
        made.videos = [{"prompt_id": pid, "prompt": PROMPTS[pid], "seed": 0, "mp4": f"videos/{pid}-0.mp4"} for pid in samples]
        made.quantization = {"layers": 4, "quantized_layers": 3, "bytes": {"weights": size * 1e6, "total": size * 1e6}}
        if bits != "fp":
            sqnr = {name: [10.0 * i + k for k in range(STEPS)] for i, name in enumerate(LAYERS)}
            made.quantization["sqnr"] = {"layers": {**sqnr, "embed": [None] * STEPS}, "roles": LAYERS}
        if "trace" in more:
            made.quantization["trace"] = [{"chosen": list(chosen), "computed": None} for chosen in more["trace"]]
    return made


GBS = {"policy": "delta_gbs", "low": 4, "high": 8}


def records() -> list[Record]:
    """Cells of one setting, one of another without its reference, and what went wrong."""
    traces = {0.1: [(8, 8, 4, 4, 8, 4)] * 3, 0.2: [(8, 8, 4, 4, 4, 4)] * 3}
    return [
        record("fp", "fp", 0.80, 4.0, seconds=0.5),
        record("tsq", "w8a8", 0.79, 2.0, options={"activation": {"grid": "static", "ranges": 4}}, seconds=9.0),
        record("tsq", "w4a4", 0.60, 1.0, options={"activation": {"grid": "static", "ranges": 4}}),
        record("asq", "w4a4", 0.50, 1.0, options={"activation": {"grid": "static", "ranges": 1}}),
        record("dynamic", "w8a8", 0.78, 2.5, kernel="int", seconds=0.25, notes=["weights per group"]),
        *(record("dvd", "w4a6", 0.7 - d, 1.5, options={"schedule": {**GBS, "delta": d}}, trace=traces[d]) for d in traces),
        record("gptq", "w4a4", None, state="failed", reason=REASON),
        record("qvd", "w4a8", None, state="skipped", reason="log2 features need a temporal layer"),
        record("tsq", "w8a8", 0.75, 2.0, model=OTHER, options={"activation": {"grid": "static", "ranges": 4}}),
    ]


def table(made: list[Record]) -> Any:
    """A filled table with the paper's numbers, ranks, a hole and hostile labels."""
    config = {
        "name": "toy/table1",
        "title": "Toy table <script>window.hacked = 2</script>",
        "group_label": "W/A",
        "paper": {"title": "A paper", "arxiv": "1234.5678", "table": 1, "model": "opensora_v1"},
        "columns": [
            {"score": "clipsim", "label": "CLIPSIM", "paper": "clipsim", "digits": 3},
            {"score": "weight_size", "label": "Size", "digits": 1},
        ],
        "rows": [
            {"label": "FP16", "overrides": ["method=fp"], "reference": True, "paper": {"clipsim": 0.2}},
            {"label": "TSQ", "group": "8/8", "overrides": ["method=tsq"], "paper": {"clipsim": 0.19}},
            {"label": "Dynamic", "group": "8/8", "overrides": ["method=dynamic"], "paper": {"clipsim": 0.18}},
            {"label": "GPTQ & <b>", "group": "4/4", "overrides": ["method=gptq"]},
        ],
        "claims": ["TSQ > Dynamic on clipsim"],
    }
    by_method = {one.cell["method"]: one for one in reversed(made)}
    return rows(Table.from_config(config), [by_method[name] for name in ("fp", "tsq", "dynamic", "gptq")])


def build(out: Path) -> list[Record]:
    """Write the folder; returns its readable records."""
    made, store = records(), Store(out / "store")
    for i, one in enumerate(made):
        folder = out / "runs" / one.cell["model"] / f"{one.cell['method']}-{one.cell['bits']}-{one.key}"
        one.save(folder / "record.json")
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps([f"method={one.cell['method']}", "metric=[clip,fidelity]"]))
        for entry in one.videos:
            write_mp4(folder / entry["mp4"], video(0 if one.cell["bits"] == "fp" else 10 + i), FPS, min_side=SIDE)
    for pid in PROMPTS:
        store.put("video", key_of([OTHER, pid]), ".mkv", lambda path: write_lossless(path, video(), FPS))
    broken = out / "runs" / MODEL / f"broken-w4a4-{'b' * 16}"
    broken.mkdir()
    (broken / "record.json").write_text("{")
    store.put("calibration", STATISTICS, ".safetensors", calibration)
    render.write_all(table(made), out / "tables")
    (out / "tables" / "torn.json").write_text('{"name": "torn"}')
    return made


def calibration(path: Path) -> None:
    """Statistics of two prompts, two guidance branches and three channels: at step k, layer i goes from -(i + k) to 2 (i + k) + 1."""
    names = list(LAYERS)
    tensors = {}
    for i, name in enumerate(names):
        largest = np.arange(STEPS, dtype=np.float32)[None, :, None, None] + i + np.zeros((2, STEPS, 2, 3), np.float32)
        largest[0, :, 1, 2] = 2 * largest[0, :, 1, 2] + 1
        tensors |= {
            f"{name}|max": largest,
            f"{name}|min": -largest[:, :, :, ::-1].clip(max=STEPS + 4),
            f"{name}|mean_max": largest[:, :, 0],
        }
    source = {**{name: name for name in names}, "blocks.0.attn.k": "blocks.0.attn.q"}
    about = {"version": 1, "steps": STEPS, "prompts": 2, "sampler": {}, "source": source}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, metadata={"calibration": json.dumps(about)})
