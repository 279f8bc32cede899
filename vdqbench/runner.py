"""One cell, from configuration to record: calibrate, quantize, generate, score, record."""

from __future__ import annotations

import datetime
import importlib
import json
import logging
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vdqbench import __version__
from vdqbench.config import WEIGHTS, Cell, digest
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.store import Store, key_of

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
    _publish(cell, record, progress)
    return record


def new_record(cell: Cell) -> Record:
    """A record without results yet."""
    from vdqbench.environment import environment, revision

    recipe, config = cell.recipe, cell.config
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
        },
        config={key: value for key, value in config.items() if key not in ("table", "hydra")},
        keys={
            "reference": cell.reference().key,
            "calibration": cell.calibration_key,
            "report": cell.report_key,
            "videos": [cell.video_key(sample) for sample in cell.samples],
            "reference_videos": [cell.reference().video_key(sample) for sample in cell.samples],
            "metrics": metric_keys(cell),
        },
        environment=environment(),
        version=__version__,
        git=revision(),
    )


def metric_keys(cell: Cell) -> dict[str, str]:
    """Key of each chosen metric's scores on this cell."""
    reference = cell.reference().key
    keys = {}
    for name, options in sorted((cell.config.get("metric") or {}).items()):
        semantic = {key: value for key, value in options.items() if key not in ("batch_size", "device")}
        keys[name] = key_of([semantic, _backbone_digests(semantic), cell.key, reference])
    return keys


def _backbone_digests(options: Mapping[str, Any]) -> list[str]:
    """Hashes of the weights that a metric looks through, where they are files here: other weights, other scores."""
    backbone = options.get("backbone", {"model": "mini_clip"})
    if options.get("mode") == "system":
        return []
    if backbone["model"] == "mini_clip":
        return [digest(file) for file in sorted((WEIGHTS / "mini_clip").iterdir()) if file.is_file()]
    path = Path(str(backbone.get("weights"))).expanduser()
    return [digest(path)] if path.is_file() else []


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
    with clock("calibrate"):
        generate.calibration(cell, store, progress)
    reference = cell.reference()
    if any(_mode(options) == "paired" for options in (cell.config.get("metric") or {}).values()):
        generate.generate(reference, store, progress)
    with clock("generate"):
        made = generate.generate(cell, store, progress)
    if made != len(cell.samples):
        record.timings.pop("generate")
    record.quantization = generate.report(cell, store, progress)
    with clock("score"):
        _score(cell, reference, store, progress, record)
    record.videos = _copies_for_eyes(cell, store)
    record.peak_memory_bytes = _peak_memory()


def _score(cell: Cell, reference: Cell, store: Store, progress: Progress, record: Record) -> None:
    """Take each metric's scores from the store, or compute and store them; videos are decoded once for all metrics."""
    keys = metric_keys(cell)
    _keep_other_scores(cell, record, keys)
    missing = []
    for name, key in keys.items():
        path = store.get("scores", key, ".json")
        if path is None:
            missing.append(name)
        else:
            record.scores.update(json.loads(path.read_text()))
    if not missing:
        return
    import torch

    from vdqbench import generate
    from vdqbench.metrics.base import VideoBatch

    metrics = {name: build(cell.config["metric"][name], cell) for name in missing}
    videos = generate.load(cell, store)
    paired = any(metric.mode == "paired" for metric in metrics.values())
    references = generate.load(reference, store) if paired else None
    streaming = {name: metric for name, metric in metrics.items() if metric.mode != "system"}
    with progress.stage(f"score {cell.label}", len(videos)) as advance:
        for first in range(0, len(videos), 16):
            part = slice(first, first + 16)
            batch = VideoBatch(
                torch.from_numpy(_stack(videos[part])),
                [text for _, text, _ in cell.samples[part]],
                None if references is None else torch.from_numpy(_stack(references[part])),
            )
            for metric in streaming.values():
                metric.update(batch)
            advance(len(batch.prompts))
    for name, metric in metrics.items():
        scores = metric.from_report(record.quantization) if metric.mode == "system" else metric.compute()
        made = {
            info.name: {
                "mean": scores[info.name].mean,
                "values": scores[info.name].values,
                "n": scores[info.name].n,
                "label": info.label,
                "higher_is_better": info.higher_is_better,
                "metric": name,
                "protocol": metric.protocol(),
            }
            for info in metric.scores
            if info.name in scores
        }
        text = json.dumps(made)
        store.put("scores", keys[name], ".json", partial(Path.write_text, data=text))
        record.scores.update(made)


def _keep_other_scores(cell: Cell, record: Record, keys: Mapping[str, str]) -> None:
    """Take over what an earlier run of the same cell has scored with metrics that are not chosen now."""
    try:
        before = Record.load(cell.run_dir / "record.json")
    except (OSError, ValueError, KeyError, TypeError):
        return
    if before.key == cell.key:
        record.scores.update({name: score for name, score in before.scores.items() if score.get("metric") not in keys})
        record.keys["metrics"] = {**{n: k for n, k in before.keys.get("metrics", {}).items() if n not in keys}, **keys}


def _stack(videos: list[Any]) -> Any:
    import numpy as np

    return np.stack(videos)


def build(options: Mapping[str, Any], cell: Cell) -> Any:
    """Instantiate the metric of a metric node.

    Raises:
        ConfigError: the metric is only meant for the minis, and the model is not one.
    """
    options = dict(options)
    module, name = options.pop("_target_").rsplit(".", 1)
    for listing in ("version", "mode"):
        options.pop(listing, None)
    kind = getattr(importlib.import_module(module), name)
    if getattr(kind, "domain", None) == "minis" and not cell.model.name.startswith("mini_"):
        raise ConfigError(
            f"metric={name.lower()} is only defined on the minis, whose prompts it can read; leave it out for model={cell.model.name}"
        )
    return kind(**options)


def _mode(options: Mapping[str, Any]) -> str:
    return options.get("mode", "single")


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


def _publish(cell: Cell, record: Record, progress: Progress) -> None:
    """Hand the finished record to the tracker, which can neither fail nor change the run."""
    from vdqbench.track import publish

    ok, reason = publish(record, cell.run_dir, cell.config["tracker"])
    if not ok:
        progress.say(f"{cell.label}: not published: {reason}")


def _peak_memory() -> int:
    """Peak memory of this process in bytes; of the GPU where one was used."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
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
