"""Print the quality of a shipped mini over the 128 evaluation prompts, and of the evaluator on real videos beside it.

python experiments/minis/evaluate.py                          # mini_stdit, about two minutes on two cores
python experiments/minis/evaluate.py --model mini_hunyuan     # or mini_animatediff: a folder in diffusers' pipeline layout
python experiments/minis/evaluate.py --model mini_sparsectrl  # told first frames, and how well it keeps to them; --scale 0: not told
python experiments/minis/evaluate.py --guidance 3             # another guidance scale; --channels 4 guides all channels of mini_stdit
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vdqbench import shapes
from vdqbench.config import WEIGHTS
from vdqbench.inputs import SEED, Input
from vdqbench.metrics.attributes import Attributes
from vdqbench.metrics.base import VideoBatch
from vdqbench.models.base import Job

EVALUATOR_BAR = {"colour": 98, "shape": 97, "background": 99, "motion": 95}
BATCH = 4


@dataclass(frozen=True)
class Mini:
    """How the videos of a mini are made: a function from (captions, sampler settings, seed) to uint8 videos, and its defaults."""

    generate: Callable[[list[str], argparse.Namespace], Iterator[np.ndarray]]
    sampler: str
    steps: int
    guidance: float
    bar: dict[str, int]


def stdit(captions: list[str], args: argparse.Namespace) -> Iterator[np.ndarray]:
    from vdqbench.compose import Composer
    from vdqbench.config import Model
    from vdqbench.models.mini_stdit import MiniSTDiT

    sampler = {"name": "ddim", "steps": args.steps, "guidance": args.guidance, "guided_channels": args.channels, "options": {}}
    model = Model.from_config(Composer().plain(["model=mini_stdit"])["model"])
    adapter = MiniSTDiT(model, sampler, "cuda" if torch.cuda.is_available() else "cpu")
    jobs = [Job(f"{i:04d}", caption, args.seed) for i, caption in enumerate(captions)]
    for first in range(0, len(jobs), BATCH):
        yield from adapter.generate(jobs[first : first + BATCH])


def pipeline(captions: list[str], args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Videos of a folder in diffusers' layout, whose `vdq.json` says under `call` what its pipeline is to be called with."""
    from diffusers import DiffusionPipeline

    folder = WEIGHTS / args.model
    call = json.loads((folder / "vdq.json").read_text())["call"]
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, torch_dtype=torch.float32)
    pipe.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    for first in range(0, len(captions), BATCH):
        chosen = captions[first : first + BATCH]
        noise = [torch.Generator().manual_seed(1000 * args.seed + first + i) for i in range(len(chosen))]
        out = pipe(chosen, generator=noise, num_inference_steps=args.steps, guidance_scale=args.guidance, output_type="np", **call)
        yield from (np.asarray(out.frames) * 255).round().clip(0, 255).astype(np.uint8)


def sparsectrl(captions: list[str], args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Videos told the first frames of the shapes videos that `prompts=shapes_eval` comes with."""
    from PIL import Image

    from vdqbench.compose import Composer
    from vdqbench.config import Model
    from vdqbench.models.pipeline import PipelineAdapter

    model = Model.from_config(Composer().plain(["model=mini_sparsectrl"])["model"])
    model = replace(model, call={**model.call, "controlnet_conditioning_scale": args.scale})
    sampler = {"name": "ddim", "steps": args.steps, "guidance": args.guidance, "guided_channels": None, "options": {}}
    adapter = PipelineAdapter(model, sampler, "cuda" if torch.cuda.is_available() else "cpu")
    with TemporaryDirectory() as folder:
        jobs = [Job(f"{i:04d}", caption, args.seed, {"image": Path(folder) / f"{i:04d}.png"}) for i, caption in enumerate(captions)]
        for i, job in enumerate(jobs):
            Image.fromarray(Input("image", caption=job.prompt, index=i).picture()).save(job.inputs["image"])
        for first in range(0, len(jobs), BATCH):
            yield from adapter.generate(jobs[first : first + BATCH])


MODELS = {
    "mini_stdit": Mini(stdit, "DDIM", 20, 4.0, {"colour": 95, "shape": 85, "background": 95, "motion": 80}),
    "mini_hunyuan": Mini(pipeline, "flow matching", 20, 6.0, dict.fromkeys(shapes.ATTRIBUTES, 90)),
    "mini_animatediff": Mini(pipeline, "DDIM", 25, 7.5, dict.fromkeys(shapes.ATTRIBUTES, 90)),
    "mini_sparsectrl": Mini(sparsectrl, "DDIM", 25, 7.5, dict.fromkeys(shapes.ATTRIBUTES, 90)),
}


def accuracy(videos: np.ndarray, captions: list[str]) -> dict[str, np.ndarray]:
    """Percent right of each attribute, per video."""
    metric = Attributes()
    for part in np.array_split(np.arange(len(captions)), max(1, len(captions) // 16)):
        metric.update(VideoBatch(torch.from_numpy(videos[part]), [captions[i] for i in part], None))
    return {name: np.array(score.values) for name, score in metric.compute().items()}


def closeness(videos: np.ndarray, captions: list[str]) -> str:
    """PSNR to the shapes videos whose first frames were told, in one line."""
    scenes = [shapes.Scene.from_caption(caption) for caption in captions]
    clips = shapes.render(scenes, SEED, np.arange(len(scenes)), videos.shape[1])
    psnr = 10 * np.log10(255**2 / np.square(videos.astype(float) - clips).mean(axis=(2, 3, 4)))
    return f"PSNR to the videos whose first frames were told: {psnr[:, 0].mean():.1f} dB in these, {psnr.mean():.1f} dB in all frames"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mini_stdit")
    parser.add_argument("--guidance", type=float, help="default: that of the model")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of what mini_sparsectrl adds to the UNet")
    parser.add_argument("--steps", type=int, help="default: that of the model")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    mini = MODELS[args.model]
    args.steps = args.steps or mini.steps
    args.guidance = mini.guidance if args.guidance is None else args.guidance

    captions = [scene.caption for scene in shapes.scenes("eval")][: args.prompts]
    made = np.stack(list(mini.generate(captions, args)))
    real, chosen = shapes.dataset("eval", 11, np.arange(512), made.shape[1])
    ours, bound = accuracy(made, captions), accuracy(real, [scene.caption for scene in chosen])

    channels = f" on {args.channels} channels" if args.model == "mini_stdit" else ""
    lines = [f"{len(captions)} prompts, {mini.sampler} {args.steps} steps, guidance {args.guidance:g}{channels}, seed {args.seed}", ""]
    lines.append(f"{'attribute':<12}{'generated':>10}{'bar':>6}{'evaluator on real':>20}{'bar':>6}")
    good = True
    for name, bar in mini.bar.items():
        a, b = ours[name].mean(), bound[name].mean()
        good &= a >= bar and b >= EVALUATOR_BAR[name]
        lines.append(f"{name:<12}{a:>9.1f}%{bar:>5}%{b:>19.1f}%{EVALUATOR_BAR[name]:>5}%")
    motions = np.array([caption.motion for caption in map(shapes.Scene.from_caption, captions)])
    lines += [
        "",
        "motion by kind: " + ", ".join(f"{m} {ours['motion'][motions == m].mean():.0f}%" for m in shapes.MOTIONS if (motions == m).any()),
    ]
    forms = np.array([caption.shape for caption in map(shapes.Scene.from_caption, captions)])
    lines += ["shape by kind: " + ", ".join(f"{s} {ours['shape'][forms == s].mean():.0f}%" for s in shapes.SHAPES if (forms == s).any())]
    lines += ["", closeness(made, captions)] if args.model == "mini_sparsectrl" else []
    sys.stdout.write("\n".join([*lines, "", "the quality bar is met" if good else "THE QUALITY BAR IS NOT MET"]) + "\n")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
