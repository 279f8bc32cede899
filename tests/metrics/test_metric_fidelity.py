"""PSNR, SSIM and CLIP cosine against closed forms and an implementation with scipy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.fidelity import Fidelity, clip_cosine, psnr, ssim, temporal_error


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def ssim_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel by scipy's truncated Gaussian, cropped to where the window fits."""
    a, b = a.astype(np.float64), b.astype(np.float64)

    def blur(x):
        return gaussian_filter(x, 1.5, truncate=5 / 1.5, mode="constant")[5:-5, 5:-5]

    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    c1, c2 = 2.55**2, 7.65**2
    return float(np.mean((2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


def test_psnr_of_a_constant_difference():
    a = torch.full((3, 2, 4, 5, 3), 100, dtype=torch.uint8)
    b = a + torch.tensor([1, 10, 155], dtype=torch.uint8).view(3, 1, 1, 1, 1)
    expected = [20 * math.log10(255), 20 * math.log10(25.5), 20 * math.log10(255 / 155)]
    torch.testing.assert_close(psnr(a, b), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(psnr(b, a), psnr(a, b))


def test_psnr_is_of_the_whole_video_and_not_a_mean_of_frames():
    a = torch.zeros(1, 2, 2, 2, 3, dtype=torch.uint8)
    b = a.clone()
    b[0, 0] = 20
    assert psnr(a, b).item() == pytest.approx(10 * math.log10(255**2 / 200))


def test_psnr_of_black_and_white_is_zero_and_of_twins_is_the_cap():
    black = torch.zeros(1, 1, 3, 3, 3, dtype=torch.uint8)
    assert psnr(black, 255 - black).item() == pytest.approx(0, abs=1e-12)
    assert psnr(black, black).item() == 100.0


@pytest.mark.parametrize("shape", [(32, 32), (11, 11), (17, 40)])
def test_ssim_equals_scipy(shape):
    a = noise(2, 3, *shape, 3)
    b = (a.float() * 0.7 + noise(2, 3, *shape, 3, seed=1).float() * 0.3).byte()
    expected = [
        np.mean([ssim_scipy(a[n, t, ..., c].numpy(), b[n, t, ..., c].numpy()) for t in range(3) for c in range(3)]) for n in range(2)
    ]
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, rtol=1e-10)


def test_ssim_of_twins_is_one_and_of_flat_frames_has_a_closed_form():
    a = noise(1, 2, 16, 16, 3)
    assert ssim(a, a).item() == pytest.approx(1, abs=1e-12)
    x, y = torch.full((2, 1, 1, 12, 12, 3), 0, dtype=torch.uint8)
    x += 100
    y += 150
    c1 = 2.55**2
    assert ssim(x, y).item() == pytest.approx((2 * 100 * 150 + c1) / (100**2 + 150**2 + c1), rel=1e-9)


def test_small_frames_are_unsupported():
    with pytest.raises(Unsupported, match="at least 11x11"):
        ssim(noise(1, 1, 10, 40, 3), noise(1, 1, 10, 40, 3))


def test_clip_cosine_is_the_mean_over_frames():
    frames = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    references = torch.tensor([[[2.0, 0.0], [1.0, 0.0]]])
    assert clip_cosine(frames, references).item() == pytest.approx((1 + 0.6) / 2)


def test_streaming_class_and_valid_json(tiny_clip):
    videos, references = noise(3, 2, 21, 33, 3), noise(3, 2, 21, 33, 3, seed=1)
    references[0] = videos[0]
    metric = Fidelity({"model": f"local-dir:{tiny_clip}"}, device="cpu")
    metric.update(VideoBatch(videos[:1], ["a"], references[:1]))
    metric.update(VideoBatch(videos[1:], ["b", "c"], references[1:]))
    scores = metric.compute()
    assert scores["psnr"].values == psnr(videos, references).tolist()
    assert scores["psnr"].values[0] == 100.0
    assert scores["ssim"].values == ssim(videos, references).tolist()
    assert scores["clip_cosine"].values[0] == pytest.approx(1, abs=1e-6)
    assert max(scores["clip_cosine"].values[1:]) < 1
    json.dumps([metric.protocol(), {name: score.values for name, score in scores.items()}], allow_nan=False)
    with pytest.raises(ConfigError, match="references"):
        metric.update(VideoBatch(videos, ["a", "b", "c"]))


def test_backbone_is_only_opened_for_the_cosine():
    metric = Fidelity(scores=["psnr"])
    metric.update(VideoBatch(noise(1, 1, 4, 4, 3), ["a"], noise(1, 1, 4, 4, 3)))
    assert list(metric.compute()) == ["psnr"]
    assert "sha256" not in metric.protocol()
    with pytest.raises(ConfigError, match="backbone"):
        Fidelity()


def test_temporal_error_sees_motion_alone():
    a = noise(2, 5, 6, 7, 3) // 2
    assert temporal_error(a, a).tolist() == [0, 0]
    torch.testing.assert_close(temporal_error(a, a + 40), torch.zeros(2, dtype=torch.float64))
    flicker = a + torch.tensor([0, 51, 0, 51, 0], dtype=torch.uint8).view(1, 5, 1, 1, 1)
    torch.testing.assert_close(temporal_error(flicker, a), torch.full((2,), 0.2, dtype=torch.float64))
    dark, light = torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8), torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8)
    dark[:, 1], light[:, 0] = 255, 255
    assert temporal_error(dark, light).item() == 2.0


def test_temporal_error_equals_numpy_and_follows_the_order_of_frames():
    a, b = noise(3, 4, 9, 8, 3), noise(3, 4, 9, 8, 3, seed=1)
    x, y = (v.numpy().astype(np.float64) / 255 for v in (a, b))
    expected = np.abs(np.diff(x, axis=1) - np.diff(y, axis=1)).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(temporal_error(a, b), expected, rtol=1e-12)
    np.testing.assert_allclose(temporal_error(b, a), expected, rtol=1e-12)
    assert (temporal_error(a[:, [2, 0, 3, 1]], b) - temporal_error(a, b)).abs().min() > 1e-3
    with pytest.raises(Unsupported, match="one frame"):
        temporal_error(a[:, :1], b[:, :1])


def test_all_scores_but_lpips_need_no_file():
    assert [info.name for info in Fidelity(scores=["psnr", "temporal_error"]).scores] == ["psnr", "temporal_error"]
    assert Fidelity.default == tuple(info.name for info in Fidelity.available if info.name != "lpips")
    with pytest.raises(ConfigError, match=r"lpips\.features is not set, and random weights would give meaningless scores"):
        Fidelity(scores=["lpips"])
