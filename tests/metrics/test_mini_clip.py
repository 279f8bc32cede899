"""The quality bar of mini_clip on real held-out shapes videos, and the attribute metric that stands on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdqbench import shapes
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.attributes import Attributes, accuracy, expected, judge
from vdqbench.metrics.backbone import MINI, open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.clip import Clip
from vdqbench.metrics.heads import Heads, slope

BAR = {"colour": 98, "shape": 97, "background": 99, "motion": 95}


@pytest.fixture(scope="module")
def held_out():
    """128 held-out videos, one of each evaluation scene, of a seed used nowhere else."""
    scenes = shapes.scenes("eval")
    return torch.from_numpy(shapes.render(scenes, 1234, np.arange(len(scenes)))), [scene.caption for scene in scenes]


@pytest.fixture(scope="module")
def features(held_out):
    backbone = open_backbone({"model": "mini_clip"}, "cpu")
    return backbone.embed_frames(held_out[0].flatten(0, 1)).unflatten(0, (-1, shapes.FRAMES))


def scored(metric, videos, prompts):
    metric.update(VideoBatch(videos, prompts))
    return {name: score.mean for name, score in metric.compute().items()}


def test_attribute_heads_meet_the_bar(held_out):
    scores = scored(Attributes(device="cpu"), *held_out)
    assert {name for name, bar in BAR.items() if scores[name] < bar} == set()


def test_captions_are_retrieved_among_64(held_out, features):
    backbone = open_backbone({"model": "mini_clip"}, "cpu")
    video, text = backbone.heads.video(features), backbone.embed_text(held_out[1])
    right = 0
    for half in (slice(0, 64), slice(64, 128)):
        cosine = video[half] @ text[half].T
        right += (cosine.argmax(dim=1) == torch.arange(64)).sum().item()
    assert right / 128 >= 0.90


def test_heads_survive_mild_distortions(held_out):
    videos, prompts = held_out
    noisy = (videos[:64].float() + 8 * torch.randn(videos[:64].shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255).byte()
    darker = (videos[:64].float() * 0.93).byte()
    frames = videos[:64].flatten(0, 1).permute(0, 3, 1, 2).float()
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(frames, (1, 1, 1, 1), mode="replicate"), 3, 1)
    blurred = (0.5 * frames + 0.5 * blurred).permute(0, 2, 3, 1).byte().unflatten(0, (64, -1))
    for changed in (noisy, darker, blurred):
        assert scored(Attributes(device="cpu"), changed, prompts[:64])["attributes"] >= 97


def test_motion_is_judged_by_the_order_of_frames(held_out, features):
    """Backwards, left is right, up is down and growing is shrinking; the other attributes stay."""
    heads = open_backbone({"model": "mini_clip"}, "cpu").heads
    forwards, backwards = judge(heads, features), judge(heads, features.flip(1))
    opposite = torch.tensor([1, 0, 3, 2, 5, 4])
    assert (backwards[:, 3] == opposite[forwards[:, 3]]).float().mean() > 0.95
    assert (backwards[:, :3] == forwards[:, :3]).all()


def test_clipsim_tells_right_from_wrong_captions(held_out):
    videos, prompts = held_out
    right = scored(Clip({"model": "mini_clip"}, device="cpu"), videos[:32], prompts[:32])["clipsim"]
    wrong = scored(Clip({"model": "mini_clip"}, device="cpu"), videos[:32], prompts[32:64])["clipsim"]
    assert right > 0.6 and right - wrong > 0.4


def test_shipped_files_are_small_and_hold_no_pickles():
    sizes = {path.name: path.stat().st_size for path in MINI.iterdir()}
    assert sum(sizes.values()) <= 8e6
    assert set(sizes) == {"open_clip_config.json", "open_clip_model.safetensors", "heads.safetensors", "bpe.txt.gz"}


def test_tokens_are_whole_words_and_unknown_words_still_have_tokens():
    tokenizer = open_backbone({"model": "mini_clip"}, "cpu").tokenizer
    words = {word for split in shapes.SPLITS for scene in shapes.scenes(split) for word in scene.caption.split()}
    assert all(len(tokenizer.encode(word)) == 1 for word in words)
    assert tokenizer.decode(tokenizer.encode("a purple dog")).strip() == "a purple dog"


def test_accuracy_counts_percent_per_attribute():
    wanted = expected(["a red circle moving left on a dark background", "a cyan cross shrinking on a striped background"])
    assert wanted.tolist() == [[0, 0, 0, 0], [5, 3, 2, 5]]
    got = accuracy(torch.tensor([[0, 0, 0, 1], [5, 3, 1, 4]]), wanted)
    assert {name: values.tolist() for name, values in got.items()} == {
        "colour": [100, 100],
        "shape": [100, 100],
        "background": [100, 0],
        "motion": [0, 0],
        "attributes": [75, 50],
    }


def test_prompts_and_videos_that_have_no_attributes_are_refused(held_out):
    videos, prompts = held_out
    with pytest.raises(ConfigError, match="not a caption of a shapes video: 'a dog'"):
        Attributes(device="cpu").update(VideoBatch(videos[:1], ["a dog"]))
    with pytest.raises(Unsupported, match="one frame"):
        Attributes(device="cpu").update(VideoBatch(videos[:1, :1], prompts[:1]))
    assert Attributes.domain == "minis"


def test_slope_is_least_squares():
    times = torch.tensor([[-1.0, -0.2, 0.5, 1.0]])
    features = 3 + 2 * times[..., None] + torch.tensor([[[0.1], [-0.1], [0.2], [0.0]]])
    expected_slope = np.polyfit(times[0].numpy(), features[0, :, 0].numpy(), 1)[0]
    assert slope(features, times).item() == pytest.approx(expected_slope, rel=1e-5)
    assert slope(torch.linspace(4, 7, 16).view(1, 16, 1)).item() == pytest.approx(1.5, rel=1e-5)
    assert slope(torch.ones(2, 1, 3)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_heads_read_motion_from_the_slope_only():
    torch.manual_seed(0)
    heads = Heads(8)
    features = torch.randn(2, 16, 8)
    shifted = features + torch.randn(2, 1, 8)
    a, b = heads(features), heads(shifted)
    torch.testing.assert_close(a["motion"], b["motion"], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(a["colour"], b["colour"])
    torch.testing.assert_close(heads.video(features).norm(dim=-1), torch.ones(2))
