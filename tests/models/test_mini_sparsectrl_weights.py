"""The folder mini_sparsectrl is a SparseControlNetModel that fits mini_animatediff, is small, and holds clips to their first frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import described
from PIL import Image

from vdqbench.config import WEIGHTS
from vdqbench.inputs import SEED, Input
from vdqbench.models.base import Job
from vdqbench.models.pipeline import PipelineAdapter
from vdqbench.shapes import FRAMES, Scene, render

FOLDER = WEIGHTS / "mini_sparsectrl"
CAPTIONS = ("a red circle moving left on a dark background", "a blue square growing on a light background")


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> list[Job]:
    folder: Path = tmp_path_factory.mktemp("frames")
    made = [Job(f"{i:04d}", caption, 0, {"image": folder / f"{i:04d}.png"}) for i, caption in enumerate(CAPTIONS)]
    for i, job in enumerate(made):
        Image.fromarray(Input("image", caption=job.prompt, index=i).picture()).save(job.inputs["image"])
    return made


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return render([Scene.from_caption(caption) for caption in CAPTIONS], SEED, np.arange(len(CAPTIONS))).astype(float)


def adapter(steps: int = 8, scale: float = 1.0) -> PipelineAdapter:
    model = described("mini_sparsectrl")
    model = replace(model, call={**model.call, "controlnet_conditioning_scale": scale})
    return PipelineAdapter(model, {"name": "ddim", "steps": steps, "guidance": 7.5, "guided_channels": None, "options": {}}, "cpu")


@pytest.fixture(scope="module")
def told() -> PipelineAdapter:
    return adapter()


@pytest.fixture(scope="module")
def held(told, jobs) -> np.ndarray:
    return np.stack(list(told.generate(jobs))).astype(float)


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, F] of videos [N, F, H, W, 3]."""
    return 10 * np.log10(255**2 / np.square(a - b).mean(axis=(2, 3, 4)))


def test_the_folder_is_small_and_in_bfloat16():
    from safetensors.torch import load_file

    files = {path.name: path for path in FOLDER.iterdir()}
    assert sorted(files) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert sum(path.stat().st_size for path in files.values()) < 3_000_000
    assert {value.dtype for value in load_file(files["diffusion_pytorch_model.safetensors"]).values()} == {torch.bfloat16}
    assert not {"_name_or_path", "name_or_path"} & set(json.loads(files["config.json"].read_text()))


def test_it_reads_latents_and_has_the_sizes_of_the_unet():
    control, unet = (json.loads((folder / "config.json").read_text()) for folder in (FOLDER, WEIGHTS / "mini_animatediff" / "unet"))
    assert control["_class_name"] == "SparseControlNetModel" and control["use_simplified_condition_embedding"]
    assert control["conditioning_channels"] == control["in_channels"] == unet["in_channels"] == 4
    for key in ("block_out_channels", "layers_per_block", "cross_attention_dim", "motion_max_seq_length", "norm_num_groups"):
        assert control[key] == unet[key]


def test_it_never_sees_the_clip_and_tells_every_frame_of_the_first(told, jobs):
    condition = told.encode(jobs[:1])[0]
    told.denoise(jobs[:1], [condition])
    control = told.pipe.controlnet
    generator = torch.Generator().manual_seed(0)
    x, words = torch.randn(1, 4, FRAMES, 8, 8, generator=generator), condition["prompt_embeds"][None].repeat_interleave(FRAMES, 0)
    first, mask = torch.zeros_like(x), torch.zeros(1, 1, FRAMES, 8, 8)
    first[:, :, 0], mask[:, :, 0] = condition["conditioning_frames"][:, 0], 1

    def added(x: torch.Tensor, first: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            down, mid = control(x, 900, words, controlnet_cond=first, conditioning_mask=mask, return_dict=False)
        return [*down, mid]

    ours = added(x, first)
    assert [tuple(one.shape) for one in ours] == [
        (FRAMES, 64, 8, 8),
        (FRAMES, 64, 8, 8),
        (FRAMES, 64, 4, 4),
        (FRAMES, 96, 4, 4),
        (FRAMES, 96, 4, 4),
    ]
    assert all(torch.equal(a, b) for a, b in zip(ours, added(-x, first), strict=True))
    changes = [(a - b).square().mean(dim=(1, 2, 3)).sqrt() for a, b in zip(ours, added(x, -first), strict=True)]
    assert changes[-1].min() > 1e-3, "motion modules carry the first frame to the others"


def test_the_first_frame_is_the_given_one(held, jobs, clips):
    free = np.stack(list(adapter(scale=0.0).generate(jobs))).astype(float)
    ours, theirs = psnr(held, clips)[:, 0], psnr(free, clips)[:, 0]
    assert ours.min() > 20 and (ours - theirs).min() > 3


def test_the_same_noise_and_caption_follow_either_of_two_frames(told, jobs, tmp_path):
    scenes = [Scene.from_caption(CAPTIONS[0])] * 2
    places = render(scenes, SEED, np.array([39, 5]))  # 8 pixels above each other
    made = []
    for i, place in enumerate(places):
        Image.fromarray(place[0]).save(tmp_path / f"{i}.png")
        made += told.generate([replace(jobs[0], inputs={"image": tmp_path / f"{i}.png"})])
    near = np.array([[psnr(video[None].astype(float), place[None].astype(float)).mean() for place in places] for video in made])
    assert min(near[0, 0] - near[0, 1], near[1, 1] - near[1, 0]) > 5
