"""One cell, from configuration to record: calibrate, quantize, generate, score, record."""

from __future__ import annotations

import datetime
import logging
import resource
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vdqbench import __version__
from vdqbench.config import Cell
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.score import Pace, build, metric_keys, needs_references, score
from vdqbench.store import Store, key_of

__all__ = ["Timer", "build", "is_done", "metric_keys", "new_record", "run_cell", "task"]
log = logging.getLogger(__name__)


def task(config: Any) -> str:
    """What a launcher runs for one cell; returns its state. A failure of the cell is a state, not an exception."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config, resolve=True)
    cell = Cell.from_config(plain)
    alone = HydraConfig.get().launcher._target_.endswith("BasicLauncher")
    return run_cell(cell, Progress(quiet=plain["quiet"], live=alone)).state


def run_cell(cell: Cell, progress: Progress) -> Record:
    """Run a cell and write its record in one of the states done, failed, skipped."""
    store = Store(cell.out / "store")
    with store.lock("cell", cell.key, lambda: progress.say(f"{cell.label}: another process is at it; waiting")):
        return _locked(cell, store, progress)


def _locked(cell: Cell, store: Store, progress: Progress) -> Record:
    record = new_record(cell)
    try:
        _run(cell, store, progress, record)
        record.state = "done"
    except Unsupported as error:
        record.state, record.reason = "skipped", str(error)
        progress.say(f"{cell.label}: skipped: {error}")
    except Exception as error:
        record.state, record.reason = "failed", str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        record.traceback = traceback.format_exc()
        log.error("%s failed\n%s", cell.label, record.traceback)
        progress.say(f"{cell.label}: failed: {record.reason}")
    record.finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    record.save(cell.run_dir / "record.json")
    _publish(cell, progress)
    return record


def new_record(cell: Cell) -> Record:
    """A record without results yet."""
    from vdqbench.environment import environment, revision

    recipe, config, samples = cell.recipe, cell.config, (*cell.samples, *cell.calibration_samples)
    return Record(
        key=cell.key,
        cell={
            "model": cell.model.name,
            "method": cell.method,
            "bits": cell.bits,
            "weight": recipe.weight_bits or 16,
            "activation": recipe.activation_bits or 16,
            "prompts": cell.prompts.name,
            "n": len(cell.samples),
            "seeds": config["seeds"],
            "seed": config["seed"],
            "sampler": f"{cell.sampler.name}{cell.sampler.steps}",
            "kernel": None if recipe.is_fp else config["kernel"]["name"],
            "notes": recipe.notes,
        },
        config={key: value for key, value in config.items() if key not in ("table", "hydra")},
        keys={
            "reference": cell.reference().key,
            "calibration": cell.calibration_key,
            "statistics": cell.statistics_key,
            "report": cell.report_key,
            "layers": cell.layers_key,
            "conditions": sorted({cell.condition_key(sample) for sample in samples}),
            "inputs": sorted({key_of(one.identity) for sample in samples for one in cell.inputs(sample).values()}),
            "videos": [cell.video_key(sample) for sample in cell.samples],
            "reference_videos": [cell.reference().video_key(sample) for sample in cell.samples],
            "metrics": metric_keys(cell),
        },
        environment=environment(),
        version=__version__,
        git=revision(),
    )


def is_done(cell: Cell) -> Record | None:
    """The record, if the cell is done: its videos are there and every chosen metric has been computed on them."""
    try:
        record = Record.load(cell.run_dir / "record.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if record.state != "done" or record.key != cell.key or not metric_keys(cell).items() <= record.keys["metrics"].items():
        return None
    from vdqbench.generate import VIDEO

    store = Store(cell.out / "store")
    there = all(store.has("video", cell.video_key(sample), VIDEO) for sample in cell.samples)
    return record if there and all((cell.run_dir / entry["mp4"]).exists() for entry in record.videos) else None


def _run(cell: Cell, store: Store, progress: Progress, record: Record) -> None:
    from vdqbench import generate

    clock = Timer(record.timings)
    generate.prepare(cell, store, progress)
    calibrated = cell.calibration_key is None or store.has("calibration", cell.calibration_key, ".safetensors")
    with clock("calibrate"):
        generate.calibration(cell, store, progress)
    if calibrated:
        record.timings.pop("calibrate")
    reference = cell.reference()
    if any(needs_references(options) for options in (cell.config.get("metric") or {}).values()):
        generate.generate(reference, store, progress)
    pace = Pace(1 if cell.recipe.batch_dependent else cell.config["batch_size"], cell.recipe.steps)
    _reset_peak_memory()
    with clock("generate"):
        made = generate.generate(cell, store, progress, pace)
    record.peak_memory_bytes = _peak_memory()
    if made != len(cell.samples):
        record.timings.pop("generate")
    elif pace.seconds is not None:
        record.timings["step"] = pace.seconds
    record.quantization = {**generate.report(cell, store, progress), **generate.realised(cell, store)}
    if "sqnr" in (cell.config.get("metric") or {}):
        record.quantization["sqnr"] = generate.sqnr(cell, store, progress)
    with clock("score"):
        score(cell, reference, store, progress, record)
    record.videos = _copies_for_eyes(cell, store)


def _copies_for_eyes(cell: Cell, store: Store) -> list[dict[str, Any]]:
    """Small mp4 files in the run folder, by sample."""
    from vdqbench import generate, video
    from vdqbench.models.base import Job

    entries = []
    for sample in cell.samples:
        job = Job(*sample)
        target = cell.run_dir / "videos" / f"{job.name}.mp4"
        if not target.exists():
            frames = video.read(store.path("video", cell.video_key(sample), generate.VIDEO))
            video.write_mp4(target, frames, generate.load_adapter(cell).fps)
        entries.append({"prompt_id": job.prompt_id, "prompt": job.prompt, "seed": job.seed, "mp4": f"videos/{job.name}.mp4"})
    return entries


def _publish(cell: Cell, progress: Progress) -> None:
    """Hand the finished cell to the tracker, which can neither fail the run nor hold it up."""
    from vdqbench.track import publish

    ok, reason = publish(cell.out, [cell.run_dir], [], cell.config["tracker"])
    if not ok:
        progress.say(f"{cell.label}: not published: {reason}")


def _reset_peak_memory() -> None:
    """Let the peak start from what is in use now; where the system cannot, it stays that of the whole process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory() -> int:
    """Peak memory of this process in bytes; of the GPU where one was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Timer:
    """Adds the seconds of each stage to a dict."""

    def __init__(self, into: dict[str, float]) -> None:
        self.into = into

    @contextmanager
    def __call__(self, stage: str) -> Any:
        began = time.perf_counter()
        yield
        self.into[stage] = self.into.get(stage, 0.0) + time.perf_counter() - began
