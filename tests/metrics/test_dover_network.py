"""Our DOVER against the original's keys, shapes and outputs with the same weights."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vdqbench.errors import ConfigError
from vdqbench.metrics.dover.network import Dover, load
from vdqbench.metrics.dover.sampling import aesthetic_view, technical_view
from vdqbench.shapes import uniform

NORMS = ("norm.weight", "norm1.weight", "norm2.weight", "downsample_layers.0.1.weight", ".0.weight")


def noise(shape, seed, stream):
    """Uniform numbers in -1..1 that are the same everywhere."""
    return torch.from_numpy(2 * uniform(seed, np.arange(int(np.prod(shape))), stream) - 1).float().reshape(shape)


def filled(name, tensor):
    """Made-up weights of a tensor, by its name; indices stay as they are."""
    if not tensor.is_floating_point():
        return tensor
    u = noise(tensor.shape, 0, int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))
    if name.endswith(NORMS) and tensor.ndim == 1:
        return 1 + 0.3 * u
    if name.endswith("gamma"):
        return 0.5 + 0.5 * u
    if tensor.ndim == 1 or "table" in name:
        return 0.5 * u
    return u * (3 / np.prod(tensor.shape[1:])) ** 0.5


@pytest.fixture(scope="module")
def dover():
    with torch.device("meta"):
        empty = Dover()
    model = empty.to_empty(device="cpu")
    indices = {name: value for name, value in Dover().state_dict().items() if not value.is_floating_point()}
    state = {name: indices.get(name, value) for name, value in model.state_dict().items()}
    model.load_state_dict({name: filled(name, value) for name, value in state.items()})
    return model.eval()


def meta_state():
    with torch.device("meta"):
        return Dover().state_dict()


def hollow(state):
    """A checkpoint of the right keys and shapes whose tensors take no space."""
    return {name: torch.zeros(1, dtype=value.dtype).expand(value.shape) for name, value in state.items()}


def test_keys_and_shapes_are_those_of_the_released_checkpoint():
    """Golden: names, types and shapes of the original module, which loads DOVER.pth strictly."""
    lines = [f"{name} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}" for name, value in sorted(meta_state().items())]
    assert len(lines) == 381
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == "bbc374aca583fb6acaf488926efc2eff5492208e9b1fa3972286ba84ba6283e3"
    with torch.device("meta"):
        assert sum(value.numel() for value in Dover().parameters()) == 56_218_302


@pytest.mark.parametrize(
    ("shape", "technical", "aesthetic"),
    [
        ((1, 3, 20, 96, 64), [0.20300031], [-0.44891012]),
        ((2, 3, 4, 32, 32), [0.18478382, 0.15674458], [-0.38048086, -0.44669133]),
    ],
)
@torch.inference_mode()
def test_outputs_are_those_of_the_original(dover, shape, technical, aesthetic):
    x = 2 * noise(shape, 1, 9)
    assert dover(x, "technical").tolist() == pytest.approx(technical, abs=1e-4)
    assert dover(x, "aesthetic").tolist() == pytest.approx(aesthetic, abs=1e-4)


@pytest.mark.slow
@torch.inference_mode()
def test_a_video_from_frames_to_raw_scores_is_that_of_the_original(dover):
    """Golden: the original's sampler, fed the same draws, and its network, on 16 frames of 240x300 pixels."""
    count = 16 * 240 * 300 * 3
    video = torch.from_numpy((256 * uniform(2, np.arange(count), 3)).astype(np.uint8)).reshape(16, 240, 300, 3)
    technical = torch.cat([dover(view, "technical") for view in technical_view(video, "evalcrafter", 42).split(1)])
    aesthetic = dover(aesthetic_view(video, "evalcrafter", 42, False), "aesthetic")
    assert technical.mean().item() == pytest.approx(0.43064341, abs=1e-4)
    assert aesthetic.item() == pytest.approx(-0.41872948, abs=1e-4)


@torch.inference_mode()
def test_time_matters_to_both_branches(dover):
    x = 2 * noise((1, 3, 8, 32, 32), 1, 4)
    for branch in ("technical", "aesthetic"):
        assert abs(dover(x, branch) - dover(x.flip(2), branch)).item() > 1e-4


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_a_checkpoint_of_exact_keys_is_loaded(tmp_path, kind):
    state = hollow(meta_state())
    state["technical_head.fc_last.bias"] = torch.tensor([2.5])
    path = tmp_path / f"DOVER.{kind}"
    if kind == "pth":
        torch.save(state, path)
    else:
        save_file({name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state.items()}, path)
    model, sha256 = load(path)
    assert not model.training and all(value.dtype == torch.float32 for value in model.parameters()) and len(sha256) == 64
    assert model(torch.zeros(1, 3, 2, 32, 32), "technical").tolist() == [2.5]
    assert model(torch.zeros(1, 3, 2, 32, 32), "aesthetic").tolist() == [0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("technical_head.fc_hid.weight"), "lacks technical_head.fc_hid.weight"),
        (lambda s: s.update({"vqa_head.fc_hid.weight": torch.zeros(1)}), "has an unknown vqa_head.fc_hid.weight"),
        (lambda s: s.update({"aesthetic_backbone.norm.bias": torch.zeros(9)}), r"norm\.bias \[9\] for \[768\]"),
        (lambda s: s.update({"step": 3}), "no dict of tensors"),
    ],
)
def test_checkpoints_of_other_networks_are_refused(tmp_path, change, message):
    state = hollow(meta_state())
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=message) as caught:
        load(tmp_path / "other.pth")
    assert "\n" not in str(caught.value) and "release v0.1.0" in str(caught.value)


class Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", pickle.dumps({"weight": Harmful()})])
def test_files_that_are_no_checkpoints_are_one_sentence(tmp_path, content):
    path = tmp_path / "DOVER.pth"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="is not a file"):
        load(tmp_path / "none.pth")
