"""Train mini_video: a 3-D network that names colour, shape, background and motion of shapes videos.

    python experiments/minis/train_video.py            # about 6 minutes on one idle core; resumes from its checkpoint
    python experiments/minis/train_video.py --measure  # only measures the shipped weights

Nothing but slight changes of brightness and tint is trained on, so that the features of damaged videos leave the cloud of the clean
ones. `--measure` prints the accuracy on held-out scenes and how the distances to the clean videos grow with graded distortions of
all of them, and writes the latter into `logs/video_distances.csv`.

A set whose reds and greens all change places, or whose videos all run backwards, is again a set of shapes videos; a distance between
sets can only see it where the colours or motions of the set are not balanced. So colour_swap is graded by the share of swapped videos
in the set of red and yellow ones, and wrong_motion and backwards are applied to the set of what moves right, down or grows.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import LOGS, WEIGHTS, Checkpoint, Log, device, write_weights
from distortions import DISTORTIONS
from scipy.stats import spearmanr
from torch import Tensor

from vdqbench import shapes
from vdqbench.metrics.distances import frechet, kernel_distance
from vdqbench.metrics.mini_video import MiniVideoNet, load_mini_video, mini_detectors

WEIGHT = {"colour": 1, "shape": 3, "background": 1, "motion": 1}
"""Of each attribute's loss: shape is learnt last by far."""
BAR = {"colour": 99, "shape": 97, "background": 99, "motion": 97}


@torch.no_grad()
def accuracy(model: MiniVideoNet, videos: Tensor, labels: Tensor) -> dict[str, float]:
    """Percent of videos uint8 [N, T, H, W, 3] whose attributes [N, 4] are named rightly."""
    model.eval()
    parts = [model(part) for part in videos.split(64)]
    model.train()
    judged = {name: torch.cat([part[name] for part in parts]).argmax(dim=1) for name in shapes.ATTRIBUTES}
    return {name: 100 * (judged[name] == labels[:, i]).double().mean().item() for i, name in enumerate(shapes.ATTRIBUTES)}


def tinted(videos: Tensor) -> Tensor:
    """Videos uint8 [N, T, H, W, 3], half of them with another gain (0.85 to 1.15) and offset (up to 12 levels) in each channel."""
    n = len(videos)
    some = (torch.rand(n, 1) < 0.5).float()
    gain = 1 + some * (0.3 * torch.rand(n, 3) - 0.15)
    offset = some * (24 * torch.rand(n, 3) - 12)
    changed = videos.float() * gain[:, None, None, None] + offset[:, None, None, None]
    return changed.round().clamp(0, 255).byte()


def held_out(count: int, seed: int = 7) -> tuple[Tensor, Tensor]:
    videos, chosen = shapes.dataset("eval", seed, np.arange(count))
    return torch.from_numpy(videos), torch.tensor([scene.labels for scene in chosen])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--measure", action="store_true", help="only measure the shipped weights")
    args = parser.parse_args()
    if args.measure:
        return report()

    torch.manual_seed(args.seed)
    dev = device()
    model = MiniVideoNet().to(dev)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.02)
    rate = lambda step: min((step + 1) / 50, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = Checkpoint(args.work / "video.pt", model=model, optimizer=optimizer, schedule=schedule)
    first, log = checkpoint.load(), Log("video")
    videos, labels = (part.to(dev) for part in held_out(256))

    began = time.monotonic()
    for step in range(first, args.steps):
        frames, chosen = shapes.dataset("train", args.seed, np.arange(step * args.batch, (step + 1) * args.batch))
        wanted = torch.tensor([scene.labels for scene in chosen], device=dev)
        logits = model(tinted(torch.from_numpy(frames)).to(dev))
        loss = sum(WEIGHT[name] * F.cross_entropy(logits[name], wanted[:, i]) for i, name in enumerate(shapes.ATTRIBUTES))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            log.row(step=step + 1, seconds=time.monotonic() - began, loss=loss.item(), **accuracy(model, videos, labels))
            checkpoint.save(step + 1)
    publish(model)
    report()


def publish(model: MiniVideoNet) -> None:
    """Write the weights into the package."""
    (WEIGHTS / "mini_video").mkdir(exist_ok=True)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    write_weights("mini_video/mini_video", state, {"network": "mini_video", "features": 64})


def distorted(videos: np.ndarray, name: str, severity: float) -> np.ndarray:
    """The whole set at one severity; of colour_swap, a share of the set at full severity."""
    if name == "colour_swap":
        order = np.random.default_rng(0).permutation(len(videos))
        swapped = set(order[: round(severity * len(videos))].tolist())
        severities = [1.0 if i in swapped else 0.0 for i in range(len(videos))]
    else:
        severities = [severity] * len(videos)
    made = [DISTORTIONS[name](v, s, np.random.default_rng(i)) for i, (v, s) in enumerate(zip(videos, severities, strict=True))]
    return np.stack(made)


def sensitivity(levels: int = 9, seed: int = 99) -> list[dict[str, float | str]]:
    """For each score and distortion the distances of one video of each held-out scene to itself undistorted, and their rank correlation."""
    scenes = shapes.scenes("eval")
    videos = shapes.render(scenes, seed, np.arange(len(scenes)))
    subsets = {
        "colour_swap": np.array([scene.colour in ("red", "yellow") for scene in scenes]),
        "wrong_motion": np.array([scene.motion in ("right", "down", "growing") for scene in scenes]),
    }
    subsets["backwards"] = subsets["wrong_motion"]
    whole, segments = mini_detectors(device="cpu")
    scores = {"mini_fvd": (whole, frechet), "mini_kvd": (whole, _paired), "mini_fid_vid": (segments, frechet)}
    grid = np.linspace(0, 1, levels)
    rows = []
    for name in DISTORTIONS:
        chosen = videos[subsets[name]] if name in subsets else videos
        seen = [torch.from_numpy(distorted(chosen, name, float(severity))) for severity in grid]
        for score, (detector, distance) in scores.items():
            features = [detector.embed(part)[:, :-1] for part in seen]
            values = [distance(part, features[0]) for part in features]
            found = {f"{severity:.3g}": f"{value:.4g}" for severity, value in zip(grid, values, strict=True)}
            rows.append({"score": score, "distortion": name, "n": len(chosen), "spearman": round(spearmanr(grid, values)[0], 3), **found})
    return rows


def _paired(x: Tensor, y: Tensor) -> float:
    return kernel_distance(x, y, paired=True)


def report() -> None:
    model, _ = load_mini_video("cpu")
    for name, value in accuracy(model, *held_out(1024)).items():
        sys.stdout.write(f"{name:12} {value:6.2f} %   (bar: {BAR[name]} %)\n")
    rows = sensitivity()
    with (LOGS / "video_distances.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        sys.stdout.write("  ".join(str(value).rjust(9) for value in row.values()) + "\n")


if __name__ == "__main__":
    main()
