"""Reads what the page shows: records with their folders, finished tables, copies of videos, and statistics of calibrations."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.record import Record, Sample
from vdqbench.report.html.tables import read_table
from vdqbench.report.plain import load
from vdqbench.report.series import HeatMap
from vdqbench.report.settings import identity, setting_key
from vdqbench.report.table import Rendered
from vdqbench.store import Store, write_atomic
from vdqbench.video import natural


@dataclass(frozen=True)
class Clip:
    """A copy of a video for eyes: where it is (a data URI or a relative address), how long, how fast, and how large."""

    source: str
    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Run:
    """A record, the folder it lies in, and the overrides that its cell was started with, where they are known."""

    record: Record
    folder: Path
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Videos:
    """Which videos the page holds: the first `most` of each cell (None: all), within the page or as links to the files."""

    most: int | None = 4
    linked: bool = False

    @classmethod
    def parse(cls, word: str) -> Videos:
        """From `4`, `all`, `none` or `link`.

        Raises:
            ConfigError: another word.
        """
        if word in ("all", "none", "link"):
            return {"all": cls(None), "none": cls(0), "link": cls(None, True)}[word]
        if not word.isdecimal():
            raise ConfigError(f"videos={word} must be a number of videos of each cell, all, none or link")
        return cls(int(word))


@dataclass(frozen=True)
class Found:
    """Everything that was read.

    Attributes:
        clips: by the record's identity and sample. `references`: the same for the reference of a setting, by the reference's key.
        activations: largest |input| by layer and step, by the key of the calibration; `observed`: what each was calibrated on.
        troubles: sentences about what could not be read.
    """

    runs: tuple[Run, ...]
    tables: tuple[Rendered, ...] = ()
    clips: Mapping[tuple[str, Sample], Clip] = field(default_factory=dict)
    references: Mapping[tuple[str, Sample], Clip] = field(default_factory=dict)
    activations: Mapping[str, HeatMap] = field(default_factory=dict)
    troubles: tuple[str, ...] = ()

    @property
    def records(self) -> list[Record]:
        return [run.record for run in self.runs]


def gather(out: Path, page: Path, videos: Videos, progress: Progress) -> Found:
    """Read a results folder for a page that will be written to `page`.

    Raises:
        ConfigError: there is no record.
    """
    runs = tuple(_runs(out))
    if not runs:
        raise ConfigError(f"{out} holds no records; run a cell first, or give the folder that was out=...")
    troubles: list[str] = []
    tables = tuple(_tables(out / "tables", troubles))
    clips, references = _clips(out, runs, page, videos, progress, troubles)
    return Found(runs, tables, clips, references, _activations(out, runs, progress, troubles), tuple(troubles))


def _runs(out: Path) -> Iterator[Run]:
    for path in sorted(out.glob("runs/*/*/record.json")):
        yield Run(load(path), path.parent, _overrides(path.parent / ".hydra" / "overrides.yaml"))


def _overrides(path: Path) -> tuple[str, ...]:
    import yaml

    try:
        words = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ()
    return tuple(str(word) for word in words if not str(word).startswith("study=sweep-")) if isinstance(words, list) else ()


def _tables(folder: Path, troubles: list[str]) -> Iterator[Rendered]:
    for path in sorted(folder.rglob("*.json")):
        try:
            yield read_table(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            name = path.relative_to(folder).as_posix()
            troubles.append(f"table {name} cannot be read ({type(error).__name__}: {error}); make it again with vdqbench table=...")


def _clips(
    out: Path, runs: Sequence[Run], page: Path, videos: Videos, progress: Progress, troubles: list[str]
) -> tuple[dict[tuple[str, Sample], Clip], dict[tuple[str, Sample], Clip]]:
    """Clips of all cells, and of the references that have no run of their own, from the store."""
    done = [run for run in runs if run.record.state == "done"]
    clips: dict[tuple[str, Sample], Clip] = {}
    wanted: dict[tuple[str, Sample], tuple[str, float]] = {}
    with progress.stage("videos", len(done)) as advance:
        for run in done:
            keys = run.record.keys.get("reference_videos") or []
            for i, entry in enumerate(run.record.videos[: videos.most]):
                sample = (str(entry["prompt_id"]), int(entry["seed"]))
                path = run.folder / str(entry["mp4"])
                try:
                    made = clips[identity(run.record), sample] = _clip(_inside(path, run.folder), page, videos.linked)
                except (OSError, ValueError) as error:
                    what = f"{entry['mp4']} of {run.record.name} {run.record.key}"
                    troubles.append(f"video {what} cannot be shown ({error}); run the cell again")
                    continue
                if i < len(keys):
                    wanted.setdefault((setting_key(run.record), sample), (str(keys[i]), made.fps))
            advance(1)
    own = {run.record.key for run in done}
    missing = {where: wanted[where] for where in wanted if where[0] not in own}
    references = {(run.record.key, sample): clip for run in done for (name, sample), clip in clips.items() if name == identity(run.record)}
    references = {where: references[where] for where in wanted if where in references}
    if missing:
        with progress.stage("reference videos", len(missing)) as advance:
            for where, (key, fps) in missing.items():
                clip = _reference_clip(Store(out / "store"), key, fps, page, videos.linked)
                references |= {} if clip is None else {where: clip}
                advance(1)
    return clips, references


def _inside(path: Path, folder: Path) -> Path:
    """The path, if it lies in the folder: a record names files, and only its own ones are shown."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("it lies outside of its run folder")
    return path


def _clip(path: Path, page: Path, linked: bool) -> Clip:
    """A clip of an mp4 file.

    Raises:
        OSError, ValueError: it is missing, or no video.
    """
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            frames, width, height = stream.frames, stream.codec_context.width, stream.codec_context.height
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(str(error)) from error
    if not (frames and rate):
        raise ValueError("it does not say how many frames it has, or how fast they are")
    return Clip(_address(path, page) if linked else data_uri(path.read_bytes()), frames, rate, width, height)


def data_uri(content: bytes) -> str:
    """An mp4 as an address that holds it."""
    return "data:video/mp4;base64," + base64.b64encode(content).decode()


def _address(path: Path, page: Path) -> str:
    """A file's address relative to the page, with every character that has a meaning in one escaped."""
    return quote(Path(os.path.relpath(path.resolve(), page.resolve().parent)).as_posix())


def _reference_clip(store: Store, key: str, fps: float, page: Path, linked: bool) -> Clip | None:
    """A small copy of a lossless video of the store; beside the page where videos are linked. None if it is not there any more."""
    from vdqbench import video

    source = store.get("video", key, ".mkv")
    if source is None:
        return None
    if linked:
        path = page.with_name(f"{page.stem}_videos") / f"{key}.mp4"
        if not path.exists():
            write_atomic(path, lambda file: video.write_mp4(file, video.read(source), fps))
        return _clip(path, page, linked)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.mp4"
        video.write_mp4(path, video.read(source), fps)
        return _clip(path, page, linked)


def _activations(out: Path, runs: Sequence[Run], progress: Progress, troubles: list[str]) -> dict[str, HeatMap]:
    store, made = Store(out / "store"), {}
    roles: dict[str, dict[str, str]] = {}
    for run in runs:
        key = run.record.keys.get("statistics") or run.record.keys.get("calibration")
        if key:
            roles.setdefault(str(key), {}).update((run.record.quantization.get("sqnr") or {}).get("roles") or {})
    paths = {key: store.path("calibration", key, ".safetensors") for key in roles}
    paths = {key: path for key, path in paths.items() if path.exists()}
    if not paths:
        return {}
    with progress.stage("calibrations", len(paths)) as advance:
        for key, path in paths.items():
            try:
                made[key] = largest_by_step(path, roles[key])
            except (OSError, ValueError, KeyError) as error:
                troubles.append(f"calibration {key} cannot be read ({error}); run a cell that needs it again")
            advance(1)
    return made


def largest_by_step(path: Path, roles: Mapping[str, str]) -> HeatMap:
    """Largest |input| of each layer that a calibration observed, by step: over prompts, guidance branches and channels.

    Rows are in the order of `roles`, which is the model's, and otherwise by name.

    Tensors are read one at a time, since those of a large model would not fit into memory together.

    Raises:
        ValueError: the file is not a calibration.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("calibration", "{}"))
            source = about.get("source") or {}
            rows, place = [], {name: i for i, name in enumerate(roles)}
            for name in sorted(set(source.values()), key=lambda name: (place.get(name, len(place)), natural(Path(name)))):
                bounds = [np.abs(file.get_tensor(f"{name}|{kind}")).max(axis=(0, 2, 3)) for kind in ("min", "max")]
                rows.append((name, tuple(float(value) for value in np.maximum(*bounds))))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if not rows:
        raise ValueError("it names no layers")
    return HeatMap(tuple(name for name, _ in rows), tuple(roles.get(name, "") for name, _ in rows), tuple(values for _, values in rows))
