"""The shapes videos: deterministic, disjoint splits, and what the caption says is what is seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdqbench import shapes


def test_every_scene_belongs_to_one_split():
    splits = {name: set(shapes.scenes(name)) for name in shapes.SPLITS}
    assert {name: len(scenes) for name, scenes in splits.items()} == {"eval": 128, "calib": 10, "train": 294}
    assert len(set.union(*splits.values())) == 432 == 6 * 4 * 3 * 6


def test_captions_and_scenes_are_inverse():
    for split in shapes.SPLITS:
        for scene in shapes.scenes(split):
            assert shapes.Scene.from_caption(scene.caption) == scene
    with pytest.raises(ValueError, match="not a caption"):
        shapes.Scene.from_caption("a red cat moving left on a dark background")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63), st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_a_video_depends_on_its_own_seed_and_index_alone(seed, index):
    videos, chosen = shapes.dataset("train", seed, np.array(index))
    assert videos.shape == (len(index), 16, 32, 32, 3) and videos.dtype == np.uint8
    alone, scene = shapes.dataset("train", seed, np.array(index[-1:]))
    assert np.array_equal(videos[-1], alone[0]) and chosen[-1] == scene[0]


def test_uniform_numbers_are_uniform():
    u = shapes.uniform(3, np.arange(100_000), 1)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 5e-3 and abs(u.var() - 1 / 12) < 2e-3
    assert np.abs(np.corrcoef([u, shapes.uniform(3, np.arange(100_000), 2), shapes.uniform(4, np.arange(100_000), 1)])[0, 1:]).max() < 0.02


def centre_and_area(video: np.ndarray, scene: shapes.Scene) -> np.ndarray:
    """[T, 3]: column, row and area of the pixels nearer to the shape's colour than to grey."""
    paint = np.array(shapes.COLOURS[scene.colour]) * 255
    frames = video.astype(float)
    inside = ((frames - paint) ** 2).sum(-1) < ((frames - frames.mean(-1, keepdims=True)) ** 2).sum(-1)
    rows, columns = np.mgrid[:32, :32]
    area = inside.sum((1, 2))
    return np.stack([(inside * columns).sum((1, 2)) / area, (inside * rows).sum((1, 2)) / area, area], axis=1)


def test_motion_is_what_the_caption_says():
    expected = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1), "growing": (2, 1), "shrinking": (2, -1)}
    videos, chosen = shapes.dataset("eval", 5, np.arange(60))
    for video, scene in zip(videos, chosen, strict=True):
        change = np.diff(centre_and_area(video, scene), axis=0).sum(0)
        axis, sign = expected[scene.motion]
        assert np.sign(change[axis]) == sign and abs(change[axis]) > 10
        still = [a for a in (0, 1) if a != axis]
        assert np.abs(change[still]).max() < 3


@pytest.mark.parametrize("shape, fill", [("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5), ("cross", 0.51)])
def test_shapes_fill_the_expected_part_of_their_box(shape, fill):
    scene = shapes.Scene("green", shape, "dark", "growing")
    green = shapes.render([scene], 1, np.array([2]))[0, -1, :, :, 1] > 90
    box = np.ix_(green.any(1), green.any(0))
    assert green[box].mean() == pytest.approx(fill, abs=0.12)
