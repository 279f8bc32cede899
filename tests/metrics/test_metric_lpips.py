"""LPIPS against its formula written out with numpy, through checkpoints of the published keys and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.fidelity import Fidelity
from vdqbench.metrics.lpips import NETS, open_lpips


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Random AlexNet features and linear weights, under the names that torchvision and the package lpips give them."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    trunk = {f"features.{key}": value for key, value in torchvision.models.alexnet().features.state_dict().items()}
    trunk["classifier.6.bias"] = torch.zeros(3)
    torch.save(trunk, folder / "alexnet.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(NETS["alex"].channels)}
    torch.save(linear, folder / "alex.pth")
    save_file(linear, folder / "alex.safetensors")
    return {"net": "alex", "features": str(folder / "alexnet.pth"), "linear": str(folder / "alex.pth")}


def videos(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def by_hand(files: dict[str, str], a: torch.Tensor, b: torch.Tensor) -> float:
    """The published formula for one frame pair [H, W, 3], layer by layer in numpy."""
    net = torchvision.models.alexnet().features
    state = torch.load(files["features"], weights_only=True)
    net.load_state_dict({key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")})
    linear = torch.load(files["linear"], weights_only=True)
    x = torch.stack([a, b]).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    total, stage = 0.0, 0
    for layer in net[:-1]:
        with torch.no_grad():
            x = layer(x.clone())
        if isinstance(layer, torch.nn.ReLU):
            f = x.double().numpy()
            f = f / (np.sqrt((f**2).sum(axis=1, keepdims=True)) + 1e-10)
            weight = linear[f"lin{stage}.model.1.weight"].double().numpy()
            total += ((f[:1] - f[1:]) ** 2 * weight).sum(axis=1).mean()
            stage += 1
    return total


def test_equals_the_formula_frame_by_frame(files):
    a, b = videos(0, 2, 3, 40, 37, 3), videos(1, 2, 3, 40, 37, 3)
    expected = [np.mean([by_hand(files, x, y) for x, y in zip(v, r, strict=True)]) for v, r in zip(a, b, strict=True)]
    metric = open_lpips(files)
    for size in (1, 4, 64):
        np.testing.assert_allclose(metric.distance(a, b, size), expected, rtol=1e-5)
    np.testing.assert_allclose(metric.distance(b, a), expected, rtol=1e-5)
    assert metric.distance(a, a).tolist() == [0, 0]


def test_grows_with_noise_and_is_a_score_of_fidelity(files):
    a = videos(0, 1, 2, 48, 48, 3) // 4 + 90
    noisy = [(a.int() + (videos(1, 1, 2, 48, 48, 3).int() - 128) * level // 128).clamp(0, 255).byte() for level in (4, 16, 64)]
    metric = Fidelity(lpips=files, scores=["psnr", "lpips"])
    values = []
    for video in noisy:
        metric.update(VideoBatch(video, ["a"], a))
    values = metric.compute()["lpips"].values
    assert values[0] < values[1] < values[2]
    assert metric.protocol()["lpips"]["net"] == "alex" and len(metric.protocol()["lpips"]["sha256"]) == 64
    with pytest.raises(Unsupported, match="at least 31x31"):
        metric.update(VideoBatch(a[:, :, :30], ["a"], a[:, :, :30]))


@pytest.mark.parametrize("side", [31, 16])
def test_smallest_frames_still_reach_the_last_stage(files, side):
    name = {31: "alex", 16: "vgg"}[side]
    with torch.device("meta"):
        net = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[name]().features
        assert NETS[name].smallest == side and min(net[: NETS[name].ends[-1]](torch.zeros(1, 3, side, side)).shape[2:]) >= 1
        for end, channels in zip(NETS[name].ends, NETS[name].channels, strict=True):
            assert isinstance(net[end - 1], torch.nn.ReLU) and net[:end](torch.zeros(1, 3, side, side)).shape[1] == channels
    with pytest.raises(RuntimeError):
        torchvision.models.alexnet().features(torch.zeros(1, 3, 30, 30)) if name == "alex" else net(torch.zeros(1, 3, 15, 15))


def test_both_formats_hold_the_same_weights_and_others_are_refused(files, tmp_path):
    same = open_lpips({**files, "linear": files["linear"].replace(".pth", ".safetensors")})
    assert same.sha256 == open_lpips(files).sha256
    for spec, sentence in (
        ({}, "lpips.features is not set"),
        ({**files, "linear": None}, "lpips.linear is not set"),
        ({**files, "net": "vgg"}, "does not fit net=vgg"),
        ({**files, "net": "squeze"}, "lpips.net=squeze"),
        ({**files, "layers": 5}, "lpips.layers is not an option"),
        ({**files, "linear": files["features"]}, "does not fit net=alex"),
        ({**files, "features": str(tmp_path / "none.pth")}, "cannot be read"),
    ):
        with pytest.raises(ConfigError) as caught:
            open_lpips(spec)
        assert sentence in str(caught.value) and "\n" not in str(caught.value)
