"""The folder mini_animatediff is a pipeline of diffusers that loads offline, is small, and listens to its caption and its guidance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from vdqbench.config import WEIGHTS
from vdqbench.models.roles import UNET_MOTION, roles_by
from vdqbench.shapes import FPS, SPLITS, scenes

FOLDER = WEIGHTS / "mini_animatediff"
RED, BLUE = "a red circle moving left on a dark background", "a blue square growing on a light background"


@pytest.fixture(scope="module")
def description():
    return json.loads((FOLDER / "vdq.json").read_text())


@pytest.fixture(scope="module")
def pipe():
    from diffusers import AnimateDiffPipeline

    pipe = AnimateDiffPipeline.from_pretrained(FOLDER, local_files_only=True, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def generate(pipe, description):
    def run(prompt: str, seed: int = 0, guidance: float = 4.0) -> np.ndarray:
        settings = {**description["call"], "num_inference_steps": 4, "guidance_scale": guidance}
        return pipe(prompt, generator=torch.Generator().manual_seed(seed), output_type="np", **settings).frames[0]

    return run


def test_the_folder_is_small_and_in_bfloat16():
    from safetensors.torch import load_file

    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 14_000_000
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert sorted(path.parent.name for path in weights) == ["text_encoder", "unet", "vae"]
    assert {value.dtype for path in weights for value in load_file(path).values()} == {torch.bfloat16}


def test_no_path_of_a_machine_is_stored():
    texts = [path.read_text() for path in FOLDER.rglob("*.json")]
    assert len(texts) >= 8 and not [text for text in texts if "name_or_path" in text or "/work" in text or "/home" in text]


def test_the_description_says_how_the_pipeline_is_called(description):
    words = {word for split in SPLITS for scene in scenes(split) for word in scene.caption.split()}
    assert set(description["vocabulary"]) == words and description["fps"] == FPS
    assert description["call"] == {"height": 32, "width": 32, "num_frames": 16}


def test_the_motion_modules_are_in_the_unet_and_nowhere_else(pipe):
    from diffusers import DDIMScheduler, UNetMotionModel

    assert isinstance(pipe.unet, UNetMotionModel) and pipe.motion_adapter is None and isinstance(pipe.scheduler, DDIMScheduler)
    roles = set(roles_by(UNET_MOTION, pipe.unet).values())
    assert {"temporal_attn.q", "self_attn.q", "cross_attn.k", "resnet.conv1", "time_proj", "proj_in", "proj_out"} <= roles
    assert not pipe.scheduler.config.clip_sample and pipe.scheduler.config.prediction_type == "epsilon"


def test_every_word_is_one_token_and_every_caption_fits(pipe):
    captions = [scene.caption for split in SPLITS for scene in scenes(split)]
    ids = pipe.tokenizer(captions)["input_ids"]
    assert [len(row) for row in ids] == [2 + len(caption.split()) for caption in captions]  # start and end of text
    assert max(map(len, ids)) <= pipe.tokenizer.model_max_length
    assert len({tuple(row) for row in ids}) == len(captions)


def test_captions_that_differ_in_a_word_have_different_embeddings(pipe):
    twins = [RED, RED.replace("left", "right"), RED.replace("red", "green"), ""]
    embeddings, _ = pipe.encode_prompt(twins, "cpu", 1, False)
    assert embeddings.shape == (4, pipe.tokenizer.model_max_length, pipe.unet.config.cross_attention_dim)
    for i, j in ((0, 1), (0, 2), (0, 3)):
        assert (embeddings[i] - embeddings[j]).abs().max() > 0.1


def test_a_short_generation_is_deterministic_and_depends_on_seed_caption_and_guidance(generate):
    video = generate(RED)
    assert video.shape == (16, 32, 32, 3) and np.isfinite(video).all() and video.min() >= 0 and video.max() <= 1
    assert np.array_equal(video, generate(RED))
    for other in (generate(RED, seed=1), generate(BLUE), generate(RED, guidance=1.0)):
        assert np.abs(video - other).max() > 0.05


def test_a_frame_depends_on_the_others_and_on_its_place(pipe):
    torch.manual_seed(0)
    x, y = torch.randn(1, 4, 16, 8, 8), torch.randn(1, 12, 64).repeat_interleave(16, 0)
    with torch.no_grad():
        out = pipe.unet(x, 500, y).sample
        changed = pipe.unet(torch.cat([x[:, :, :15], -x[:, :, 15:]], dim=2), 500, y).sample
        reversed_ = pipe.unet(x.flip(2), 500, y).sample.flip(2)
    assert (out - changed)[:, :, 0].abs().max() > 1e-3 and (out - reversed_).abs().max() > 1e-2
