"""mini_vqa_t and mini_vqa_a: technical and aesthetic quality of shapes videos, by a small network trained on graded distortions.

They stand where VQA-T and VQA-A stand for the real models, and are not comparable with them. The technical score falls with noise,
blur, blocks, displaced, flickering and shuffled frames; the aesthetic one with wrong colours and with what spoils single frames.
Both are 100 minus the percentage of the distortion's full strength (`experiments/minis/distortions.py`), so that untouched shapes
videos are near 100. Of a video of more than 16 frames the logits of the windows of 16 that cover it are averaged. What a video shows,
and whether it is what the prompt asked for, they do not see.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.detector import torch_device
from vdqbench.shapes import FRAMES, SIZE

FOLDER = Path(__file__).resolve().parents[1] / "models" / "weights" / "mini_quality"
HEADS = ("technical", "aesthetic")


class QualityNet(nn.Module):
    """Logits of technical and aesthetic quality from a video and its changes from frame to frame.

    Means and deviations of the features of every resolution are what is judged. Nothing is normalised on the way: the amount of
    contrast, noise or flicker is the message.
    """

    def __init__(self, widths: Sequence[int] = (16, 32, 48, 64), hidden: int = 64) -> None:
        super().__init__()
        a, b, c, d = widths
        self.stages = nn.ModuleList(
            [
                nn.Conv3d(6, a, (1, 4, 4), (1, 2, 2), padding=(0, 1, 1)),
                nn.Conv3d(a, b, (1, 4, 4), (1, 2, 2), padding=(0, 1, 1)),
                nn.Conv3d(b, c, 3, (1, 2, 2), padding=1),
                nn.Conv3d(c, d, 3, 2, padding=1),
            ]
        )
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(2 * sum(widths), hidden), nn.GELU(), nn.Linear(hidden, 1)) for _ in HEADS)

    def forward(self, videos: Tensor) -> Tensor:
        """Logits [N, 2], technical and aesthetic, of videos uint8 [N, T, H, W, 3]."""
        x = videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        change = F.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 0, 1, 0))
        x = torch.cat([x, change], dim=1)
        seen = []
        for stage in self.stages:
            x = F.gelu(stage(x))
            variance, mean = torch.var_mean(x, dim=(2, 3, 4), correction=0)
            seen += [mean, (variance + 1e-6).sqrt()]
        pooled = torch.cat(seen, dim=1)
        return torch.cat([head(pooled) for head in self.heads], dim=1)


def quality(logits: Tensor) -> Tensor:
    """100 sigmoid(logits): quality in 0..100."""
    return 100 * torch.sigmoid(logits.double())


def windows(frames: int) -> list[int]:
    """First frames of the fewest windows of 16 frames that cover a video, evenly spaced; neighbours overlap if they must."""
    count = -(-frames // FRAMES)
    return [round(i * (frames - FRAMES) / max(count - 1, 1)) for i in range(count)]


def load(folder: Path = FOLDER, device: torch.device | str = "cpu") -> tuple[QualityNet, str]:
    """The shipped network, in evaluation mode and float32, and the hash of its weights."""
    model = QualityNet(**json.loads((folder / "config.json").read_text())["network"])
    path, key, where = folder / "model.safetensors", "weights of metric mini_quality", "the file in the package"
    sha256 = load_exactly(model, read_checkpoint(path, key, where), key, path, where)
    return model.to(device).eval().requires_grad_(False), sha256


class MiniQuality(PerVideo):
    """Technical and aesthetic quality of shapes videos in 0..100.

    Args:
        weights: `mini_quality`, the network in the package.
        batch_size: videos in the network at once; changes no score.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for both.

    Raises:
        ConfigError: other weights, or no such device.
    """

    mode = "single"
    version = 1
    domain = "minis"
    available = (
        ScoreInfo("mini_vqa_t", "mini VQA-T", True, 0.0, 100.0),
        ScoreInfo("mini_vqa_a", "mini VQA-A", True, 0.0, 100.0),
    )

    def __init__(
        self,
        weights: str = "mini_quality",
        batch_size: int = 64,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        super().__init__(scores)
        if weights != "mini_quality":
            raise ConfigError(f"weights={weights} of metric mini_quality must be mini_quality, the network in the package")
        self._device = torch_device(device)
        self._batch_size = batch_size
        self._model, self._sha256 = load(device=self._device)

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        key = json.dumps({"features": "quality", **self.protocol()}, sort_keys=True)
        technical, aesthetic = quality(batch.features("videos", key, self._logits)).unbind(dim=1)
        return {"mini_vqa_t": technical, "mini_vqa_a": aesthetic}

    @torch.inference_mode()
    def _logits(self, videos: Tensor) -> Tensor:
        """Logits [N, 2] of videos uint8 [N, T >= 16, 32, 32, 3]: the mean over windows of 16 frames.

        Raises:
            Unsupported: videos of another size or fewer frames, which the network has not seen.
        """
        if videos.shape[1] < FRAMES or tuple(videos.shape[2:4]) != (SIZE, SIZE):
            raise Unsupported(
                f"mini_quality judges shapes videos of at least {FRAMES} frames of {SIZE}x{SIZE} pixels and these have {videos.shape[1]} "
                f"frames of {videos.shape[2]}x{videos.shape[3]}; leave the metric out or use metric=vqa_all_frames"
            )
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            seen = [self._of_windows(videos[:, first : first + FRAMES]) for first in windows(videos.shape[1])]
        return torch.stack(seen).mean(dim=0)

    def _of_windows(self, videos: Tensor) -> Tensor:
        return torch.cat([self._model(part.to(self._device)).cpu() for part in videos.split(self._batch_size)])

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "backbone": "mini_quality", "sha256": self._sha256}
