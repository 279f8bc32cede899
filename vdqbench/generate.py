"""Calibration and videos as artefacts: what is in the store is taken, what is missing is made once, by one process."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
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
    from vdqbench.models.base import Adapter, Condition, Job
    from vdqbench.quant.bops import Operation
    from vdqbench.quant.quantize import Quantized
    from vdqbench.replay import Calls

VIDEO, TENSORS = ".mkv", ".safetensors"
PARTS = ("encoder", "denoiser", "decoder")
Sample = tuple[str, str, int]
OPERATIONS = 2
"""Version of the count of operations."""


def device_of(cell: Cell) -> str:
    """The device that `device` names; `auto` is a GPU where there is one."""
    import torch

    name = cell.config["device"]
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def load_adapter(cell: Cell) -> Adapter:
    """The cell's model, constructed once per process; the one before is freed first."""
    sampler, device = {**cell.sampler.semantic, "options": dict(cell.sampler.options)}, device_of(cell)
    key, held = key_of([cell.config["model"], cell.model.semantic, sampler, device]), _held()
    if key not in held:
        held.clear()
        module, name = str(cell.model.adapter).rsplit(".", 1)
        held[key] = getattr(importlib.import_module(module), name)(cell.model, sampler, device)
    return held[key]


def unload() -> None:
    """Free the model that `load_adapter` keeps."""
    _held().clear()


@cache
def _held() -> dict[str, Adapter]:
    """The one model of this process, by what it was constructed with."""
    return {}


def calibration(cell: Cell, store: Store, progress: Progress) -> Calibration | None:
    """Statistics of the full-precision model over the calibration prompts; None if the recipe needs none."""
    return measured(cell, store, progress) if cell.recipe.needs_calibration else None


def measured(cell: Cell, store: Store, progress: Progress) -> Calibration:
    """Statistics of the full-precision model over the calibration prompts, whether or not the recipe needs them.

    The same pass keeps the calls of the denoiser (`calls`), so that it is the only one for all recipes.
    """
    from vdqbench.calibrate import Calibration, calibrate
    from vdqbench.replay import CallRecorder

    where, beside = ("calibration", cell.statistics_key, TENSORS), ("calls", cell.statistics_key, TENSORS)
    with store.lock("calibration", cell.statistics_key, lambda: progress.say("calibration: another process is at it; waiting")):
        path = store.get(*where)
        if path is None or store.get(*beside) is None:
            encode(cell, cell.calibration_samples, store, progress)
            adapter = only(load_adapter(cell), "denoiser")
            with progress.stage(f"calibrate {cell.model.name}", len(cell.calibration_samples)) as advance:

                def trajectory(sample: Sample) -> None:
                    adapter.denoise([_job(cell, sample, store)], [_condition(cell, sample, store)])
                    advance(1)

                runs = [partial(trajectory, sample) for sample in cell.calibration_samples]
                calls, began = CallRecorder(adapter.clock), time.perf_counter()
                statistics = calibrate(adapter.denoiser, adapter.layers(), runs, adapter.clock, sampler=cell.sampler.semantic, calls=calls)
            path = store.put(*where, statistics.save)
            store.put(*beside, calls.recorded().save)
            text = json.dumps({"seconds": time.perf_counter() - began})
            store.put("timing", cell.statistics_key, ".json", partial(Path.write_text, data=text))
    statistics = Calibration.load(path)
    statistics.check(cell.sampler.semantic)
    return statistics


def frees(cell: Cell) -> bool:
    """Whether parts of the model are freed after use, so that there is no sense in keeping what quantization replaces."""
    return cell.model.offload != "none"


def only(adapter: Adapter, part: str) -> Adapter:
    """The adapter, after it has freed its other parts (as far as its offload policy frees any)."""
    for other in PARTS:
        if other != part:
            adapter.release(other)
    return adapter


def prepare(cell: Cell, store: Store, progress: Progress) -> None:
    """Encode what calibration and generation of a cell will need (its reference needs the same), so that the encoder is loaded but once."""
    if all(store.has("video", cell.video_key(sample), VIDEO) for sample in cell.samples):
        return
    calibrated = cell.calibration_key is None or store.has("calibration", cell.calibration_key, TENSORS)
    encode(cell, [*cell.samples, *([] if calibrated else cell.calibration_samples)], store, progress)


def encode(cell: Cell, samples: Sequence[Sample], store: Store, progress: Progress) -> None:
    """Put what the denoiser is told of each sample into the store, unless it is there: each prompt is encoded once for all cells."""
    from safetensors.torch import save_file

    def missing() -> dict[str, Sample]:
        return {key: sample for sample in samples if store.get("condition", key := cell.condition_key(sample), TENSORS) is None}

    if not missing():
        return
    with store.lock("condition", key_of(cell.model.semantic), lambda: progress.say("prompts: another process encodes them; waiting")):
        if not (left := missing()):
            return
        adapter = only(load_adapter(cell), "encoder")
        with progress.stage(f"encode {cell.model.name}", len(left)) as advance:
            for key, sample in left.items():  # one by one, so that no embedding depends on what is encoded beside it
                (condition,) = adapter.encode([_job(cell, sample, store)])
                made = {name: value.detach().cpu().contiguous() for name, value in condition.items()}
                store.put("condition", key, TENSORS, partial(save_file, made))
                advance(1)


def _condition(cell: Cell, sample: Sample, store: Store) -> Condition:
    from safetensors.torch import load_file

    return load_file(store.path("condition", cell.condition_key(sample), TENSORS))


def _job(cell: Cell, sample: Sample, store: Store) -> Job:
    from vdqbench.models.base import Job

    return Job(*sample, {name: one.file(store) for name, one in cell.inputs(sample).items()})


def calls(cell: Cell, store: Store) -> Calls:
    """The calls of the denoiser in calibration, which must have been done."""
    from vdqbench.replay import Calls

    return Calls.load(store.path("calls", cell.statistics_key, ".safetensors"))


@contextmanager
def quantized(cell: Cell, store: Store, progress: Progress, keep: bool = True) -> Iterator[tuple[Adapter, Quantized]]:
    """The cell's model with its recipe applied; undone on exit.

    Args:
        keep: False if the denoiser may be spent (see `quantize`); it is then freed on exit, and loaded again when it is needed.
    """
    from vdqbench.quant.quantize import quantize

    statistics = calibration(cell, store, progress)
    adapter, counted = only(load_adapter(cell), "denoiser"), operations(cell, store)
    found: list[str] = []
    try:
        with quantize(
            adapter.denoiser,
            adapter.layers(),
            cell.recipe,
            statistics,
            adapter.clock,
            kernel=cell.config["kernel"],
            anatomy=adapter.anatomy(),
            calls=partial(calls, cell, store) if statistics is not None else None,
            remember=partial(_remember, cell, store, progress, found),
            keep=keep,
            device=device_of(cell) if cell.model.offload == "layers" else None,
        ) as model:
            model.operations, model.found = counted, found
            yield adapter, model
    finally:
        if not keep:
            adapter.release("denoiser")


def operations(cell: Cell, store: Store) -> list[Operation]:
    """Multiply-accumulates of one call of the unquantized denoiser for one video in one guidance branch. Stored."""
    from dataclasses import asdict

    from vdqbench.outline import is_real, outline
    from vdqbench.quant.bops import Operation
    from vdqbench.quant.macs import count

    where = ("operations", key_of(["operations", OPERATIONS, cell.model.semantic]), ".json")
    path = store.get(*where)
    if path is None:
        if is_real(cell.model) and cell.model.source is None:  # as released: counted without running it
            made = outline(cell.model).operations
        else:
            adapter = load_adapter(cell)
            made = count(adapter.denoiser, **adapter.example())
        path = store.put(*where, partial(Path.write_text, data=json.dumps([asdict(one) for one in made])))
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
    path = store.get("report", cell.report_key, ".json")
    if path is None:
        with quantized(cell, store, progress, keep=not frees(cell)) as (_, model):
            path = _account(cell, store, model)
    return json.loads(path.read_text())


def _account(cell: Cell, store: Store, model: Quantized) -> Path:
    made = {**model.report(), "found": sorted(set(model.found))}
    return store.put("report", cell.report_key, ".json", partial(Path.write_text, data=json.dumps(made)))


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
    """Make the cell's missing videos; returns how many were made from noise on.

    In three passes, so that text encoder, denoiser and VAE need not be in memory together: prompts are encoded, latents are
    denoised, latents are decoded. What passes between them is in the store, so an interruption costs the batch in flight.
    `on_video` is told of each video when its latents are done.
    """
    samples = cell.samples
    with store.lock("videos", key_of(cell.generation), lambda: progress.say(f"{cell.label}: another process is generating it; waiting")):
        missing = [i for i, sample in enumerate(samples) if store.get("video", cell.video_key(sample), VIDEO) is None]
        for i in set(range(len(samples))) - set(missing):
            store.discard("latents", cell.video_key(samples[i]), TENSORS)
        if left := {i for i in missing if store.get("latents", cell.video_key(samples[i]), TENSORS) is None}:
            _denoise(cell, left, store, progress, on_video)
        if missing:
            _decode(cell, [samples[i] for i in missing], store, progress)
    return len(left)


def _denoise(cell: Cell, missing: set[int], store: Store, progress: Progress, on_video: Callable[[int], Any]) -> None:
    """Latents of the missing samples.

    Batches are cut from the whole list, not from what is missing, so a video comes out the same after an interruption.
    """
    from safetensors.torch import save_file

    samples, size = cell.samples, 1 if cell.recipe.batch_dependent else cell.config["batch_size"]
    batches = [range(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
    batches = [batch for batch in batches if not missing.isdisjoint(batch)]
    encode(cell, [samples[i] for batch in batches for i in batch], store, progress)
    with (
        quantized(cell, store, progress, keep=not frees(cell)) as (adapter, model),
        progress.stage(f"generate {cell.label}", len(samples)) as advance,
    ):
        advance(len(samples) - len(missing))
        if store.get("report", cell.report_key, ".json") is None:
            _account(cell, store, model)
        for batch in batches:
            conditions = [_condition(cell, samples[i], store) for i in batch]
            latents = adapter.denoise([_job(cell, samples[i], store) for i in batch], conditions)
            trace = model.trace()
            for i, one in zip(batch, latents, strict=True):
                if i not in missing:
                    continue
                if trace is not None:
                    store.put("trace", cell.video_key(samples[i]), ".json", partial(Path.write_text, data=json.dumps(trace)))
                store.put("latents", cell.video_key(samples[i]), TENSORS, partial(save_file, {"latents": one.contiguous()}))
                advance(1)
                on_video(i)


def _decode(cell: Cell, samples: Sequence[Sample], store: Store, progress: Progress) -> None:
    """Videos of samples whose latents are there; the latents are deleted."""
    from safetensors.torch import load_file

    adapter = only(load_adapter(cell), "decoder")
    with progress.stage(f"decode {cell.label}", len(samples)) as advance:
        for sample in samples:  # one by one: no video depends on what is decoded beside it, and memory is that of one
            key = cell.video_key(sample)
            (frames,) = adapter.decode(load_file(store.path("latents", key, TENSORS))["latents"][None])
            store.put("video", key, VIDEO, partial(_write, frames=frames, fps=adapter.fps))
            store.discard("latents", key, TENSORS)
            advance(1)


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
