"""A detector, the network that a distance between sets of videos looks through, and files of its features of a reference set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vdqbench import video
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import Side, VideoBatch
from vdqbench.metrics.distances import Moments

BATCH = 16
SUFFIXES = (".mkv", ".mp4", ".webm", ".mov", ".avi", ".gif")


@dataclass(frozen=True, eq=False)
class Detector:
    """A network with its weights, and how videos reach it.

    Attributes:
        name: under which its features are filed; one name, one way from frames to features.
        label: what it is called in the label of a score.
        dim: number of features D.
        min_frames: frames that a video must have.
        sha256: hash of the weights.
        preprocessing: what happens to frames on their way, for the protocol.
        frames: how many of a video's first frames are looked at; None for all.
        network: features [M, D] of videos uint8 [M, T, H, W, 3], each treated alone.
        batch_size: videos that the network is shown at once; it changes no feature.
        version: raised when the way from frames to features changes.
    """

    name: str
    label: str
    dim: int
    min_frames: int
    sha256: str
    preprocessing: Mapping[str, Any]
    frames: int | None
    network: Callable[[Tensor], Tensor]
    batch_size: int = 8
    version: int = 1

    def protocol(self) -> dict[str, Any]:
        """What the features depend on besides the videos."""
        first = "all" if self.frames is None else f"first {self.frames}"
        return {"version": self.version, "detector": self.label, "sha256": self.sha256, **self.preprocessing, "looked_at": first}

    def features(self, batch: VideoBatch, of: Side) -> Tensor:
        """Features and number of frames of a batch's `videos` or `references`, float32 [N, D + 1], computed once for all metrics.

        The number of frames stands in the last column, so that it is known of stored features without decoding the video.
        """
        return batch.features(of, json.dumps({"name": self.name, **self.protocol()}, sort_keys=True), self.embed)

    def embed(self, videos: Tensor) -> Tensor:
        """Features and number of frames, float32 [N, D + 1], of videos uint8 [N, T, H, W, 3].

        Raises:
            Unsupported: videos with fewer frames than it needs, or than it is to look at.
        """
        needed = max(self.min_frames, self.frames or 0)
        if videos.shape[1] < needed:
            raise Unsupported(
                f"{self.label} needs {needed} frames and these videos have {videos.shape[1]}; score longer videos or leave the metric out"
            )
        videos = videos[:, : self.frames]
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            made = torch.cat([self.network(part).float().cpu() for part in videos.split(self.batch_size)])
        return torch.cat([made, torch.full((len(made), 1), float(videos.shape[1]))], dim=1)


def torch_device(device: str | None) -> torch.device:
    """The device of this name; a GPU if there is one for None or `auto`.

    Raises:
        ConfigError: torch has no such device.
    """
    try:
        return torch.device(device if device not in (None, "auto") else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device={device} is not a device of torch; use auto, cpu, cuda or cuda:N") from error


@dataclass(frozen=True, eq=False)
class Statistics:
    """A reference set as one detector sees it: features float32 [N, D], or only their moments where the features were not kept."""

    n: int
    frames: int
    features: Tensor | None
    moments: Moments

    def protocol(self) -> dict[str, Any]:
        return {"n": self.n, "frames": self.frames}


def write_statistics(
    detectors: Sequence[Detector],
    videos: Path | str | Iterable[np.ndarray | Tensor],
    path: Path | str,
    keep_features: bool = True,
) -> Path:
    """Write what detectors see of a reference set, with their protocols, into `<name>.safetensors`, reading the videos once.

    Args:
        detectors: as `SetDistance.detectors` gives them.
        videos: a folder of video files, taken in order of name, or arrays uint8 [T, H, W, 3] of one number of frames.
        path: the file, with the suffix `.safetensors`.
        keep_features: whether to keep every video's features, which kernel distances need, or only mean and scatter.

    Raises:
        ConfigError: another suffix, no video, or a file that cannot be read.
        Unsupported: videos with too few frames, or with different numbers of frames.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ConfigError(f"statistics {path} must be named {path.with_suffix('.safetensors').name}")
    seen: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    moments: dict[str, Moments] = {}
    counted: set[int] = set()
    for part in _batched(_videos(videos), BATCH):
        for detector in detectors:
            rows = detector.embed(part)
            counted.add(int(rows[0, -1]))
            new = Moments.of(rows[:, :-1])
            moments[detector.name] = moments[detector.name].merged(new) if detector.name in moments else new
            if keep_features:
                seen[detector.name].append(rows[:, :-1])
    if not moments:
        raise ConfigError(f"there is no video in {videos if isinstance(videos, Path | str) else 'what was given'} to take statistics of")
    if len(counted) > 1:
        raise Unsupported(f"the videos have {sorted(counted)} frames; set frames to the least of these numbers")
    tensors: dict[str, Tensor] = {}
    about: dict[str, Any] = {}
    for detector in detectors:
        name, found = detector.name, moments[detector.name]
        about[name] = {"protocol": detector.protocol(), "n": found.n, "frames": next(iter(counted))}
        if keep_features:
            tensors[f"{name}.features"] = torch.cat(seen[name])
        else:
            tensors |= {f"{name}.mean": found.mean, f"{name}.scatter": found.scatter.contiguous()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"statistics": json.dumps(about, sort_keys=True)})
    return path


def read_statistics(path: Path | str, detector: Detector) -> Statistics:
    """What a file written by `write_statistics` holds of this detector.

    Raises:
        ConfigError: no such file, another kind of file, or features taken by another protocol.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"reference={path} is neither fp nor a file of statistics; write one with write_statistics or set it to fp")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("statistics", "null"))
            tensors = {name: file.get_tensor(name) for name in tuple(file.keys()) if name.startswith(f"{detector.name}.")}
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"reference={path} cannot be read ({error}); expected a file of write_statistics") from error
    if not isinstance(about, dict):
        raise ConfigError(f"reference={path} does not say by which protocol it was made; expected a file of write_statistics")
    if detector.name not in about:
        raise ConfigError(
            f"reference={path} holds statistics of {', '.join(about)} and none of {detector.name}; write them with this metric"
        )
    entry, wanted = about[detector.name], detector.protocol()
    for key in sorted(wanted.keys() | entry["protocol"].keys()):
        if (made := entry["protocol"].get(key)) != wanted.get(key):
            raise ConfigError(
                f"reference={path} was made with {key}={made} and the metric has {key}={wanted.get(key)}; write statistics with the metric"
            )
    features = tensors.get(f"{detector.name}.features")
    if features is not None:
        return Statistics(entry["n"], entry["frames"], features, Moments.of(features))
    return Statistics(
        entry["n"], entry["frames"], None, Moments(entry["n"], tensors[f"{detector.name}.mean"], tensors[f"{detector.name}.scatter"])
    )


def _videos(source: Path | str | Iterable[np.ndarray | Tensor]) -> Iterator[Tensor]:
    if isinstance(source, Path | str):
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"statistics of {folder} cannot be taken, because it is not a folder of videos")
        yield from (torch.from_numpy(video.read(file)) for file in sorted(folder.iterdir()) if file.suffix.lower() in SUFFIXES)
    else:
        yield from (torch.as_tensor(one) for one in source)


def _batched(videos: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Videos of one shape in a row, stacked, at most `size` at once; checked as a batch of any metric is."""
    held: list[Tensor] = []
    for one in videos:
        if held and (len(held) == size or held[0].shape != one.shape):
            yield VideoBatch(torch.stack(held), [""] * len(held)).videos
            held = []
        held.append(one)
    if held:
        yield VideoBatch(torch.stack(held), [""] * len(held)).videos
