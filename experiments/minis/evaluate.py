"""Print the quality of the shipped mini_stdit over the 128 evaluation prompts, and of the evaluator on real videos beside it.

python experiments/minis/evaluate.py                  # about two minutes on two cores
python experiments/minis/evaluate.py --guidance 3     # another guidance scale; --channels 4 guides all channels
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import torch

from vdqbench import shapes
from vdqbench.config import WEIGHTS
from vdqbench.metrics.attributes import Attributes
from vdqbench.metrics.base import VideoBatch
from vdqbench.models.base import Job
from vdqbench.models.mini_stdit import MiniSTDiT

BAR = {"colour": (95, 98), "shape": (85, 97), "background": (95, 99), "motion": (80, 95)}


def accuracy(videos: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
    """Percent right of each attribute, per video."""
    metric = Attributes()
    for part in np.array_split(np.arange(len(captions)), max(1, len(captions) // 16)):
        metric.update(VideoBatch(torch.from_numpy(videos[part]), [captions[i] for i in part], None))
    return {name: np.array(score.values) for name, score in metric.compute().items()}


def generated(captions: list[str], sampler: dict[str, float], seed: int) -> Iterator[np.ndarray]:
    model = MiniSTDiT(WEIGHTS, sampler, "cuda" if torch.cuda.is_available() else "cpu")
    jobs = [Job(f"{i:04d}", caption, seed) for i, caption in enumerate(captions)]
    for first in range(0, len(jobs), 4):
        yield from model.generate(jobs[first : first + 4])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    captions = [scene.caption for scene in shapes.scenes("eval")][: args.prompts]
    sampler = {"steps": args.steps, "guidance": args.guidance, "guided_channels": args.channels}
    made = np.stack(list(generated(captions, sampler, args.seed)))
    real, chosen = shapes.dataset("eval", 11, np.arange(512))
    ours, bound = accuracy(made, captions), accuracy(real, [scene.caption for scene in chosen])

    lines = [
        f"{len(captions)} prompts, DDIM {args.steps} steps, guidance {args.guidance:g} on {args.channels} channels, seed {args.seed}",
        "",
    ]
    lines.append(f"{'attribute':<12}{'generated':>10}{'bar':>6}{'evaluator on real':>20}{'bar':>6}")
    good = True
    for name, (bar, evaluator_bar) in BAR.items():
        a, b = ours[name].mean(), bound[name].mean()
        good &= a >= bar and b >= evaluator_bar
        lines.append(f"{name:<12}{a:>9.1f}%{bar:>5}%{b:>19.1f}%{evaluator_bar:>5}%")
    motions = np.array([caption.motion for caption in map(shapes.Scene.from_caption, captions)])
    lines += [
        "",
        "motion by kind: " + ", ".join(f"{m} {ours['motion'][motions == m].mean():.0f}%" for m in shapes.MOTIONS if (motions == m).any()),
    ]
    forms = np.array([caption.shape for caption in map(shapes.Scene.from_caption, captions)])
    lines += ["shape by kind: " + ", ".join(f"{s} {ours['shape'][forms == s].mean():.0f}%" for s in shapes.SHAPES if (forms == s).any())]
    sys.stdout.write("\n".join([*lines, "", "the quality bar is met" if good else "THE QUALITY BAR IS NOT MET"]) + "\n")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
