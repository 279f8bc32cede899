"""LPIPS: weighted squared distance of unit-normalised deep features (Zhang et al., arXiv 1801.03924, version 0.1).

    d(x, y) = sum over layers l of the mean over positions of w_l . (x_l / |x_l| - y_l / |y_l|)^2

Layers are the outputs of the five ReLU stages of AlexNet or of VGG-16 trained on ImageNet; the weights w_l >= 0 are the published
linear ones. Both come from files: the package brings none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdqbench.errors import ConfigError, Unsupported, nearest

KEYS = ("net", "features", "linear")
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPS = 1e-10


@dataclass(frozen=True)
class Net:
    """A torchvision network: where its stages end among `features`, their channels, the smallest frame, and the usual file."""

    ends: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int
    file: str


NETS = {
    "alex": Net((2, 5, 8, 10, 12), (64, 192, 384, 256, 256), 31, "alexnet-owt-7be5be79.pth"),
    "vgg": Net((4, 9, 16, 23, 30), (64, 128, 256, 512, 512), 16, "vgg16-397923af.pth"),
}


def lpips(stages: list[tuple[Tensor, Tensor]], weights: list[Tensor]) -> Tensor:
    """Distances [M] from the features ([M, C, h, w] of both sides) of each stage, and each stage's weights [C]."""
    total = torch.zeros(len(stages[0][0]), dtype=stages[0][0].dtype, device=stages[0][0].device)
    for (x, y), weight in zip(stages, weights, strict=True):
        apart = (_unit(x) - _unit(y)).square().mean(dim=(2, 3))
        total = total + apart @ weight
    return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + EPS)


@dataclass(frozen=True, eq=False)
class LPIPS:
    """The stages of a network and the linear weights, ready to compare frames."""

    name: str
    sha256: str
    stages: tuple[nn.Module, ...]
    weights: list[Tensor]
    device: torch.device

    @torch.inference_mode()
    def distance(self, videos: Tensor, references: Tensor, batch_size: int = 64) -> Tensor:
        """Mean over frames of the distance of uint8 videos [N, T, H, W, 3]: [N], 0 for identical ones.

        Raises:
            Unsupported: frames too small for the network.
        """
        smallest = NETS[self.name].smallest
        if min(videos.shape[2:4]) < smallest:
            raise Unsupported(
                f"lpips with {self.name} needs frames of at least {smallest}x{smallest} pixels and these have "
                f"{videos.shape[2]}x{videos.shape[3]}; leave the score out"
            )
        pairs = zip(videos.flatten(0, 1).split(batch_size), references.flatten(0, 1).split(batch_size), strict=True)
        parts = [lpips(list(zip(self._features(x), self._features(y), strict=True)), self.weights).cpu() for x, y in pairs]
        return torch.cat(parts).view(videos.shape[:2]).double().mean(dim=1)

    def protocol(self) -> dict[str, str]:
        return {"version": "0.1", "net": self.name, "sha256": self.sha256}

    def _features(self, frames: Tensor) -> list[Tensor]:
        shift, scale = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (SHIFT, SCALE))
        x = (frames.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1 - shift) / scale
        found = []
        for stage in self.stages:
            found.append(x := stage(x))
        return found


def open_lpips(spec: Mapping[str, Any], device: str | None = None) -> LPIPS:
    """LPIPS as `{net: alex | vgg, features: FILE, linear: FILE}` describes it.

    `features` is torchvision's checkpoint of the network, `linear` the published weights (alex.pth or vgg.pth of version 0.1, which
    the package lpips brings in lpips/weights/v0.1); both are .pth or .safetensors.

    Raises:
        ConfigError: unknown keys or net, no file, or a file whose tensors do not fit.
    """
    for key in spec:
        if key not in KEYS:
            raise ConfigError(f"lpips.{key} is not an option of LPIPS{nearest(str(key), KEYS)}")
    name = str(spec.get("net", "alex"))
    if name not in NETS:
        raise ConfigError(f"lpips.net={name} is not a network of LPIPS{nearest(name, NETS)}")
    net = NETS[name]
    from torchvision.models import alexnet, vgg16

    with torch.device("meta"):
        layers = {"alex": alexnet, "vgg": vgg16}[name]().features
    trunk = _read(spec, "features", f"torchvision's {net.file}")
    expected = {f"features.{key}": value.shape for key, value in layers.state_dict().items()}
    _fits("features", {key: trunk[key].shape for key in expected if key in trunk}, expected, spec)
    linear = _read(spec, "linear", f"{name}.pth of lpips/weights/v0.1 in the package lpips")
    wanted = {f"lin{i}.model.1.weight": torch.Size([1, width, 1, 1]) for i, width in enumerate(net.channels)}
    _fits("linear", {key: value.shape for key, value in linear.items()}, wanted, spec)
    where = torch.device(device if device not in (None, "auto") else "cuda" if torch.cuda.is_available() else "cpu")
    state = {key.removeprefix("features."): trunk[key].float() for key in expected}
    layers.load_state_dict(state, assign=True)
    for layer in layers:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    starts = (0, *net.ends[:-1])
    stages = tuple(layers[start:end].eval().requires_grad_(False).to(where) for start, end in zip(starts, net.ends, strict=True))
    weights = [linear[key].float().flatten().to(where) for key in wanted]
    return LPIPS(name, _hash([*state.values(), *weights]), stages, weights, where)


def _read(spec: Mapping[str, Any], key: str, usual: str) -> dict[str, Tensor]:
    """Tensors of a checkpoint, by name.

    Raises:
        ConfigError: no file is named, it does not exist, or it is no checkpoint.
    """
    if not spec.get(key):
        raise ConfigError(f"lpips.{key} is not set, and random weights would give meaningless scores; set it to {usual}")
    path = Path(str(spec[key])).expanduser()
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"lpips.{key}={path} cannot be read ({reason}); set it to {usual}") from error


def _fits(key: str, found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], spec: Mapping[str, Any]) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name))
    if wrong:
        raise ConfigError(
            f"lpips.{key}={spec[key]} does not fit net={spec.get('net', 'alex')}: {wrong[0]} has shape {_shape(found, wrong[0])} where "
            f"{_shape(expected, wrong[0])} is expected; give the file of this network"
        )


def _shape(shapes: Mapping[str, torch.Size], name: str) -> str:
    return str(list(shapes[name])) if name in shapes else "none"


def _hash(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
