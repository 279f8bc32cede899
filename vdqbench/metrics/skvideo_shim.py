"""scikit-video 1.1.11 (the last release, 2018) on current numpy and scipy: its own modules are repaired, and only while in use.

The package relies on names that numpy and scipy have removed (`np.int`, `np.float`, `np.product`, `np.complex`, `scipy.misc.imresize`,
`ndarray.tostring`) and on int8 arithmetic that numpy 2 refuses. Its MS-SSIM scales frames twice once their shorter side reaches 384
pixels, which fails; its ST-RRED takes eigenvalues of a symmetric matrix by a general method, which rounding can make complex.

Setting such names on numpy itself would change what every other library sees. Here scikit-video's modules get a numpy and a scipy of
their own that add the missing names, and get the real ones back at the end. Videos are read with PyAV instead of the package's ffmpeg
processes.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from vdqbench.errors import ConfigError

RELEASE = "1.1.11"
MODULES = ("datasets", "io", "measure", "motion", "utils")


@contextmanager
def repaired() -> Iterator[Any]:
    """scikit-video, with `datasets, io, measure, motion, utils`, working inside the `with` block; not for several threads at once.

    Raises:
        ConfigError: the package is not installed.
    """
    package = _imported()
    replaced: list[tuple[Any, str, Any]] = []
    for owner, name, repair in list(_repairs()):
        replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, repair)
    try:
        yield package
    finally:
        for owner, name, original in reversed(replaced):
            setattr(owner, name, original)


def _imported() -> Any:
    """The package with its submodules; it imports scipy.misc, which warns and is gone from scipy 2, so a stand-in is there meanwhile."""
    if "skvideo.io" in sys.modules and "skvideo.measure" in sys.modules:
        return sys.modules["skvideo"]
    before = sys.modules.get("scipy.misc")
    sys.modules["scipy.misc"] = types.ModuleType("scipy.misc")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and identity with literals, all in the package's own source
            for name in MODULES:
                importlib.import_module(f"skvideo.{name}")
    except ModuleNotFoundError as error:
        raise ConfigError(f"natural-scene metrics need scikit-video ({error}); install it with pip install 'vdqbench[metrics]'") from error
    finally:
        if before is None:
            del sys.modules["scipy.misc"]
        else:
            sys.modules["scipy.misc"] = before
    return sys.modules["skvideo"]


def _repairs() -> Iterator[tuple[Any, str, Any]]:
    """(owner, name, what it becomes) of every name in scikit-video that has to be replaced."""
    import scipy
    import scipy.special

    misc = types.SimpleNamespace(imresize=imresize, factorial=scipy.special.factorial)
    numpy = _Namespace(np, int=int, float=float, complex=complex, product=np.prod)
    names = {"np": numpy, "scipy": _Namespace(scipy, misc=misc), "sc": misc}
    loaded = {name: module for name, module in sys.modules.items() if name == "skvideo" or name.startswith("skvideo.")}
    for module in loaded.values():
        for name, repair in names.items():
            if name in vars(module):
                yield module, name, repair
    symmetric = _Namespace(np.linalg, eig=np.linalg.eigh)
    yield loaded["skvideo.measure.strred"], "np", _Namespace(numpy, linalg=symmetric)
    motion = loaded["skvideo.motion.block"].blockMotion
    for name in ("skvideo.motion", "skvideo.motion.block", "skvideo.measure.videobliinds"):
        yield loaded[name], "blockMotion", partial(_as_int, motion)
    msssim = loaded["skvideo.measure.msssim"]
    yield msssim, "ssim_full", partial(msssim.ssim_full, scaleFix=False)
    yield loaded["skvideo.io.abstract"].VideoWriterAbstract, "_prepareData", _writable


class _Namespace(types.ModuleType):
    """A module with some names more than another one."""

    def __init__(self, base: types.ModuleType, **more: Any) -> None:
        super().__init__(base.__name__)
        self.__dict__.update(more, _base=base)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)


def imresize(image: np.ndarray, size: float, interp: str = "bilinear", mode: str | None = None) -> np.ndarray:
    """`scipy.misc.imresize` of scipy < 1.3 as scikit-video calls it: a fraction of the size of a float image [H, W], through PIL.

    Raises:
        ValueError: another mode than `F`.
    """
    from PIL import Image

    if mode != "F":
        raise ValueError(f"imresize mode={mode} is not used by scikit-video {RELEASE}; only F, a float image, is restored")
    filters = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    picture = Image.fromarray(np.asarray(image, np.float32))
    width, height = (int(side * size) for side in picture.size)
    return np.array(picture.resize((width, height), filters[interp]))


def _as_int(motion: Callable[..., np.ndarray], *args: Any, **options: Any) -> np.ndarray:
    """Motion vectors as integers that can be squared and added, instead of int8."""
    return motion(*args, **options).astype(int)


class _Bytes(np.ndarray):
    """An array that still has `tostring`, removed from numpy 2.3, which the writer of videos calls."""

    def tostring(self) -> bytes:
        return self.tobytes()


def _writable(writer: Any, data: np.ndarray) -> np.ndarray:
    return data.view(_Bytes)
