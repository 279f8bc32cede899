"""Calibration and videos as artefacts: what is in the store is taken, what is missing is made once, by one process."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdqbench import video
from vdqbench.config import Cell
from vdqbench.progress import Progress
from vdqbench.store import Store, key_of

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.calibrate import Calibration
    from vdqbench.models.base import Adapter
    from vdqbench.quant.bops import Operation
    from vdqbench.quant.quantize import Quantized
    from vdqbench.replay import Calls

VIDEO = ".mkv"
OPERATIONS = 2
"""Version of the count of operations."""


def device_of(cell: Cell) -> str:
    """The device that `device` names; `auto` is a GPU where there is one."""
    import torch

    name = cell.config["device"]
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_adapter(cell: Cell) -> Adapter:
    """The cell's model, loaded once per process."""
    weights = tuple(cell.model.semantic["weights"].items())
    return _adapter(str(cell.model.adapter), cell.model.folder, tuple(cell.sampler.semantic.items()), device_of(cell), weights)


@lru_cache(maxsize=1)
def _adapter(target: str, folder: Path, sampler: tuple[tuple[str, Any], ...], device: str, weights: tuple[tuple[str, str], ...]) -> Adapter:
    module, name = target.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(folder, dict(sampler), device)


def calibration(cell: Cell, store: Store, progress: Progress) -> Calibration | None:
    """Statistics of the full-precision model over the calibration prompts; None if the recipe needs none."""
    return measured(cell, store, progress) if cell.recipe.needs_calibration else None


def measured(cell: Cell, store: Store, progress: Progress) -> Calibration:
    """Statistics of the full-precision model over the calibration prompts, whether or not the recipe needs them.

    The same pass keeps the calls of the denoiser (`calls`), so that it is the only one for all recipes.
    """
    from vdqbench.calibrate import Calibration, calibrate
    from vdqbench.models.base import Job
    from vdqbench.replay import CallRecorder

    where, beside = ("calibration", cell.statistics_key, ".safetensors"), ("calls", cell.statistics_key, ".safetensors")
    with store.lock("calibration", cell.statistics_key, lambda: progress.say("calibration: another process is at it; waiting")):
        path = store.get(*where)
        if path is None or store.get(*beside) is None:
            adapter = load_adapter(cell)
            with progress.stage(f"calibrate {cell.model.name}", len(cell.calibration_samples)) as advance:

                def trajectory(job: Job) -> None:
                    list(adapter.generate([job]))
                    advance(1)

                runs = [partial(trajectory, Job(*sample)) for sample in cell.calibration_samples]
                calls, began = CallRecorder(adapter.clock), time.perf_counter()
                statistics = calibrate(adapter.denoiser, adapter.layers(), runs, adapter.clock, sampler=cell.sampler.semantic, calls=calls)
            path = store.put(*where, statistics.save)
            store.put(*beside, calls.recorded().save)
            text = json.dumps({"seconds": time.perf_counter() - began})
            store.put("timing", cell.statistics_key, ".json", partial(Path.write_text, data=text))
    statistics = Calibration.load(path)
    statistics.check(cell.sampler.semantic)
    return statistics


def calls(cell: Cell, store: Store) -> Calls:
    """The calls of the denoiser in calibration, which must have been done."""
    from vdqbench.replay import Calls

    return Calls.load(store.path("calls", cell.statistics_key, ".safetensors"))


@contextmanager
def quantized(cell: Cell, store: Store, progress: Progress) -> Iterator[tuple[Adapter, Quantized]]:
    """The cell's model with its recipe applied; undone on exit."""
    from vdqbench.quant.quantize import quantize

    statistics = calibration(cell, store, progress)
    adapter, counted = load_adapter(cell), operations(cell, store)
    found: list[str] = []
    model = quantize(
        adapter.denoiser,
        adapter.layers(),
        cell.recipe,
        statistics,
        adapter.clock,
        kernel=cell.config["kernel"],
        anatomy=adapter.anatomy(),
        calls=partial(calls, cell, store) if statistics is not None else None,
        remember=partial(_remember, cell, store, progress, found),
    )
    model.operations, model.found = counted, found
    try:
        yield adapter, model
    finally:
        model.restore()


def operations(cell: Cell, store: Store) -> list[Operation]:
    """Multiply-accumulates of one call of the unquantized denoiser for one video in one guidance branch. Stored."""
    from dataclasses import asdict

    from vdqbench.quant.bops import Operation
    from vdqbench.quant.macs import count

    where = ("operations", key_of(["operations", OPERATIONS, cell.model.semantic]), ".json")
    path = store.get(*where)
    if path is None:
        adapter = load_adapter(cell)
        counted = [asdict(one) for one in count(adapter.denoiser, **adapter.example())]
        path = store.put(*where, partial(Path.write_text, data=json.dumps(counted)))
    return [Operation(**one) for one in json.loads(path.read_text())]


def _remember(
    cell: Cell, store: Store, progress: Progress, found: list[str], key: Any, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What a part found on this model and calibration, as an artefact, so that it is searched for once; its key is noted."""
    from safetensors.torch import load_file, save_file

    where = ("found", key_of([cell.statistics_key, key]), ".safetensors")
    found.append(where[1])
    with store.lock("found", where[1], lambda: progress.say(f"{cell.label}: another process searches; waiting")):
        path = store.get(*where)
        if path is None:
            made = {name: value.detach().cpu().contiguous() for name, value in make().items()}
            path = store.put(*where, lambda file: save_file(made, file))
    return load_file(path)


def report(cell: Cell, store: Store, progress: Progress) -> dict[str, Any]:
    """What quantization made of the model: sizes and bits. Stored, since it needs the model."""
    where = ("report", cell.report_key, ".json")
    path = store.get(*where)
    if path is None:
        with quantized(cell, store, progress) as (_, model):
            made = {**model.report(), "found": sorted(set(model.found))}
        path = store.put(*where, lambda file: file.write_text(json.dumps(made)))
    return json.loads(path.read_text())


def sqnr(cell: Cell, store: Store, progress: Progress) -> dict[str, Any]:
    """Signal-to-quantization-noise ratio of each quantized layer at each step, and the layers' roles. Stored."""
    from vdqbench.quant.sqnr import layer_sqnr

    where = ("sqnr", cell.layers_key, ".json")
    path = store.get(*where)
    if path is None:
        measured(cell, store, progress)
        with quantized(cell, store, progress) as (adapter, model):
            progress.say(f"{cell.label}: comparing layers")
            made = {"layers": layer_sqnr(model, calls(cell, store)), "roles": adapter.layers()}
        path = store.put(*where, lambda file: file.write_text(json.dumps(made)))
    return json.loads(path.read_text())


def generate(cell: Cell, store: Store, progress: Progress, on_video: Callable[[int], Any] = lambda count: None) -> int:
    """Make the cell's missing videos; returns how many were made.

    Batches are cut from the whole list, not from what is missing, so a video comes out the same after an interruption.
    """
    from vdqbench.models.base import Job

    samples, size = cell.samples, 1 if cell.recipe.batch_dependent else cell.config["batch_size"]
    with store.lock("videos", key_of(cell.generation), lambda: progress.say(f"{cell.label}: another process is generating it; waiting")):
        missing = {i for i, sample in enumerate(samples) if store.get("video", cell.video_key(sample), VIDEO) is None}
        if not missing:
            return 0
        with quantized(cell, store, progress) as (adapter, model), progress.stage(f"generate {cell.label}", len(samples)) as advance:
            advance(len(samples) - len(missing))
            for first in range(0, len(samples), size):
                batch = range(first, min(first + size, len(samples)))
                if missing.isdisjoint(batch):
                    continue
                for i, frames in zip(batch, adapter.generate([Job(*samples[i]) for i in batch]), strict=True):
                    if i in missing:
                        if (trace := model.trace()) is not None:
                            store.put("trace", cell.video_key(samples[i]), ".json", partial(Path.write_text, data=json.dumps(trace)))
                        store.put("video", cell.video_key(samples[i]), VIDEO, partial(_write, frames=frames, fps=adapter.fps))
                        advance(1)
                        on_video(i)
    return len(missing)


def _write(path: Path, frames: np.ndarray, fps: int) -> None:
    video.write_lossless(path, frames, fps)


def load(cell: Cell, store: Store) -> list[np.ndarray]:
    """The cell's videos, uint8 [T, H, W, 3], in the order of its samples."""
    return [video.read(store.path("video", cell.video_key(sample), VIDEO)) for sample in cell.samples]


def realised(cell: Cell, store: Store) -> dict[str, Any]:
    """What schedules that decide on the way came to, to be put over the nominal report; empty if all was known beforehand.

    Returns:
        weight_bits, activation_bits: averages over videos and computed steps; trace: what was decided for each video.
    """
    paths = [store.get("trace", cell.video_key(sample), ".json") for sample in cell.samples]
    traces = [json.loads(path.read_text()) for path in paths if path is not None]
    if not traces:
        return {}
    means = {key: sum(trace[key] for trace in traces) / len(traces) for key in ("weight_bits", "activation_bits")}
    bops = {key: sum(trace["bops"][key] for trace in traces) / len(traces) for key in ("linear", "conv", "matmul", "total")}
    return {**means, "bops": {**traces[0]["bops"], **bops}, "trace": traces}
