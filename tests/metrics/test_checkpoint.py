"""Reading checkpoints takes tensors out and runs nothing."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from vdqbench.errors import ConfigError
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU())
        self.sizes = [1, 2]

    def forward(self, x):
        return self.blocks(x) * self.sizes[0]


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.register_buffer("fraction", torch.linspace(0, 1, 6).half().view(2, 3).T)
        self.scale = 2.5

    def forward(self, x):
        return self.inner(x) * self.scale + self.fraction.float().sum()


@pytest.mark.parametrize("how", ["script", "trace"])
def test_tensors_of_a_torchscript_archive_have_the_names_of_the_state_dict(tmp_path, how):
    torch.manual_seed(0)
    module = Outer().eval()
    scripted = torch.jit.script(module) if how == "script" else torch.jit.trace(module, torch.ones(1, 2, 4, 4))
    torch.jit.save(scripted, tmp_path / "m.pt")
    found = read_checkpoint(tmp_path / "m.pt", "weights", "a file")
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in module.state_dict().items())


class Touch:
    """Would create a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_files_that_would_run_something_are_refused(tmp_path):
    touched = tmp_path / "touched"
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps({"a": Touch(touched)}, protocol=4))
    torch.save({"a": Touch(touched)}, tmp_path / "torch.pt")
    torch.save({"a": Touch(touched)}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("m/constants.pkl", b"")
        archive.writestr("m/data.pkl", pickle.dumps({"a": Touch(touched)}, protocol=2))
    for name in ("plain.ckpt", "torch.pt", "legacy.pt", "script.pt"):
        with pytest.raises(ConfigError, match=f"weights=.*{name} cannot be read .*; expected the right file"):
            read_checkpoint(tmp_path / name, "weights", "the right file")
    assert not touched.exists()


def test_arrays_and_tensors_are_read(tmp_path):
    (tmp_path / "arrays.ckpt").write_bytes(pickle.dumps({"p": {"k": np.arange(6.0).reshape(2, 3)}}, protocol=4))
    assert read_checkpoint(tmp_path / "arrays.ckpt", "w", "x")["p"]["k"].tolist() == [[0, 1, 2], [3, 4, 5]]
    for legacy in (False, True):
        saved = {"epoch": 3, "state_dict": {"module.a": torch.arange(3)}, "optimizer": {}}
        torch.save(saved, tmp_path / "t.pth", _use_new_zipfile_serialization=not legacy)
        assert read_checkpoint(tmp_path / "t.pth", "w", "x")["module.a"].tolist() == [0, 1, 2]
    torch.save({"params": {"a": torch.arange(2)}, "iter": 7}, tmp_path / "pyiqa.pth")
    assert read_checkpoint(tmp_path / "pyiqa.pth", "w", "x")["a"].tolist() == [0, 1]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    (tmp_path / "junk.pt").write_bytes(b"J\x01")  # a truncated integer: struct.error in torch's reader
    unread = [(name, "cannot be read") for name in ("text.pt", "empty.pt", "junk.pt")]
    for name, message in (*unread, ("list.pt", "holds no dict of tensors")):
        with pytest.raises(ConfigError, match=f"weights=.*{name} {message}.*expected the right file"):
            read_checkpoint(tmp_path / name, "weights", "the right file")
    with pytest.raises(ConfigError, match="weights=gone is not a file; expected the right file"):
        read_checkpoint("gone", "weights", "the right file")


def test_the_hash_is_of_names_and_values_alone():
    torch.manual_seed(0)
    a, b = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    state = {"weight": torch.rand(3), "bias": torch.rand(3), "running_mean": torch.rand(3), "running_var": torch.rand(3)}
    wrapped = {f"module.{name}": value.double() for name, value in reversed(state.items())} | {
        "module.num_batches_tracked": torch.tensor(7)
    }
    assert load_exactly(a, state, "w", "p", "x") == load_exactly(b, wrapped, "w", "p", "x")
    assert torch.equal(a.weight, state["weight"]) and torch.equal(b.running_var, state["running_var"])
    assert load_exactly(b, {**state, "bias": state["bias"] + 1e-3}, "w", "p", "x") != load_exactly(a, state, "w", "p", "x")
