"""Calibration and videos as artefacts: what is in the store is taken, what is missing is made once, by one process."""

from __future__ import annotations

import importlib
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
    from vdqbench.calibrate import Calibration
    from vdqbench.models.base import Adapter

VIDEO = ".mkv"


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
    if cell.calibration_key is None:
        return None
    from vdqbench.calibrate import Calibration, calibrate
    from vdqbench.models.base import Job

    where = ("calibration", cell.calibration_key, ".safetensors")
    with store.lock("calibration", cell.calibration_key, lambda: progress.say("calibration: another process is at it; waiting")):
        path = store.get(*where)
        if path is None:
            adapter = load_adapter(cell)
            with progress.stage(f"calibrate {cell.model.name}", len(cell.calibration_samples)) as advance:

                def trajectory(job: Job) -> None:
                    list(adapter.generate([job]))
                    advance(1)

                runs = [partial(trajectory, Job(*sample)) for sample in cell.calibration_samples]
                statistics = calibrate(adapter.denoiser, adapter.layers(), runs, adapter.clock, sampler=cell.sampler.semantic)
            path = store.put(*where, statistics.save)
    statistics = Calibration.load(path)
    statistics.check(cell.sampler.semantic)
    return statistics


@contextmanager
def quantized(cell: Cell, store: Store, progress: Progress) -> Iterator[tuple[Adapter, dict[str, Any]]]:
    """The cell's model with its recipe applied, and the report on what that made; undone on exit."""
    from vdqbench.quant.quantize import quantize

    statistics = calibration(cell, store, progress)
    adapter = load_adapter(cell)
    model = quantize(adapter.denoiser, adapter.layers(), cell.recipe, statistics, adapter.clock, kernel=cell.config["kernel"])
    try:
        yield adapter, model.report()
    finally:
        model.restore()


def report(cell: Cell, store: Store, progress: Progress) -> dict[str, Any]:
    """What quantization made of the model: sizes and bits. Stored, since it needs the model."""
    import json

    where = ("report", cell.report_key, ".json")
    path = store.get(*where)
    if path is None:
        with quantized(cell, store, progress) as (_, made):
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
        with quantized(cell, store, progress) as (adapter, _), progress.stage(f"generate {cell.label}", len(samples)) as advance:
            advance(len(samples) - len(missing))
            for first in range(0, len(samples), size):
                batch = range(first, min(first + size, len(samples)))
                if missing.isdisjoint(batch):
                    continue
                for i, frames in zip(batch, adapter.generate([Job(*samples[i]) for i in batch]), strict=True):
                    if i in missing:
                        store.put("video", cell.video_key(samples[i]), VIDEO, partial(_write, frames=frames, fps=adapter.fps))
                        advance(1)
                        on_video(i)
    return len(missing)


def _write(path: Path, frames: np.ndarray, fps: int) -> None:
    video.write_lossless(path, frames, fps)


def load(cell: Cell, store: Store) -> list[np.ndarray]:
    """The cell's videos, uint8 [T, H, W, 3], in the order of its samples."""
    return [video.read(store.path("video", cell.video_key(sample), VIDEO)) for sample in cell.samples]
