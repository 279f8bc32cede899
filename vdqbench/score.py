"""Scoring: metrics from their configs, keys of what they find, and one pass over the videos that feeds them all."""

from __future__ import annotations

import importlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench import assets
from vdqbench.config import WEIGHTS, Cell, digest
from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.store import Store, key_of

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.metrics.base import Metric, Score, Streaming, VideoBatch

log = logging.getLogger(__name__)
BATCH = 16
"""Videos that are decoded and scored at once; it changes no score."""
PICTURES = ("image", "sketch")
"""Inputs that metrics take for the conditioning image, the first that there is."""
OPERATIONAL = ("batch_size", "device")
"""Options of a metric that change no score."""


def metric_keys(cell: Cell) -> dict[str, str]:
    """Key of each chosen metric's scores on this cell."""
    reference = cell.reference().key
    keys = {}
    for name, options in sorted((cell.config.get("metric") or {}).items()):
        semantic = {key: value for key, value in options.items() if key not in OPERATIONAL}
        keys[name] = key_of([semantic, asset_digests(semantic), cell.key, reference])
    return keys


def asset_digests(options: Mapping[str, Any]) -> list[str]:
    """Hashes of the weights that a metric looks through, where they are files here: other weights, other scores.

    Weights are named anywhere among the options: packaged ones by the name of their folder, others by a path or `local-dir:FOLDER`.
    """
    if options.get("mode") == "system":
        return []
    named = options if "backbone" in options else {**options, "backbone": "mini_clip"}
    files = [file for text in _texts(named) for file in _assets(text)]
    return [digest(file) for file in dict.fromkeys(files)]


def _texts(value: Any) -> Iterator[str]:
    """Every string among nested options, and the parts of a class's name, since a module is called as the folder of its weights."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from item.split(".") if key == "_target_" else _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _assets(text: str) -> list[Path]:
    """Files of weights that an option's value names; most values name none."""
    if text.startswith("local-dir:"):
        folder = Path(text.removeprefix("local-dir:")).expanduser()
    elif text.startswith("mini_") and (WEIGHTS / text).is_dir():
        folder = WEIGHTS / text
    elif found := assets.file(text):
        return [found]
    else:
        looks = os.sep in text or Path(text).suffix
        return [path] if looks and (path := Path(text).expanduser()).is_file() else []
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []


def build(options: Mapping[str, Any], cell: Cell | None = None) -> Any:
    """Instantiate the metric of a metric node, for a cell or, without one, for a user's own videos.

    Raises:
        ConfigError: the metric is only meant for the minis, and the cell's model is not one.
    """
    options = dict(assets.resolved(options))
    module, name = options.pop("_target_").rsplit(".", 1)
    for listing in ("version", "mode"):
        options.pop(listing, None)
    kind = getattr(importlib.import_module(module), name)
    if cell is not None and getattr(kind, "domain", None) == "minis" and not cell.model.name.startswith("mini_"):
        raise ConfigError(
            f"metric={name.lower()} is only defined on the minis, whose prompts it can read; leave it out for model={cell.model.name}"
        )
    if cell is not None and options.get("reference") == "image" and picture_of(cell) is None:
        raise ConfigError(
            f"metric={name.lower()} compares with the image that a video was made from (reference: image), which prompts="
            f"{cell.prompts.name} has not; use reference: fp"
        )
    return kind(**options)


def check(nodes: Mapping[str, Any]) -> None:
    """Raises ConfigError if two chosen metrics would write the same score, or a metric's weights are not there."""
    owner: dict[str, str] = {}
    for name, options in nodes.items():
        if not isinstance(options, dict) or "_target_" not in options:
            raise ConfigError(f"metric.{name}={options} is not a metric; choose metrics with metric=[NAME,NAME]")
        for one in options.get("scores") or ():
            if one in owner:
                raise ConfigError(f"metric={owner[one]},{name} both give the score {one}; choose one of them")
            owner[one] = name
        backbone = options.get("backbone", {})
        if isinstance(backbone, str) and (WEIGHTS / backbone).is_dir():
            continue
        if not isinstance(backbone, dict):
            raise ConfigError(f"metric.{name}.backbone={backbone} must be a mapping such as {{model: mini_clip}}")
        weights = backbone.get("weights")
        if isinstance(weights, str) and os.sep in weights and not Path(weights).expanduser().exists():
            raise ConfigError(
                f"metric.{name}.backbone.weights={weights} does not exist; give a file of weights or the name of a released set"
            )


def try_out(cells: Sequence[Cell]) -> None:
    """Build every metric of the cells once, before any video is made for it; one that fails for another reason fails its own cells.

    Raises:
        ConfigError: a metric lacks its weights or another option, or is not defined on the model.
    """
    tried: set[str] = set()
    for cell in cells:
        nodes = cell.config.get("metric") or {}
        assets.check(assets.of_metrics(nodes))
        for options in nodes.values():
            here = {**options, **({"device": "cpu"} if "device" in options else {})}
            name = json.dumps([here, cell.model.name], sort_keys=True, default=str)
            if options.get("mode") == "system" or name in tried:
                continue
            tried.add(name)
            try:
                build(here, cell)
            except ConfigError:
                raise
            except Exception as error:
                log.info("%s cannot be built: %s", options["_target_"], error)


def needs_references(options: Mapping[str, Any]) -> bool:
    """Whether a metric is shown the reference videos: those of a set with `reference: fp`, paired ones unless they have another."""
    mode = options.get("mode", "single")
    return mode in ("paired", "set") and options.get("reference", "fp" if mode == "paired" else None) == "fp"


def score(cell: Cell, reference: Cell, store: Store, progress: Progress, record: Record) -> None:
    """Take each metric's scores from the store, or compute and store them; videos are decoded once for all metrics."""
    keys = metric_keys(cell)
    earlier = _keep_other_scores(cell, record, keys)
    nodes = cell.config.get("metric") or {}
    missing = []
    for name, key in keys.items():
        path = None if nodes[name].get("mode") == "system" else store.get("scores", key, ".json")
        if path is None:
            missing.append(name)
        else:
            record.scores.update(json.loads(path.read_text()))
    if not missing:
        return
    metrics = {name: build(nodes[name], cell) for name in missing}
    streaming = {name: metric for name, metric in metrics.items() if metric.mode != "system"}
    if streaming:
        paired = any(needs_references(nodes[name]) for name in streaming)
        with progress.stage(f"score {cell.label}", len(cell.samples)) as advance:
            feed(streaming, batches(cell, reference if paired else None, store), advance)
    for name, metric in metrics.items():
        if metric.mode == "system":
            made = entries(name, metric, metric.from_report(record.quantization, measured(cell, store, record)))
            record.scores.update({key: earlier[key] for key in set(earlier) - set(made) if earlier[key].get("metric") == name})
        else:
            made = entries(name, metric, metric.compute())
            store.put("scores", keys[name], ".json", partial(Path.write_text, data=json.dumps(made)))
        record.scores.update(made)


def feed(metrics: Mapping[str, Streaming], videos: Iterable[VideoBatch], advance: Callable[[int], Any] = lambda count: None) -> None:
    """Show every batch to every metric, so that features computed for one serve all."""
    for batch in videos:
        for metric in metrics.values():
            metric.update(batch)
        advance(len(batch))


def batches(cell: Cell, reference: Cell | None, store: Store) -> Iterator[VideoBatch]:
    """The cell's videos, with those of the reference if it is given; decoded when a metric looks at frames."""
    from vdqbench.metrics.base import VideoBatch

    pictured = picture_of(cell)
    for samples in _alike(cell, pictured, store):
        yield VideoBatch(
            partial(_frames, cell, samples, store),
            [text for _, text, _ in samples],
            None if reference is None else partial(_frames, reference, samples, store),
            store,
            [cell.video_key(sample) for sample in samples],
            None if reference is None else [reference.video_key(sample) for sample in samples],
            partial(_pictures, cell, samples, store) if pictured else None,
            [key_of(cell.inputs(sample)[pictured].identity) for sample in samples] if pictured else None,
        )


def picture_of(cell: Cell) -> str | None:
    """The name of the input that is the picture that each video was made from; None if there is none."""
    given = [cell.inputs(sample) for sample in cell.samples]
    return next((name for name in PICTURES if all(name in one for one in given)), None)


def _alike(cell: Cell, pictured: str | None, store: Store) -> Iterator[list[tuple[str, str, int]]]:
    """The cell's samples in order, in parts of at most `BATCH` whose pictures have one size."""
    from PIL import Image

    def size(sample: tuple[str, str, int]) -> tuple[int, int] | None:
        if pictured is None:
            return None
        with Image.open(cell.inputs(sample)[pictured].file(store)) as image:
            return image.size

    for _, group in groupby(cell.samples, size):
        part = list(group)
        yield from (part[first : first + BATCH] for first in range(0, len(part), BATCH))


def _pictures(cell: Cell, samples: Sequence[tuple[str, str, int]], store: Store) -> Tensor:
    import numpy as np
    import torch

    from vdqbench import video

    name = picture_of(cell)
    return torch.from_numpy(np.stack([video.read_image(cell.inputs(sample)[str(name)].file(store)) for sample in samples]))


def _frames(cell: Cell, samples: Sequence[tuple[str, str, int]], store: Store) -> Tensor:
    import numpy as np
    import torch

    from vdqbench import generate, video

    paths = [store.path("video", cell.video_key(sample), generate.VIDEO) for sample in samples]
    return torch.from_numpy(np.stack([video.read(path) for path in paths]))


def entries(name: str, metric: Metric, scores: Mapping[str, Score]) -> dict[str, dict[str, Any]]:
    """Scores as records hold them: mean, values, n, interval, label, direction, metric and protocol, by name of the score."""
    return {
        info.name: {
            "mean": scores[info.name].mean,
            "values": scores[info.name].values,
            "n": scores[info.name].n,
            "interval": None if (interval := scores[info.name].interval) is None else list(interval),
            "label": scores[info.name].label or info.label,
            "higher_is_better": info.higher_is_better,
            "metric": name,
            "protocol": metric.protocol(),
        }
        for info in metric.scores
        if info.name in scores
    }


def _keep_other_scores(cell: Cell, record: Record, keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Take over what an earlier run of the same cell has scored with metrics that are not chosen now; returns all it has scored."""
    try:
        before = Record.load(cell.run_dir / "record.json")
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if before.key != cell.key:
        return {}
    record.scores.update({name: score for name, score in before.scores.items() if score.get("metric") not in keys})
    record.keys["metrics"] = {**{n: k for n, k in before.keys.get("metrics", {}).items() if n not in keys}, **keys}
    return before.scores


def measured(cell: Cell, store: Store, record: Record) -> dict[str, Any]:
    """What a system metric is told besides the report: the kernel, and what was measured, None if it was not.

    Time and memory are those of this run, if it made all videos; calibration is that of whichever cell made the statistics.
    """
    calibration = None if cell.calibration_key is None else store.get("timing", cell.calibration_key, ".json")
    return {
        "kernel": record.cell.get("kernel"),
        "calibration_seconds": record.timings.get("calibrate") if calibration is None else json.loads(calibration.read_text())["seconds"],
        "seconds_per_step": record.timings.get("step"),
        "peak_memory_bytes": record.peak_memory_bytes if "generate" in record.timings else None,
    }


class Pace:
    """Seconds per sampling step and video, measured between batches so that loading and warming up do not count.

    Args:
        size: videos in a batch.
        steps: sampling steps of a video.
    """

    def __init__(self, size: int, steps: int) -> None:
        self.size, self.steps = size, steps
        self._times: list[tuple[int, float]] = []

    def __call__(self, i: int) -> None:
        """Video i is finished."""
        self._times.append((i // self.size, time.perf_counter()))

    @property
    def seconds(self) -> float | None:
        """The mean over all batches but the first; None if there was no second one."""
        if not self._times:
            return None
        first = self._times[0][0]
        began = max(at for batch, at in self._times if batch == first)
        count = sum(batch != first for batch, _ in self._times)
        return (self._times[-1][1] - began) / (count * self.steps) if count else None
