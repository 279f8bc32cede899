"""mini_video as it ships: it knows held-out shapes videos, and its distances grow with what they must see."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from vdqbench import shapes
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.frechet import frechet
from vdqbench.metrics.mini_video import WEIGHTS, MiniVideo, load_mini_video, mini_detectors

MINIS = Path(__file__).resolve().parents[2] / "experiments" / "minis"
BAR = {"colour": 99, "shape": 97, "background": 99, "motion": 97}


@pytest.fixture(scope="module")
def held_out():
    """64 held-out scenes of a seed used nowhere else, and the distortions."""
    sys.path.insert(0, str(MINIS))
    try:
        from distortions import DISTORTIONS
    finally:
        sys.path.remove(str(MINIS))
    scenes = shapes.scenes("eval")[:64]
    return shapes.render(scenes, 4321, np.arange(64)), scenes, DISTORTIONS


def scored(videos, references, **options):
    metric = MiniVideo(device="cpu", **options)
    metric.update(VideoBatch(torch.from_numpy(np.ascontiguousarray(videos)), [""] * len(videos), torch.from_numpy(references)))
    return metric.compute()


def test_attributes_of_held_out_videos_are_named(held_out):
    videos, scenes, _ = held_out
    network, _ = load_mini_video("cpu")
    logits = network(torch.from_numpy(videos))
    for i, name in enumerate(shapes.ATTRIBUTES):
        wanted = torch.tensor([scene.labels[i] for scene in scenes])
        assert 100 * (logits[name].argmax(dim=1) == wanted).double().mean() >= BAR[name]


@pytest.mark.parametrize("name", ["noise", "blur", "blockiness", "frame_shuffle", "jitter", "flicker"])
def test_distances_grow_with_distortion(held_out, name):
    videos, distortions = held_out[0][:24], held_out[2]
    grid = np.linspace(0, 1, 5)
    found = [scored([distortions[name](v, s, np.random.default_rng(i)) for i, v in enumerate(videos)], videos, resamples=0) for s in grid]
    for score in ("mini_fvd", "mini_kvd", "mini_fid_vid"):
        assert spearmanr(grid, [one[score].mean for one in found])[0] >= 0.95


def test_whole_clips_tell_directions_and_segments_hardly_do(held_out):
    videos, scenes, _ = held_out
    chosen = np.stack([v for v, scene in zip(videos, scenes, strict=True) if scene.motion in ("right", "down", "growing")])
    grid = np.linspace(0, 1, 5)
    shares = [round(share * len(chosen)) for share in grid]
    found = [scored(np.concatenate([chosen[:k, ::-1], chosen[k:]]), chosen, resamples=0) for k in shares]
    assert spearmanr(grid, [one["mini_fvd"].mean for one in found])[0] >= 0.95
    assert spearmanr(grid, [one["mini_kvd"].mean for one in found])[0] >= 0.95
    assert found[-1]["mini_fvd"].mean > 50 * found[-1]["mini_fid_vid"].mean


def test_swapped_colours_are_seen(held_out):
    videos, scenes, distortions = held_out
    chosen = np.stack([v for v, scene in zip(videos, scenes, strict=True) if scene.colour in ("red", "yellow")])
    swapped = np.stack([distortions["colour_swap"](v, 1.0, np.random.default_rng(0)) for v in chosen])
    grid = np.linspace(0, 1, 5)
    shares = [round(share * len(chosen)) for share in grid]
    found = [scored(np.concatenate([swapped[:k], chosen[k:]]), chosen, resamples=0) for k in shares]
    for score in ("mini_fvd", "mini_kvd", "mini_fid_vid"):
        assert spearmanr(grid, [one[score].mean for one in found])[0] >= 0.95


def test_the_committed_table_meets_its_bar():
    with (MINIS / "logs" / "video_distances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["score"] for row in rows} == {"mini_fvd", "mini_kvd", "mini_fid_vid"}
    below = {(row["score"], row["distortion"]) for row in rows if float(row["spearman"]) < 0.95}
    assert below == {("mini_fid_vid", "wrong_motion")}


def test_undistorted_videos_are_closer_than_any_distorted_ones(held_out):
    """Other clean videos of the same scenes are nearer than half of full noise, blur or shuffling."""
    videos, scenes, distortions = held_out
    clip, _ = mini_detectors(device="cpu")
    seen = {"clean": shapes.render(scenes, 99, np.arange(64))}
    for name in ("noise", "blur", "frame_shuffle"):
        seen[name] = np.stack([distortions[name](v, 0.5, np.random.default_rng(i)) for i, v in enumerate(videos)])
    own = clip.embed(torch.from_numpy(videos))[:, :-1]
    apart = {name: frechet(clip.embed(torch.from_numpy(part))[:, :-1], own) for name, part in seen.items()}
    assert apart["clean"] < min(apart["noise"], apart["blur"], apart["frame_shuffle"])


def test_labels_and_identical_sets(held_out):
    videos, _, _ = held_out
    scores = scored(videos[:16].copy(), videos[:16])
    assert scores["mini_fvd"].mean == pytest.approx(0, abs=1e-9) and scores["mini_kvd"].mean == 0
    assert scores["mini_fvd"].label == "mini FVD (mini_video, n=16<64, 16 frames)"
    assert scores["mini_fid_vid"].label == "mini FID-VID (mini_video, segments of 4, n=16<64, 16 frames)"


def test_batch_size_changes_no_feature(held_out):
    videos = torch.from_numpy(held_out[0][:9])
    for one, many in zip(mini_detectors(batch_size=1, device="cpu"), mini_detectors(batch_size=64, device="cpu"), strict=True):
        torch.testing.assert_close(one.embed(videos), many.embed(videos), atol=1e-5, rtol=1e-5)


def test_segments_repeat_the_last_frame(held_out):
    _, segments = mini_detectors(device="cpu")
    video = torch.from_numpy(held_out[0][:2, :6])
    filled_up = torch.cat([video, video[:, -1:], video[:, -1:]], dim=1)
    torch.testing.assert_close(segments.embed(video)[:, :-1], segments.embed(filled_up)[:, :-1])


def test_other_backbones_and_single_frames_are_refused(held_out):
    with pytest.raises(ConfigError, match="backbone=i3d is not what mini_fvd looks through; set it to mini_video"):
        MiniVideo("i3d")
    with pytest.raises(Unsupported, match="mini_video needs 2 frames and these videos have 1"):
        scored(held_out[0][:, :1], np.ascontiguousarray(held_out[0][:, :1]))
    assert MiniVideo.domain == "minis" and MiniVideo.mode == "set"


def test_shipped_weights_are_small():
    assert sum(file.stat().st_size for file in WEIGHTS.parent.iterdir()) < 2e6
