"""VBench's rules against closed forms and plain loops: consistency, flickering, smoothness, dynamics, scenes, and what all share."""

from __future__ import annotations

import json
from itertools import pairwise
from statistics import mean

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vdqbench import shapes
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.background import BackgroundConsistency
from vdqbench.metrics.vbench.consistency import consistency
from vdqbench.metrics.vbench.dynamic import DynamicDegree, is_dynamic, largest_motion, pairs_needed
from vdqbench.metrics.vbench.flickering import TemporalFlickering, temporal_flickering
from vdqbench.metrics.vbench.flows import HornSchunck
from vdqbench.metrics.vbench.frames import every, middle_frames
from vdqbench.metrics.vbench.interpolators import Linear
from vdqbench.metrics.vbench.motion import MotionSmoothness, motion_smoothness
from vdqbench.metrics.vbench.overall import OverallConsistency, overall_consistency
from vdqbench.metrics.vbench.scene import Scene, shows, success
from vdqbench.score import build, check

PATH = "vdqbench.metrics.vbench"
LINEAR = {"_target_": f"{PATH}.interpolators.Linear"}
SMALL_FLOW = {"_target_": f"{PATH}.flows.HornSchunck"}
CLIP = {"_target_": f"{PATH}.encoders.Clip", "backbone": {"model": "mini_clip"}}
MAKERS = {
    "background_consistency_mini_clip": lambda size=64: BackgroundConsistency({"model": "mini_clip"}, size, "cpu"),
    "temporal_flickering": lambda size=64: TemporalFlickering(),
    "motion_smoothness_linear": lambda size=64: MotionSmoothness(LINEAR, size, "cpu"),
    "dynamic_degree_horn_schunck": lambda size=64: DynamicDegree(SMALL_FLOW, 8, size, "cpu"),
    "overall_consistency_mini_clip": lambda size=64: OverallConsistency(CLIP, size, "cpu"),
}


class Parrot:
    """A captioner that says what it is told, frame by frame."""

    def __init__(self, words: list[str]) -> None:
        self.name, self.words = "parrot", words

    def captions(self, frames: torch.Tensor) -> list[str]:
        assert frames.dtype == torch.uint8 and frames.shape[-1] == 3
        return [self.words[i % len(self.words)] for i in range(len(frames))]

    def protocol(self) -> dict[str, str]:
        return {"captioner": "parrot"}


def random_videos(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def shape_batch(count: int, first: int = 0) -> VideoBatch:
    frames, scenes = shapes.dataset("eval", 5, np.arange(first, first + count))
    return VideoBatch(torch.from_numpy(frames), [scene.caption for scene in scenes])


def test_consistency_compares_with_the_frame_before_and_the_first_and_clips_each_at_zero():
    features = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [-2.0, 0.0]]])
    expected = ((0.6 + 0.6) / 2 + (0 + 0) / 2) / 2
    assert consistency(features).item() == pytest.approx(expected)
    assert consistency(features[:, [0, 2, 1]]).item() == pytest.approx(((0 + 0) / 2 + (0 + 0.6) / 2) / 2)
    with pytest.raises(Unsupported, match="one frame"):
        consistency(features[:, :1])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(2, 7), st.integers(0, 99))
def test_consistency_equals_a_loop_and_ignores_scale(videos, frames, seed):
    features = torch.randn(videos, frames, 5, generator=torch.Generator().manual_seed(seed))
    for video, value in zip(features, consistency(features * 7), strict=True):
        sims = [
            (max(0.0, F.cosine_similarity(a, b, dim=0).item()) + max(0.0, F.cosine_similarity(video[0], b, dim=0).item())) / 2
            for a, b in pairwise(video)
        ]
        assert value.item() == pytest.approx(mean(sims), abs=1e-6)
        assert 0 <= value <= 1


def test_the_mean_of_a_consistency_weighs_frames_and_shards_merge():
    metric, other = MAKERS["background_consistency_mini_clip"](), MAKERS["background_consistency_mini_clip"]()
    long, short = shape_batch(2), VideoBatch(random_videos(1, 3, 32, 32), ["a"])
    metric.update(long)
    other.update(short)
    separate = metric.compute()[metric.name].values, other.compute()[metric.name].values
    metric.merge(other)
    score = metric.compute()[metric.name]
    assert score.values == [*separate[0], *separate[1]] and score.n == 3
    assert score.mean == pytest.approx((15 * sum(separate[0]) + 2 * separate[1][0]) / 32, abs=1e-12)
    assert abs(score.mean - mean(score.values)) > 1e-3


def test_flickering_is_one_minus_the_mean_difference():
    video = torch.zeros(1, 3, 2, 2, 3, dtype=torch.uint8)
    video[0, 1] = 51
    video[0, 2, 0] = 255
    assert temporal_flickering(video).item() == pytest.approx((255 - (51 + (204 + 51) / 2) / 2) / 255)
    x = random_videos(2, 5, 4, 7)
    loop = [1 - mean(np.abs(b - a).mean() for a, b in pairwise(v.numpy().astype(float))) / 255 for v in x]
    assert temporal_flickering(x).tolist() == pytest.approx(loop)
    with pytest.raises(Unsupported, match="one frame"):
        temporal_flickering(x[:, :1])


def test_smoothness_uses_the_odd_frames_between_and_cuts_the_mean():
    video = torch.zeros(1, 4, 1, 1, 3, dtype=torch.uint8)
    video[0, :, 0, 0, 0] = torch.tensor([10, 20, 15, 200])
    value = motion_smoothness(video, Linear().middle).item()
    assert value == pytest.approx((255 - abs(20 - 12) / 3) / 255)
    five = random_videos(2, 5, 3, 4)
    expected = []
    for v in five.numpy().astype(int):
        errors = [np.abs(v[i] - (v[i - 1] + v[i + 1]) // 2).mean() for i in (1, 3)]
        expected.append((255 - mean(errors)) / 255)
    assert motion_smoothness(five, Linear().middle).tolist() == pytest.approx(expected)
    with pytest.raises(Unsupported, match="3 frames"):
        motion_smoothness(five[:, :2], Linear().middle)


def test_even_brightening_is_perfectly_smooth():
    ramp = torch.arange(0, 90, 10, dtype=torch.uint8).view(1, 9, 1, 1, 1).expand(1, 9, 6, 5, 3)
    assert motion_smoothness(ramp, Linear().middle).item() == 1
    assert motion_smoothness(ramp[:, [0, 4, 1, 2, 3, 5, 8, 7, 6]], Linear().middle).item() < 0.97


def test_largest_motion_is_the_mean_of_five_percent():
    flow = torch.randn(2, 2, 13, 17, generator=torch.Generator().manual_seed(1))
    lengths = np.sort(np.hypot(flow[:, 0].numpy(), flow[:, 1].numpy()).reshape(2, -1))[:, ::-1]
    np.testing.assert_allclose(largest_motion(flow), lengths[:, : int(13 * 17 * 0.05)].mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize(("frames", "needed"), [(16, 4), (43, 11), (17, 4), (10, 2), (14, 4), (6, 2), (2, 0), (3, 1), (18, 4), (22, 6)])
def test_pairs_needed_round_halves_to_even(frames, needed):
    assert pairs_needed(frames) == needed


def test_a_video_is_dynamic_from_a_quarter_of_its_pairs_on():
    moving = torch.zeros(3, 15)
    moving[0, :3], moving[1, :4], moving[2, :] = 6.1, 6.1, 6.0
    assert is_dynamic(moving).tolist() == [0, 1, 0]
    with pytest.raises(Unsupported, match="at least 3 sampled frames and these videos have 2"):
        is_dynamic(torch.full((1, 1), 99.0))


def test_frames_are_subsampled_to_about_eight_a_second():
    assert [every(fps) for fps in (24, 8, 3, 12, 20, 30, 25)] == [3, 1, 1, 2, 2, 4, 3]
    assert len(range(129)[:: every(24)]) == 43


def test_the_threshold_scales_with_the_shorter_side():
    class Shift:
        name = "shift"

        def __init__(self, pixels):
            self.pixels = pixels

        def flow(self, first, second):
            return torch.tensor([self.pixels, 0.0]).view(1, 2, 1, 1).expand(len(first), 2, *first.shape[1:3])

        def protocol(self):
            return {"flow": "shift", "pixels": self.pixels}

    for pixels, dynamic in ((16.8, 0), (16.9, 1)):
        metric = DynamicDegree(SMALL_FLOW, 24)
        metric._flow = Shift(pixels)
        metric.update(VideoBatch(torch.zeros(1, 30, 720, 4 * 180, 3, dtype=torch.uint8)[:, :, :, :720], ["a"]))
        assert metric.compute()["dynamic_degree_horn_schunck"].mean == dynamic


def test_horn_schunck_sees_shifts_of_a_smooth_pattern():
    rough = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    big = F.interpolate(rough, (96, 96), mode="bicubic") * 50 + 128

    def shifted(x, y):
        ys, xs = torch.meshgrid(torch.arange(64.0) + 16 - y, torch.arange(64.0) + 16 - x, indexing="ij")
        grid = torch.stack([xs, ys], dim=-1)[None] / 95 * 2 - 1
        return F.grid_sample(big, grid, mode="bicubic", align_corners=True).clamp(0, 255).byte().permute(0, 2, 3, 1)

    for x, y in ((1.0, 0.0), (0.5, -0.5), (0.0, 1.0), (0.0, 0.0)):
        u, v = HornSchunck().flow(shifted(0, 0), shifted(x, y))[0, :, 8:-8, 8:-8].mean(dim=(1, 2)).tolist()
        assert u == pytest.approx(x, abs=0.12) and v == pytest.approx(y, abs=0.12)
    with pytest.raises(ConfigError, match="alpha=0"):
        HornSchunck(alpha=0)


def test_shapes_that_travel_are_dynamic_and_few_that_grow_are():
    batch = shape_batch(24)
    metric = MAKERS["dynamic_degree_horn_schunck"]()
    metric.update(batch)
    travels = [shapes.Scene.from_caption(p).motion in ("left", "right", "up", "down") for p in batch.prompts]
    values = metric.compute()[metric.name].values
    assert all(value for value, travel in zip(values, travels, strict=True) if travel)
    assert mean(value for value, travel in zip(values, travels, strict=True) if not travel) <= 0.25


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("overall")])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_constant_videos(name, size):
    metric = MAKERS[name]()
    frames = random_videos(2, 1, *size).expand(-1, 6, -1, -1, -1)
    metric.update(VideoBatch(frames, ["a", "b"]))
    expected = 0 if name.startswith("dynamic") else 1
    assert metric.compute()[name].values == pytest.approx([expected, expected], abs=1e-6)


@pytest.mark.parametrize("name", MAKERS)
def test_permutation_shards_and_batch_size_change_no_score(name):
    batch = shape_batch(7)
    whole, first, rest, small = MAKERS[name](), MAKERS[name](), MAKERS[name](), MAKERS[name](3)
    whole.update(batch)
    scores = whole.compute()[name]
    first.update(VideoBatch(batch.videos[:3], batch.prompts[:3]))
    rest.update(VideoBatch(batch.videos[3:], batch.prompts[3:]))
    first.merge(rest)
    small.update(VideoBatch(batch.videos.flip(0), batch.prompts[::-1]))
    assert first.compute()[name].values == pytest.approx(scores.values, abs=1e-5)
    assert small.compute()[name].values[::-1] == pytest.approx(scores.values, abs=1e-5)
    assert small.compute()[name].mean == pytest.approx(scores.mean, abs=1e-5) and scores.n == 7
    assert small.protocol() == whole.protocol()
    json.dumps(whole.protocol(), allow_nan=False)


@pytest.mark.parametrize("name", [name for name in MAKERS if not name.startswith("dynamic")])
def test_frame_order_matters(name):
    batch = shape_batch(4)
    order = [0, 9, 3, 14, 6, 1, 12, 8, 2, 15, 5, 11, 4, 13, 7, 10]
    metric, shuffled = MAKERS[name](), MAKERS[name]()
    metric.update(batch)
    shuffled.update(VideoBatch(batch.videos[:, order], batch.prompts))
    assert max(abs(a - b) for a, b in zip(metric.compute()[name].values, shuffled.compute()[name].values, strict=True)) > 1e-3


def test_mini_clip_knows_which_way_a_shape_moves():
    batch = shape_batch(32)
    right, backwards = MAKERS["overall_consistency_mini_clip"](), MAKERS["overall_consistency_mini_clip"]()
    right.update(batch)
    backwards.update(VideoBatch(batch.videos.flip(1), batch.prompts))
    assert right.compute()[right.name].mean > backwards.compute()[right.name].mean + 0.1


def test_overall_consistency_is_a_plain_cosine():
    videos, texts = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(overall_consistency(videos, texts), torch.tensor([0.6, -1.0]))


def test_mean_pooled_clip_takes_eight_middle_frames(tiny_clip):
    spec = {"_target_": f"{PATH}.encoders.Clip", "backbone": {"model": f"local-dir:{tiny_clip}"}}
    metric = OverallConsistency(spec, device="cpu")
    assert metric.name == "overall_consistency_clip"
    batch = VideoBatch(random_videos(2, 20, 48, 48), ["a dog", "a cat"])
    metric.update(batch)
    features = metric._encoder._backbone.embed_frames(batch.videos[:, [0, 3, 5, 8, 10, 13, 15, 18]].flatten(0, 1)).unflatten(0, (2, 8))
    pooled = F.normalize(features, dim=-1).mean(dim=1)
    expected = F.cosine_similarity(pooled, metric._encoder.texts(batch))
    assert metric.compute()["overall_consistency_clip"].values == pytest.approx(expected.tolist(), abs=1e-6)


def test_middle_frames():
    assert middle_frames(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert middle_frames(20, 8) == [0, 3, 5, 8, 10, 13, 15, 18]
    assert middle_frames(3, 5) == [0, 1, 2, 2, 2]
    for length in range(1, 200):
        bounds = np.linspace(0, length, min(16, length) + 1).astype(int)
        middles = [int(a + b - 1) // 2 for a, b in pairwise(bounds)]
        assert middle_frames(length, 16) == middles + [middles[-1]] * (16 - len(middles))


def test_scene_needs_every_word_as_a_part_of_the_caption():
    assert shows("art gallery", "a man in an art gallery") and shows("art gallery", "a gallery of party hats")
    assert not shows("art gallery", "a gallery") and not shows("Alley", "an alley")
    assert shows("bus", "a business") and success("alley", ["an alley", "a street", "valley", "x"]) == 0.5
    with pytest.raises(ValueError, match="no caption"):
        success("alley", [])


def test_the_scene_metric(tmp_path):
    spec = {"_target_": f"{__name__}.Parrot", "words": ["an alley at night", "a street", "a dark alley", "fog"]}
    metric = Scene(spec)
    metric.update(VideoBatch(random_videos(3, 5, 8, 8), ["alley", "night alley", "river"]))
    score = metric.compute()["scene_parrot"]
    captions = [spec["words"][i % 4] for i in range(16)]
    assert score.values == [mean("alley" in c for c in captions), mean("alley" in c and "night" in c for c in captions), 0]
    assert metric.protocol()["captioner"] == "parrot"
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"a walk in the fog": "fog"}))
    labelled = Scene(spec, str(file))
    labelled.update(VideoBatch(random_videos(1, 16, 8, 8), ["a walk in the fog"]))
    assert labelled.compute()["scene_parrot"].mean == 0.25
    with pytest.raises(ConfigError, match="no scene for the prompt 'alley'"):
        labelled.update(VideoBatch(random_videos(1, 4, 8, 8), ["alley"]))
    file.write_text("[]")
    with pytest.raises(ConfigError, match="JSON object"):
        Scene(spec, str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        Scene(spec, str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "must be like"),
        ({"name": "x"}, "must be like"),
        ({"_target_": "no.such.Module"}, "cannot be imported"),
        ({"_target_": f"{PATH}.interpolators.Cubic"}, "cannot be imported"),
        ({"_target_": "Linear"}, "cannot be imported"),
        ({"_target_": f"{PATH}.interpolators.Linear", "speed": 2}, "cannot be built"),
        ({"_target_": f"{PATH}.flows.HornSchunck"}, r"has no middle\(\)"),
    ],
)
def test_plugs_that_do_not_fit_are_one_sentence(spec, message):
    with pytest.raises(ConfigError, match=message) as caught:
        MotionSmoothness(spec)
    assert "\n" not in str(caught.value)


def test_a_frame_rate_must_be_given():
    for fps in (None, 0, "24"):
        with pytest.raises(ConfigError, match="frames per second"):
            DynamicDegree(SMALL_FLOW, fps)


def test_features_are_kept_in_the_store(tmp_path):
    from vdqbench.store import Store

    frames = shape_batch(3).videos
    first = MAKERS["dynamic_degree_horn_schunck"]()
    first.update(VideoBatch(frames, ["a", "b", "c"], store=Store(tmp_path), keys=["1", "2", "3"]))

    def never() -> torch.Tensor:
        raise AssertionError("the videos were decoded again")

    again = MAKERS["dynamic_degree_horn_schunck"]()
    again.update(VideoBatch(never, ["a", "b", "c"], store=Store(tmp_path), keys=["1", "2", "3"]))
    assert again.compute() == first.compute()


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def test_the_mini_selection_works_offline_and_says_what_it_is(composer):
    config = composer.plain(["metric=[vbench_mini]"])
    check(config["metric"])
    cell, batch, found = Cell.from_config(config), shape_batch(2), {}
    for node in config["metric"].values():
        metric = build(node, cell)
        assert [info.name for info in metric.scores] == node["scores"]
        assert (metric.mode, metric.version) == (node["mode"], node["version"])
        metric.update(batch)
        found |= metric.compute()
    assert set(found) == set(MAKERS)
    assert all(np.isfinite(score.mean) and score.n == 2 for score in found.values())


def test_both_selections_go_together_and_name_no_score_twice(composer):
    nodes = composer.plain(["metric=[vbench,vbench_mini]"])["metric"]
    check(nodes)
    assert len(nodes) == 11
    assert nodes["vbench_dynamic_degree"]["flow"] == {"_target_": f"{PATH}.flows.Raft", "weights": "asset:raft_large"}
