"""The network and preprocessing of FID-VID against the code of DisCo, run on the weights and videos of `filled.py`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from filled import filled, layout, movie
from PIL import Image

from vdqbench.errors import ConfigError
from vdqbench.metrics.frechet import FIDVID, resnet_detector
from vdqbench.metrics.resnet3d import MEAN, ResNet3D, segmented, segments, squash

GOLDEN = [9.462256, 0.43148, 4.863825, 9.007255, 0.451218, 4.676354], 678.271957
"""Features 3, 153 and 303 of two videos of 20 frames, and the norm of all 2 x 2048."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint as it is published: a training state whose tensors were wrapped in DataParallel, in PyTorch's first format."""
    path = tmp_path_factory.mktemp("resnet3d") / "resnet-50-kinetics.pth"
    state = {f"module.{k}": v for k, v in filled(ResNet3D(), 0.7).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save({"epoch": 84, "arch": "resnet-50", "state_dict": state}, path, _use_new_zipfile_serialization=False)
    return str(path)


def test_names_and_shapes_are_those_of_the_published_network():
    with torch.device("meta"):
        network = ResNet3D()
    assert layout(network.state_dict()) == ("1dfda97bf78237b3889735ab2302effdd6543e9eedadf66a30dfcd8c900220c1", 267)
    assert sum(value.numel() for value in network.parameters()) == 47_018_576


def test_features_are_those_of_the_original_code(weights):
    values, norm = GOLDEN
    features = resnet_detector(weights, device="cpu").embed(movie(2, 20, 40, 56))
    assert features.shape == (2, 2049) and features[:, -1].tolist() == [20, 20]
    torch.testing.assert_close(features[:, 3:400:150].flatten(), torch.tensor(values), atol=1e-4, rtol=0)
    assert features[:, :-1].double().norm().item() == pytest.approx(norm, abs=1e-3)


def test_missing_and_wrong_weights_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"weights=null of FID-VID names no weights of its network.*resnet-50-kinetics\.pth"):
        FIDVID()
    torch.save({"state_dict": {"module.conv1.weight": torch.ones(64, 3, 7, 7)}}, tmp_path / "2d.pth")
    with pytest.raises(ConfigError, match=r"2d\.pth does not fit: it has conv1\.weight \[64, 3, 7, 7\] for \[64, 3, 7, 7, 7\] and differs"):
        FIDVID(str(tmp_path / "2d.pth"))


def test_frames_are_resized_as_pillow_resizes_floats():
    frames = movie(1, 2, 31, 47)[0]
    ours = squash(frames, 112)
    for frame, mine in zip(frames.numpy(), ours, strict=True):
        for channel in range(3):
            image = Image.fromarray(frame[:, :, channel].astype(np.float32))
            assert np.array_equal(mine[channel].numpy(), np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)))
    edge = torch.zeros(1, 40, 40, 3, dtype=torch.uint8)
    edge[:, :, 20:] = 255
    assert squash(edge, 112).max() > 256 and squash(edge, 112).min() < -1


def test_segments_repeat_the_last_frame_and_subtract_the_mean():
    videos = torch.arange(20, dtype=torch.uint8).view(1, 20, 1, 1, 1).expand(2, 20, 8, 8, 3)
    parts = segments(videos)
    assert parts.shape == (2, 2, 3, 16, 112, 112)
    levels = parts[1, :, :, :, 50, 50] + torch.tensor(MEAN).view(1, 3, 1)
    wanted = torch.tensor([[*range(16)], [16, 17, 18, *[19] * 13]]).float()
    torch.testing.assert_close(levels, wanted[:, None].expand(2, 3, 16), atol=1e-3, rtol=0)
    assert segmented(torch.arange(32).view(1, 32), 16).tolist() == [[[*range(16)], [*range(16, 32)]]]
    assert segmented(torch.tensor([[7]]), 4).tolist() == [[[7, 7, 7, 7]]]
