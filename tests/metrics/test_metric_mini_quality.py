"""mini_quality on held-out scenes: it sees what it must and leaves the rest, and what it is not made for is refused."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from vdqbench import shapes
from vdqbench.config import CONF
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.mini_quality import FOLDER, MiniQuality, QualityNet, quality, windows
from vdqbench.store import Store

SPEC = importlib.util.spec_from_file_location(
    "minis_distortions_of_quality", Path(__file__).parents[2] / "experiments" / "minis" / "distortions.py"
)
distortions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(distortions)

SPATIAL = ["noise", "blotches", "blur", "blockiness"]
GRADED = [name for name in distortions.TECHNICAL if name != "frame_cycle"]
"""Without the distortion that by its nature grows no worse from two thirds of its strength on."""
MUST_SEE = {"mini_vqa_t": GRADED, "mini_vqa_a": [*distortions.AESTHETIC, *SPATIAL]}
LADDER = np.linspace(0, 1, 8)


@pytest.fixture(scope="module")
def videos():
    """Held-out scenes of a seed used nowhere else."""
    return shapes.render(shapes.scenes("eval")[:16], 4321, np.arange(16))


@pytest.fixture(scope="module")
def ladders(videos):
    """Mean scores by distortion and severity."""

    def mean(name, severity):
        distort = distortions.DISTORTIONS[name]
        made = np.stack([distort(video, severity, np.random.default_rng([9, i])) for i, video in enumerate(videos)])
        return {score: np.mean(values) for score, values in scored(MiniQuality(device="cpu"), torch.from_numpy(made)).items()}

    names = [*distortions.TECHNICAL, *distortions.AESTHETIC, "backwards"]
    return {name: [mean(name, severity) for severity in LADDER] for name in names}


def scored(metric, videos, size=100):
    for part in videos.split(size):
        metric.update(VideoBatch(part, ["a red circle growing on a dark background"] * len(part)))
    return {name: score.values for name, score in metric.compute().items()}


def test_real_held_out_videos_score_high():
    scenes = shapes.scenes("eval")
    scores = scored(MiniQuality(device="cpu"), torch.from_numpy(shapes.render(scenes, 99, np.arange(len(scenes)))))
    for values in scores.values():
        assert np.mean(values) > 90 and np.mean(np.array(values) > 80) > 0.95


@pytest.mark.parametrize("score", ["mini_vqa_t", "mini_vqa_a"])
def test_it_falls_with_every_distortion_it_must_see(ladders, score):
    for name in MUST_SEE[score]:
        means = [rung[score] for rung in ladders[name]]
        rank = np.argsort(np.argsort(means))
        assert np.corrcoef(rank, np.arange(len(LADDER)))[0, 1] <= -0.95, (name, means)
        assert means[0] - means[-1] > 40, (name, means)


def test_misplaced_frames_cost_technical_quality_up_to_two_thirds_of_them(ladders):
    means = [rung["mini_vqa_t"] for rung in ladders["frame_cycle"]]
    assert (np.diff(means[:6]) < 0).all() and max(means[5:]) < 40


def test_each_score_leaves_the_other_kind_alone(ladders):
    for name in ("jitter", "frame_shuffle", "backwards"):
        assert max(abs(rung["mini_vqa_a"] - ladders[name][0]["mini_vqa_a"]) for rung in ladders[name]) < 12
    for name in distortions.AESTHETIC:
        assert max(abs(rung["mini_vqa_t"] - ladders[name][0]["mini_vqa_t"]) for rung in ladders[name]) < 20


def test_batches_order_and_shards_change_nothing_and_frame_order_does(videos):
    x = torch.from_numpy(videos[:7])
    whole = scored(MiniQuality(device="cpu"), x)
    pieces = scored(MiniQuality(device="cpu", batch_size=2), x, size=3)
    turned = scored(MiniQuality(device="cpu"), x.flip(0))
    a, b = MiniQuality(device="cpu"), MiniQuality(device="cpu")
    scored(a, x[:2])
    scored(b, x[2:])
    a.merge(b)
    for name, values in whole.items():
        assert pieces[name] == pytest.approx(values, abs=1e-5)
        assert turned[name][::-1] == pytest.approx(values, abs=1e-5)
        assert a.compute()[name].values == pytest.approx(values, abs=1e-5)
    shuffled = scored(MiniQuality(device="cpu"), x[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))])
    assert np.mean(whole["mini_vqa_t"]) - np.mean(shuffled["mini_vqa_t"]) > 40


def test_network_by_an_independent_reference(videos):
    """The same numbers from NumPy's own convolution of one pixel, and means and deviations taken by hand."""
    torch.manual_seed(0)
    net = QualityNet((2, 2, 2, 2), 3).eval()
    x = torch.from_numpy(videos[:2])
    frames = x.numpy().astype(np.float64).transpose(0, 4, 1, 2, 3) / 127.5 - 1
    change = np.concatenate([np.zeros_like(frames[:, :, :1]), np.diff(frames, axis=2)], axis=2)
    joined = np.pad(np.concatenate([frames, change], axis=1), ((0, 0), (0, 0), (0, 0), (1, 1), (1, 1)))
    with torch.inference_mode():
        first = net.stages[0](torch.from_numpy(joined[:, :, :, 1:-1, 1:-1]).float())
        logits = net(x)
        y, pooled = first, []
        for i in range(4):
            y = torch.nn.functional.gelu(y if i == 0 else net.stages[i](y))
            flat = y.flatten(2).double()
            pooled += [flat.mean(dim=2), ((flat - flat.mean(dim=2, keepdim=True)).square().mean(dim=2) + 1e-6).sqrt()]
        expected = [head(torch.cat(pooled, dim=1).float()) for head in net.heads]
    kernel, bias = net.stages[0].weight.detach().numpy(), net.stages[0].bias.detach().numpy()
    patch = joined[1, :, 5, 2 * 3 : 2 * 3 + 4, 2 * 7 : 2 * 7 + 4]
    assert first[1, 0, 5, 3, 7].item() == pytest.approx((patch * kernel[0, :, 0]).sum() + bias[0], abs=1e-4)
    torch.testing.assert_close(logits, torch.cat(expected, dim=1), atol=1e-4, rtol=1e-4)
    assert quality(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([50, 100 / (1 + np.exp(-1))])


def test_the_store_remembers_scores(videos, tmp_path, monkeypatch):
    store, x = Store(tmp_path / "store"), torch.from_numpy(videos[:3])
    keys, values = ["a", "b", "c"], []
    for _ in range(2):
        metric = MiniQuality(device="cpu")
        metric.update(VideoBatch(x, ["p"] * 3, store=store, keys=keys))
        values.append(metric.compute()["mini_vqa_t"].values)
        monkeypatch.setattr(QualityNet, "forward", None)
    assert values[0] == values[1]


@given(st.integers(16, 200))
def test_windows_cover_every_frame_with_no_window_too_many(frames):
    firsts = windows(frames)
    assert firsts[0] == 0 and firsts[-1] == frames - 16 and len(firsts) == -(-frames // 16)
    assert max(np.diff(firsts), default=0) <= 16
    assert windows(16) == [0] and windows(17) == [0, 1]


def test_a_longer_video_is_judged_by_all_of_its_frames():
    """17 frames, as mini_hunyuan makes: the mean of both windows, as high as of 16 frames, and a broken last frame is seen."""
    clips, _ = shapes.dataset("eval", 4321, np.arange(16), 17)
    long, metric = torch.from_numpy(clips), MiniQuality(device="cpu")
    logits = metric._logits(long)
    torch.testing.assert_close(logits, (metric._logits(long[:, :16]) + metric._logits(long[:, 1:])) / 2)
    assert quality(logits).mean(dim=0).min() > 93
    broken = long.clone()
    broken[:, 16] = 255 - broken[:, 16]
    assert quality(metric._logits(broken))[:, 0].mean() < quality(logits)[:, 0].mean() - 3


@pytest.mark.parametrize("shape", [(1, 32, 32), (15, 32, 32), (16, 32, 33), (16, 64, 64)])
def test_videos_of_other_sizes_are_refused(shape):
    with pytest.raises(Unsupported, match=f"{shape[0]} frames of {shape[1]}x{shape[2]}") as caught:
        scored(MiniQuality(device="cpu"), torch.zeros(2, *shape, 3, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


def test_a_grey_video_has_no_aesthetic_quality():
    """Nothing is technically wrong with it: that it shows nothing is not what the technical score is about."""
    scores = scored(MiniQuality(device="cpu"), torch.full((1, 16, 32, 32, 3), 128, dtype=torch.uint8))
    assert scores["mini_vqa_a"][0] < 40 and 0 <= scores["mini_vqa_t"][0] <= 100


def test_it_ships_small_and_is_what_the_configuration_says():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 1_000_000
    node = yaml.safe_load((CONF / "metric" / "mini_quality.yaml").read_text())
    metric = MiniQuality(**{key: value for key, value in node.items() if key not in ("_target_", "mode", "version")})
    assert [info.name for info in metric.scores] == node["scores"] == ["mini_vqa_t", "mini_vqa_a"]
    assert (metric.mode, metric.version, metric.domain) == (node["mode"], node["version"], "minis")
    protocol = metric.protocol()
    assert protocol["backbone"] == "mini_quality" and re.fullmatch("[0-9a-f]{64}", protocol["sha256"])
    assert str(FOLDER) not in json.dumps(protocol)


def test_wrong_options_are_one_sentence():
    for options, message in (
        ({"weights": "other"}, "weights=other"),
        ({"device": "gpu"}, "device=gpu"),
        ({"scores": ["mini_vqa"]}, "mini_vqa"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            MiniQuality(**options)
        assert "\n" not in str(caught.value)
