"""VBench's own numbers: the official package, in an environment of its own, is run on the videos and answers in JSON.

The package pins old libraries and cannot be installed beside this one; the user names the Python of an environment that has it. It is
started as a process with a list of arguments, never through a shell, and gets a folder of lossless mp4 files and a request in JSON.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.metrics.base import Score, ScoreInfo, Streaming, VideoBatch, chosen
from vdqbench.metrics.vbench import totals

PREFIX = "vbench_official_"
TOTALS = {"quality": totals.quality, "semantic": totals.semantic, "total": totals.total}
MEMBERS = {"quality": totals.QUALITY, "semantic": totals.SEMANTIC, "total": (*totals.QUALITY, *totals.SEMANTIC)}
WITH_EXTRA = ("object_class", "multiple_objects", "scene", "appearance_style", "color", "spatial_relationship")
"""Dimensions that need what VBench's own list says about its prompts."""
DRIVER = Path(__file__).parent / "vbench" / "official_driver.py"
FIND = """
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec("vbench") is None:
    sys.exit(1)
found = [one.version for one in importlib.metadata.distributions(name="vbench")]
sys.stdout.write(found[0] if found else "of unknown version")
"""
"""What asks another Python for its vbench; it ends with 1 if there is none."""


class VBenchOfficial(Streaming):
    """Dimensions and totals as the official package computes them.

    Args:
        python: the Python executable of an environment in which `import vbench` works.
        mode: `custom_input` (any prompts; not the dimensions that need VBench's own list) or `vbench_standard` (VBench's prompts).
        fps: frames per second written into the files, which the package subsamples by.
        full_info: file `VBench_full_info.json`; None for the one in the package.
        device: handed to the package.
        timeout: seconds after which the package is stopped; None to wait.
        scores: names of the scores wanted, `vbench_official_<dimension>` and `vbench_official_{quality,semantic,total}`; None for all
            that the mode can give. A total needs all its dimensions among them.

    Raises:
        ConfigError: no such executable, no `vbench` in it, another mode, a dimension that the mode cannot give, an incomplete total.
    """

    mode = "single"
    version = 1

    def __init__(
        self,
        python: str | None = None,
        protocol: str = "custom_input",
        fps: float | None = None,
        full_info: str | None = None,
        device: str = "cuda",
        timeout: float | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        if protocol not in ("custom_input", "vbench_standard"):
            raise ConfigError(f"metric.vbench_official.protocol={protocol} must be custom_input or vbench_standard")
        if not isinstance(fps, int | float) or not fps > 0:
            raise ConfigError(f"metric.vbench_official.fps={fps} must be the videos' frames per second, by which VBench subsamples them")
        self._protocol, self._fps, self._device, self._timeout, self._full_info = protocol, fps, device, timeout, full_info
        every = [name for name in totals.BOUNDS if protocol == "vbench_standard" or name not in WITH_EXTRA]
        groups = [name for name, members in MEMBERS.items() if set(members) <= set(every)]
        self.scores = chosen(tuple(_info(name) for name in (*every, *groups)), scores, f"vbench_official with protocol={protocol}")
        names = [info.name.removeprefix(PREFIX) for info in self.scores]
        self._dimensions = [name for name in names if name in totals.BOUNDS]
        self._groups = [name for name in names if name in TOTALS]
        for group in self._groups:
            TOTALS[group](dict.fromkeys(self._dimensions, 0.0))
        self._python, self._release = _find(python)
        self._folder = tempfile.TemporaryDirectory(prefix="vdqbench-vbench-")
        self._prompts: list[str] = []
        self._files: list[str] = []

    def update(self, batch: VideoBatch) -> None:
        """Write the batch's videos, lossless, for the package to read.

        Raises:
            ConfigError: a prompt that cannot be part of a file's name, as protocol `vbench_standard` asks for.
        """
        for frames, prompt in zip(batch.videos, batch.prompts, strict=True):
            self._add(frames.numpy(), prompt)

    def _add(self, frames: np.ndarray, prompt: str) -> None:
        name = self._name(prompt)
        video.write_lossless(Path(self._folder.name) / "videos" / name, frames, self._fps)
        self._prompts.append(prompt)
        self._files.append(name)

    def _name(self, prompt: str) -> str:
        if self._protocol == "custom_input":
            return f"{len(self._files):06d}.mp4"
        return standard_name(prompt, Counter(self._prompts)[prompt])

    def merge(self, other: Self) -> None:
        """Take over the other's videos.

        Raises:
            ValueError: the other measures by another protocol.
        """
        if other.protocol() != self.protocol() or other.scores != self.scores:
            raise ValueError("shards of VBenchOfficial can only be merged when their protocols and scores are equal")
        for file, prompt in zip(other._files, other._prompts, strict=True):
            name = self._name(prompt)
            target = Path(self._folder.name) / "videos" / name
            target.parent.mkdir(exist_ok=True)
            os.link(Path(other._folder.name) / "videos" / file, target)
            self._prompts.append(prompt)
            self._files.append(name)

    def compute(self) -> dict[str, Score]:
        """Run the package on all videos.

        Raises:
            ValueError: no video was seen.
            RuntimeError: the package failed, took too long, or left videos out.
        """
        if not self._files:
            raise ValueError("VBenchOfficial has seen no video; update it with at least one batch")
        answer = self._run()
        found = {name: self._score(name, answer) for name in self._dimensions}
        if unseen := sorted(set(self._files) - self._seen(answer)):
            raise RuntimeError(
                f"the official VBench looked at none of {len(unseen)} videos, the first {unseen[0]}; its list lacks their prompts"
            )
        means = {name: score.mean for name, score in found.items()}
        found |= {group: Score(None, TOTALS[group](means), len(self._files)) for group in self._groups}
        return {PREFIX + name: score for name, score in found.items()}

    def _seen(self, answer: Mapping[str, Any]) -> set[str]:
        """Names of the files that some dimension has looked at."""
        return {Path(result["video_path"]).name for name in self._dimensions for result in answer[name][1]}

    def _run(self) -> Mapping[str, Any]:
        folder = Path(self._folder.name)
        request = {
            "videos": str(folder / "videos"),
            "prompts": dict(zip(self._files, self._prompts, strict=True)) if self._protocol == "custom_input" else {},
            "dimensions": self._dimensions,
            "mode": self._protocol,
            "device": self._device,
            "full_info": self._full_info,
            "output": str(folder / "output"),
            "answer": str(folder / "answer.json"),
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        # The driver's text is passed, not its path: a script's folder would come first on the other environment's import path.
        command = [self._python, "-c", DRIVER.read_text(encoding="utf-8"), str(folder / "request.json")]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=self._timeout, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"the official VBench took more than metric.vbench_official.timeout={self._timeout} seconds") from error
        if done.returncode != 0:
            last = (done.stderr.strip() or "it wrote nothing").splitlines()[-1]
            raise RuntimeError(f"the official VBench in {self._python} failed with exit code {done.returncode}: {last[:300]}")
        try:
            return json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RuntimeError(f"the official VBench in {self._python} ended well but left no answer ({error})") from error

    def _score(self, name: str, answer: Mapping[str, Any]) -> Score:
        """A dimension's score; its mean is the package's own."""
        try:
            mean, results = answer[name]
            by_file = {Path(result["video_path"]).name: float(result["video_results"]) for result in results}
            mean = float(mean)
        except (KeyError, TypeError, ValueError) as error:
            raise RuntimeError(f"the official VBench answered {name} in an unknown form ({type(error).__name__}: {error})") from error
        if not math.isfinite(mean):
            raise RuntimeError(f"the official VBench gave {name}={mean}; every score must be finite")
        missing = [file for file in self._files if file not in by_file]
        if self._protocol == "vbench_standard":
            return Score(None, mean, len(self._files) - len(missing))
        if missing:
            raise RuntimeError(
                f"the official VBench left out {len(missing)} of {len(self._files)} videos in {name}, the first {missing[0]}"
            )
        scale = 100 if name == "imaging_quality" else 1  # only its mean is divided by 100 there
        return Score([by_file[file] / scale for file in self._files], mean, len(self._files))

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "library": f"vbench {self._release}", "protocol": self._protocol, "fps": self._fps}


def standard_name(prompt: str, index: int) -> str:
    """`<prompt>-<index>.mp4`, by which VBench finds the videos of its prompts.

    Raises:
        ConfigError: the prompt is empty or cannot be part of a file's name.
    """
    name = f"{prompt}-{index}.mp4"
    if not prompt or any(mark in prompt for mark in "/\\\0\n\r") or prompt.startswith(".") or len(name.encode()) > 255:
        raise ConfigError(f"prompt {prompt!r} cannot be a file's name, as protocol=vbench_standard asks for; use protocol=custom_input")
    return name


def _info(name: str) -> ScoreInfo:
    label = f"VBench {name.replace('_', ' ')} (official)"
    return ScoreInfo(PREFIX + name, label, True, None, None)


def _find(python: str | None) -> tuple[str, str]:
    """The absolute path of an executable that has vbench, and that package's version.

    Raises:
        ConfigError: it is not one.
    """
    key = "metric.vbench_official.python"
    path = Path(python or "").expanduser()
    if not python or not path.is_file() or not os.access(path, os.X_OK):
        raise ConfigError(f"{key}={python} is not an executable; give the python of an environment with the package vbench installed")
    try:
        found = subprocess.run([str(path.absolute()), "-c", FIND], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"{key}={python} cannot be run ({error}); give the python of an environment with vbench") from error
    if found.returncode != 0:
        raise ConfigError(f"{key}={python} has no package vbench; install it in that environment, or give another one's python")
    return str(path.absolute()), found.stdout.strip()
