"""The graded distortions that train mini_quality and validate the evaluators: identity at 0, growth, and closed forms."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from vdqbench import shapes

PATH = Path(__file__).parents[2] / "experiments" / "minis" / "distortions.py"
SPEC = importlib.util.spec_from_file_location("minis_distortions", PATH)
distortions = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(distortions)
ALL = sorted(distortions.DISTORTIONS)


def distorted(name, video, severity, seed=3):
    return distortions.DISTORTIONS[name](video, severity, np.random.default_rng(seed))


@pytest.fixture(scope="module")
def videos():
    return shapes.render(shapes.scenes("eval")[:12], 5, np.arange(12))


def test_the_registry_holds_what_every_evaluator_is_validated_with():
    wanted = {"noise", "blur", "blockiness", "frame_shuffle", "colour_swap", "wrong_motion"}
    assert wanted <= distortions.DISTORTIONS.keys()
    kinds = (distortions.TECHNICAL, distortions.AESTHETIC, distortions.SEMANTIC)
    assert sum(len(kind) for kind in kinds) == len(distortions.DISTORTIONS)


@pytest.mark.parametrize("name", ALL)
def test_they_are_pure_and_start_at_the_video_itself(name, videos):
    video = videos[4]
    before = video.copy()
    assert (distorted(name, video, 0) == video).all()
    one, again, other = (distorted(name, video, 1, seed) for seed in (3, 3, 4))
    assert one.dtype == np.uint8 and one.shape == video.shape and (one == again).all() and (one != video).any()
    assert not np.shares_memory(one, video) and (video == before).all()
    drawn = name in ("noise", "blotches", "jitter", "flicker", "frame_cycle", "frame_shuffle", "colour_cast")
    assert (one != other).any() == drawn
    for severity in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
            distorted(name, video, severity)


@pytest.mark.parametrize("name", ALL)
def test_more_severity_is_more_change(name, videos):
    levels = videos.astype(float)
    made = [np.stack([distorted(name, v, s, i) for i, v in enumerate(videos)]) for s in (0.1, 0.3, 0.5, 0.7, 1.0)]
    changes = [np.abs(one - levels).mean() for one in made]
    assert all(a < b for a, b in pairwise(changes))


@pytest.mark.parametrize("shape", [(1, 32, 32), (5, 7, 11), (3, 64, 33)])
@pytest.mark.parametrize("name", ALL)
def test_other_sizes_and_single_frames(name, shape):
    video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for severity in (0.4, 1):
        assert distorted(name, video, severity).shape == video.shape


def test_noise_has_the_deviation_it_says():
    grey = np.full((16, 32, 32, 3), 128, np.uint8)
    assert (distorted("noise", grey, 0.25).astype(float) - 128).std() == pytest.approx(16, rel=0.02)


def test_blur_keeps_flat_frames_and_spreads_a_point_as_a_gaussian():
    assert (distorted("blur", np.full((2, 20, 20, 3), 77, np.uint8), 1) == 77).all()
    point = np.zeros((1, 101, 101, 3), np.uint8)
    point[0, 50, 50] = 255
    sigma = 0.07 * 0.2 * 101
    got = distorted("blur", point, 0.2)[0, 50, 50:53, 0]
    assert got.tolist() == pytest.approx(255 / (2 * np.pi * sigma**2) * np.exp(-(np.arange(3) ** 2) / (2 * sigma**2)), abs=0.6)


def test_full_blockiness_is_flat_within_blocks_and_keeps_their_means(videos):
    got = distorted("blockiness", videos[1], 1)
    assert (got[:, :5, :5] == got[:, :1, :1]).all() and (got[:, 30:, 30:] == got[:, 30:31, 30:31]).all()
    assert got.mean() == pytest.approx(videos[1].mean(), abs=0.1)


def test_shuffled_frames_are_the_same_frames_ever_farther_from_their_places():
    video = np.arange(16, dtype=np.uint8)[:, None, None, None] + np.zeros((16, 2, 2, 3), np.uint8)
    far = []
    for severity in (0.1, 0.3, 0.6, 1):
        places = np.array([distorted("frame_shuffle", video, severity, seed)[:, 0, 0, 0] for seed in range(200)]).astype(int)
        assert (np.sort(places) == np.arange(16)).all()
        far.append(np.abs(places - np.arange(16)).mean())
    assert all(b > 1.3 * a for a, b in pairwise(far)) and 16 / 6 < far[-1] < 16 / 3


def test_a_cycle_moves_the_share_of_frames_it_says():
    video = np.arange(16, dtype=np.uint8)[:, None, None, None] + np.zeros((16, 2, 2, 3), np.uint8)
    for severity, moved in ((0.25, 4), (0.5, 8), (1, 16)):
        places = distorted("frame_cycle", video, severity)[:, 0, 0, 0]
        assert sorted(places) == list(range(16)) and (places != np.arange(16)).sum() == moved


def test_colours_swap_in_turn_and_grey_stays():
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]], np.uint8).reshape(1, 1, 4, 3)
    assert distorted("colour_swap", colours, 1)[0, 0].tolist() == [[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]]
    assert distorted("colour_swap", colours, 0.2)[0, 0, 0].tolist() == [204, 51, 0]


def test_wrong_motion_slows_stands_and_turns_back(videos):
    video = np.arange(15, dtype=np.uint8)[:, None, None, None] + np.zeros((15, 4, 4, 3), np.uint8)
    places = [distorted("wrong_motion", video, severity)[:, 0, 0, 0].tolist() for severity in (0.5, 1)]
    assert places == [[7] * 15, list(range(14, -1, -1))]
    share = [(distorted("backwards", video, 0.3, seed)[0] != video[0]).any() for seed in range(400)]
    assert np.mean(share) == pytest.approx(0.3, abs=0.06)


def test_grey_videos_have_no_saturation_to_lose():
    grey = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8).repeat(3, axis=-1)
    assert np.abs(distorted("saturation", grey, 1).astype(int) - grey).max() <= 1
