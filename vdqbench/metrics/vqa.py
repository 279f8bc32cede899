"""VQA-A and VQA-T: aesthetic and technical quality of a video by DOVER, on EvalCrafter's and on DOVER's own scale.

Protocol `evalcrafter` is that of the papers' tables, with its sampling as it is: of a video shorter than 32 frames VQA-A sees the
first frame alone. Protocol `all_frames` sees every frame; its scores have other names. Raw scores stand beside the percentages,
because EvalCrafter's sigmoids are steep. The random draws of DOVER's samplers are the same for every video, so that neither order
nor batches nor shards change a score and a quantized video is looked at where its reference was.

The papers score compressed files; this metric scores the frames themselves, which are sharper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import ConfigError, nearest
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.metrics.detector import torch_device
from vdqbench.metrics.dover.network import BRANCHES, WHERE, Branch, load
from vdqbench.metrics.dover.sampling import PROTOCOLS, aesthetic_view, technical_view
from vdqbench.metrics.dover.scale import DOVER, EVALCRAFTER, overall, percent

SUFFIX = {"evalcrafter": "", "all_frames": "_all_frames"}
BOTH: tuple[Branch, ...] = ("technical", "aesthetic")
NEEDS: dict[str, tuple[Branch, ...]] = {
    "vqa_a": ("aesthetic",),
    "vqa_t": ("technical",),
    "vqa": BOTH,
    "dover_a": ("aesthetic",),
    "dover_t": ("technical",),
    "dover": BOTH,
    "dover_a_raw": ("aesthetic",),
    "dover_t_raw": ("technical",),
}
LABELS = {
    "vqa_a": "VQA-A",
    "vqa_t": "VQA-T",
    "vqa": "VQA overall",
    "dover_a": "DOVER aesthetic",
    "dover_t": "DOVER technical",
    "dover": "DOVER overall",
    "dover_a_raw": "DOVER aesthetic (raw)",
    "dover_t_raw": "DOVER technical (raw)",
}


def rescaled(raw: Mapping[Branch, Tensor]) -> dict[str, Tensor]:
    """Every score, float64 [N], that follows from the raw scores [N] of the branches given by name.

    `vqa*` are on EvalCrafter's scale and `dover*` on DOVER's, in 0..100; `dover_*_raw` are the network's outputs.
    """
    scores: dict[str, Tensor] = {}
    for branch, values in raw.items():
        letter = branch[0]
        scores[f"vqa_{letter}"] = percent(values, EVALCRAFTER[branch])
        scores[f"dover_{letter}"] = percent(values, DOVER[branch])
        scores[f"dover_{letter}_raw"] = values.double()
    if raw.keys() >= set(BRANCHES):
        scores["vqa"], scores["dover"] = overall(raw, EVALCRAFTER), overall(raw, DOVER)
    return scores


class Vqa(PerVideo):
    """DOVER's scores by one of the two protocols.

    Args:
        weights: file of the released checkpoint, DOVER.pth.
        protocol: `evalcrafter` or `all_frames`; the names of the scores tell them apart.
        seed: of the samplers' random draws.
        antialias: whether the squash to 224x224 smooths; torchvision 0.15, which EvalCrafter pins, does not smooth tensors.
        batch_size: clips of 32 frames in the network at once; changes no score.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all. A branch that none of them needs is not run.

    Raises:
        ConfigError: an unknown protocol, no weights, or weights of another network.
    """

    mode = "single"
    version = 1

    def __init__(
        self,
        weights: str | None,
        protocol: str = "evalcrafter",
        seed: int = 42,
        antialias: bool = False,
        batch_size: int = 1,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ConfigError(f"metric protocol={protocol} is not one of VQA's{nearest(str(protocol), PROTOCOLS)}")
        suffix, kind = SUFFIX[protocol], "" if protocol == "evalcrafter" else " (all frames)"
        self.available = tuple(
            ScoreInfo(f"{name}{suffix}", f"{label}{kind}", True, *((None, None) if name.endswith("raw") else (0.0, 100.0)))
            for name, label in LABELS.items()
        )
        super().__init__(scores)
        self._suffix, self._sampling = suffix, {"protocol": protocol, "seed": seed, "antialias": antialias}
        self._protocol, self._seed, self._antialias, self._batch_size = protocol, seed, antialias, batch_size
        if weights is None:
            raise ConfigError(f"weights=null leaves metric vqa to random ones, whose scores mean nothing; set it to the file {WHERE}")
        self._device = torch_device(device)
        self._model, self._sha256 = load(weights, self._device)

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        needed = [branch for branch in BRANCHES if self.wants(*(f"{name}{self._suffix}" for name, of in NEEDS.items() if branch in of))]
        raw = {branch: self._raw(batch, branch) for branch in needed}
        return {f"{name}{self._suffix}": values for name, values in rescaled(raw).items()}

    def _raw(self, batch: VideoBatch, branch: Branch) -> Tensor:
        """Raw scores [N] of a branch: the mean over the positions and clips of each video."""
        key = json.dumps({"features": f"dover_{branch}", **self.protocol()}, sort_keys=True)
        return batch.features("videos", key, lambda frames: torch.stack([self._score(video, branch) for video in frames]))

    @torch.inference_mode()
    def _score(self, video: Tensor, branch: Branch) -> Tensor:
        if branch == "technical":
            views = technical_view(video, self._protocol, self._seed)  # type: ignore[arg-type]
        else:
            views = aesthetic_view(video, self._protocol, self._seed, self._antialias)  # type: ignore[arg-type]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # the sigmoids are too steep for less than float32
            return torch.cat([self._model(part.to(self._device), branch).cpu() for part in views.split(self._batch_size)]).mean()

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "backbone": "DOVER", "sha256": self._sha256, **self._sampling}
