"""Train mini_quality: technical and aesthetic quality of shapes videos, from graded distortions of known severity.

    python experiments/minis/train_quality.py            # about 8 minutes of one core; resumes from its checkpoint
    python experiments/minis/train_quality.py --measure  # only measures the shipped weights, on scenes that were not trained on

The target of each head is the product over a video's distortions of 1 - weight x severity. A quarter of the videos is untouched, half
has one distortion and a quarter has two. Each step draws its videos from (seed, step) alone, so that a resumed run is the same run.
`frame_shuffle` is not trained on: it shows that the technical head has learnt disorder in time and not one way to make it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import WEIGHTS, Checkpoint, Log, device
from distortions import AESTHETIC, DISTORTIONS, TECHNICAL
from safetensors.torch import save_file
from torch import Tensor, nn

from vdqbench import shapes
from vdqbench.metrics.mini_quality import HEADS, QualityNet, load, quality

FOLDER = WEIGHTS / "mini_quality"
NETWORK = {"widths": [16, 32, 48, 64], "hidden": 64}
SPATIAL = ("noise", "blotches", "blur", "blockiness")
WEIGHT = {
    "technical": {name: 1.0 for name in TECHNICAL if name != "frame_shuffle"},
    "aesthetic": {**dict.fromkeys(AESTHETIC, 1.0), **dict.fromkeys(SPATIAL, 0.7)},
}
"""How much of a distortion's severity each head is taught to see; what is not listed it is taught to leave."""
TAUGHT = [*WEIGHT["technical"], *AESTHETIC]
MUST_SEE = {"technical": list(TECHNICAL), "aesthetic": list(WEIGHT["aesthetic"])}
LADDER = np.linspace(0, 1, 11)
BAR = {"rank": 0.95, "real": 90.0}


def example(video: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, list[float]]:
    """A video with none, one or two distortions, and the quality 0..1 that each head should give it."""
    count = int(rng.choice(3, p=(0.25, 0.5, 0.25)))
    target = dict.fromkeys(HEADS, 1.0)
    for name in rng.choice(TAUGHT, size=count, replace=False):
        severity = rng.random()
        video = DISTORTIONS[name](video, severity, rng)
        for head in HEADS:
            target[head] *= 1 - WEIGHT[head].get(name, 0.0) * severity
    return video, list(target.values())


def drawn(videos: np.ndarray, count: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Videos uint8 [count, T, H, W, 3] of a step and their targets [count, 2]."""
    rng = np.random.default_rng([seed, step])
    made = [example(videos[i], rng) for i in rng.integers(len(videos), size=count)]
    return torch.from_numpy(np.stack([video for video, _ in made])), torch.tensor([target for _, target in made])


@torch.inference_mode()
def ladders(model: QualityNet, count: int, seed: int = 7) -> dict[str, np.ndarray]:
    """Scores [11 severities, count videos, 2 heads] of each distortion on real held-out scenes."""
    videos, _ = shapes.dataset("eval", seed, np.arange(count))
    found = {}
    for name, distort in DISTORTIONS.items():
        rungs = [np.stack([distort(video, s, np.random.default_rng([seed, i])) for i, video in enumerate(videos)]) for s in LADDER]
        found[name] = np.stack([quality(model(torch.from_numpy(rung))).numpy() for rung in rungs])
    return found


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho of two sequences without ties."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def summary(found: dict[str, np.ndarray]) -> dict[str, float]:
    """The lowest rank correlation over what each head must see, and the mean scores of untouched videos."""
    real = found["noise"][0].mean(axis=0)
    result = {f"real_{head}": float(real[k]) for k, head in enumerate(HEADS)}
    for k, head in enumerate(HEADS):
        result[f"rank_{head}"] = min(-rank_correlation(LADDER, found[name][:, :, k].mean(axis=1)) for name in MUST_SEE[head])
    return result


def publish(model: QualityNet) -> None:
    """Write the weights (bf16) and their description into the package."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().to("cpu", torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(state, FOLDER / "model.safetensors")
    (FOLDER / "model.safetensors").chmod(0o644)
    config = {"network": NETWORK, "heads": HEADS, "weight": WEIGHT, "trained_on": "shapes, split train"}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def report(count: int = 128) -> None:
    """The table of the shipped weights: mean score at some severities, and Spearman's rho of severity and mean score."""
    found = ladders(load()[0], count)
    for k, head in enumerate(HEADS):
        shown = [0, 2, 5, 8, 10]
        sys.stdout.write(f"\n{head:14}" + "".join(f"{LADDER[i]:8.1f}" for i in shown) + "     rho\n")
        for name, scores in found.items():
            means = scores[:, :, k].mean(axis=1)
            seen = f"{rank_correlation(LADDER, means):8.3f}" if name in MUST_SEE[head] else "       -"
            sys.stdout.write(f"{name:14}" + "".join(f"{means[i]:8.1f}" for i in shown) + f"{seen}\n")
    measured = summary(found)
    met = all(value >= BAR[key.partition("_")[0]] for key, value in measured.items())
    lowest = min(found["noise"][0].min(axis=0))
    sys.stdout.write(f"\nlowest score of a real video: {lowest:.1f}\n")
    sys.stdout.write(f"|rho| >= {BAR['rank']} and real videos >= {BAR['real']:.0f}: {'met' if met else 'missed'}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--videos", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--measure", action="store_true", help="only measure the shipped weights")
    args = parser.parse_args()
    if args.measure:
        return report()

    torch.manual_seed(args.seed)
    dev = device()
    model = QualityNet(**NETWORK).to(dev)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    rate = lambda step: min((step + 1) / 100, 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)))  # noqa: E731
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    checkpoint = Checkpoint(args.work / "quality.pt", model=model, optimizer=optimizer, schedule=schedule)
    first, log = checkpoint.load(), Log("quality")

    began = time.monotonic()
    videos, _ = shapes.dataset("train", args.seed, np.arange(args.videos))
    errors = []
    for step in range(first, args.steps):
        batch, target = drawn(videos, args.batch, args.seed, step)
        loss = (torch.sigmoid(model(batch.to(dev))) - target.to(dev)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(loss.item())
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            seconds, rmse = time.monotonic() - began, 100 * math.sqrt(np.mean(errors))
            log.row(step=step + 1, seconds=seconds, rmse=rmse, **summary(ladders(model.cpu(), 16)))
            model.to(dev)
            checkpoint.save(step + 1)
            publish(model)
            errors = []
    report()


if __name__ == "__main__":
    main()
