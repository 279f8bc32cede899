"""How much faster the CLIP family is scored in one pass than by a loop per metric, on the same weights and the same files.

    python experiments/bench/clip_family.py [--videos 64] [--model ViT-B-32] [--out experiments/bench/clip_family.md]

CLIPSIM, CLIP-temp, background consistency, and QVD's Text and Smooth of videos of 16 frames. The loop is what public evaluators
do: every metric opens every file, prepares its frames one by one with the model's own transform and embeds them one by one
(background consistency: all frames of a video at once), and those with a prompt embed it. Here files are decoded once and every
frame is embedded once, in batches. The last line takes the same scores again, from stored features. Weights are random, which
changes no time. What is compared is processor time, so that other processes disturb little. Both sides must agree in every score.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

from vdqbench import video
from vdqbench.metrics.backbone import Backbone, open_backbone
from vdqbench.metrics.base import PerVideo, VideoBatch
from vdqbench.metrics.clip import Clip, QVDClip
from vdqbench.metrics.vbench.background import BackgroundConsistency
from vdqbench.score import feed
from vdqbench.shapes import FPS, dataset
from vdqbench.store import Store

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Files = list[tuple[Path, str]]


def random_backbone(architecture: str, folder: Path) -> Backbone:
    """An open_clip architecture with seeded random weights, opened as a user's own."""
    torch.manual_seed(0)
    config = open_clip.get_model_config(architecture)
    model = open_clip.create_model(architecture)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return open_backbone({"model": f"local-dir:{folder}"}, "cpu")


@dataclass(frozen=True)
class Loop:
    """The public evaluators' way: one file, one metric, one frame at a time."""

    backbone: Backbone
    transform: Callable[[Image.Image], Tensor]

    def frames(self, path: Path) -> list[Tensor]:
        return [self.transform(Image.fromarray(frame)) for frame in video.read(path)]

    @torch.inference_mode()
    def embed(self, frame: Tensor) -> Tensor:
        return F.normalize(self.backbone.model.encode_image(frame[None]), dim=-1)[0]

    @torch.inference_mode()
    def embed_text(self, prompt: str) -> Tensor:
        return F.normalize(self.backbone.model.encode_text(self.backbone.tokenizer([prompt])), dim=-1)[0]

    def clipsim(self, path: Path, prompt: str) -> float:
        text = self.embed_text(prompt)
        return float(np.mean([float(self.embed(frame) @ text) for frame in self.frames(path)]))

    def clip_temp(self, path: Path, prompt: str) -> float:
        features = [self.embed(frame) for frame in self.frames(path)]
        return float(np.mean([float(a @ b) for a, b in pairwise(features)]))

    @torch.inference_mode()
    def background_consistency(self, path: Path, prompt: str) -> float:
        features = F.normalize(self.backbone.model.encode_image(torch.stack(self.frames(path))), dim=-1)
        values = [(max(0.0, float(f @ p)) + max(0.0, float(f @ features[0]))) / 2 for p, f in pairwise(features)]
        return float(np.mean(values))

    def clip_text(self, path: Path, prompt: str) -> float:
        return 100 * self.clipsim(path, prompt)

    def clip_smooth(self, path: Path, prompt: str) -> float:
        return 100 * self.clip_temp(path, prompt)


def loop(backbone: Backbone, files: Files) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Values and seconds by metric."""
    one = Loop(backbone, open_clip.image_transform(backbone.size, is_train=False, mean=MEAN, std=STD))
    values, seconds = {}, {}
    for name in ("clipsim", "clip_temp", "background_consistency", "clip_text", "clip_smooth"):
        began = time.process_time()
        values[name] = [getattr(one, name)(path, prompt) for path, prompt in files]
        seconds[name] = time.process_time() - began
    return values, seconds


def family(spec: Mapping[str, str], files: Files, store: Store | None) -> tuple[dict[str, list[float]], float]:
    """Values by metric, and seconds of all of them together."""
    metrics: dict[str, PerVideo] = {
        "clip": Clip(spec, device="cpu"),
        "background": BackgroundConsistency(spec, device="cpu"),
        "qvd": QVDClip(spec, device="cpu", scores=["clip_text", "clip_smooth"]),
    }
    began = time.process_time()
    batches = (
        VideoBatch(
            lambda part=part: torch.from_numpy(np.stack([video.read(path) for path, _ in part])),
            [prompt for _, prompt in part],
            store=store,
            keys=[path.stem for path, _ in part],
        )
        for part in (files[first : first + 16] for first in range(0, len(files), 16))
    )
    feed(metrics, batches)
    found = {name: score.values or [] for metric in metrics.values() for name, score in metric.compute().items()}
    seconds = time.process_time() - began
    return {name.partition("_local_dir")[0]: values for name, values in found.items()}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "model").mkdir()
        backbone = random_backbone(options.model, root / "model")
        frames, scenes = dataset("eval", 0, np.arange(options.videos))
        files: Files = []
        for i, scene in enumerate(scenes):
            video.write_lossless(root / f"{i}.mkv", frames[i].repeat(8, 1).repeat(8, 2), FPS)
            files.append((root / f"{i}.mkv", scene.caption))
        backbone.embed_frames(torch.from_numpy(frames[0]))
        backbone.embed_text([scenes[0].caption])
        store = Store(root / "store")
        spec = {"model": f"local-dir:{root / 'model'}"}
        ours, together = family(spec, files, store)
        again, stored = family(spec, files, store)
        theirs, apart = loop(backbone, files)
    apart_by = max(
        float(np.abs(np.subtract(ours[name], theirs[name])).max()) / (100 if "clip_s" in name or "text" in name else 1) for name in ours
    )
    if set(ours) != set(theirs) or again != ours or apart_by > 5e-3:
        raise SystemExit(f"the two ways disagree by {apart_by:.2g}: {sorted(ours)} and {sorted(theirs)}")
    table = Table("way", "metric", "seconds", "ratio")
    rows = [("loop", name, f"{seconds:.1f}", "") for name, seconds in apart.items()]
    whole = sum(apart.values())
    rows += [
        ("loop", "all five", f"{whole:.1f}", "1.0"),
        ("one pass", "all five", f"{together:.1f}", f"{whole / together:.1f}"),
        ("stored features", "all five", f"{stored:.2f}", f"{whole / stored:.0f}"),
    ]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.out:
        head = (
            f"Processor seconds to score {options.videos} videos of {frames.shape[1]} frames of 256x256 with {options.model} "
            f"(random weights, CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}, PyTorch {torch.__version__}); "
            f"the largest difference of a cosine between the two ways is {apart_by:.1e}.\n\n"
        )
        lines = ["| way | metric | seconds | ratio |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
        options.out.write_text(head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
