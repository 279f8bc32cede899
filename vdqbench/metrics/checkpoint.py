"""Tensors out of checkpoint files without running anything that is in them.

Read are safetensors, PyTorch checkpoints (`weights_only=True`), TorchScript archives, of which only the tensors are taken and not the
code, and pickles of nested NumPy arrays. A file that holds any other object is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.errors import ConfigError

STORAGES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16}
STORAGES |= {"LongStorage": torch.int64, "IntStorage": torch.int32, "BoolStorage": torch.bool, "ByteStorage": torch.uint8}
UNREADABLE = (pickle.UnpicklingError, struct.error, OSError, RuntimeError, LookupError, EOFError, ValueError, TypeError, AttributeError)
"""What readers raise on files that are no checkpoints."""
LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag"}


def read_checkpoint(path: str | Path, key: str, where: str) -> dict[str, Any]:
    """What a checkpoint file holds, under `state_dict` or `params` if there are any: tensors by name, or for a pickle of arrays the nested
    dict of them.

    Args:
        path: the file.
        key: of the option that named it, for the error.
        where: which file is expected and where it is to be had, for the error.

    Raises:
        ConfigError: there is no such file, or it is none of these, or it holds other things than tensors.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ConfigError(f"{key}={path} is not a file; expected {where}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    return _torchscript(archive)
        elif (arrays := _numpy_pickle(path)) is not None:
            return arrays
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise ConfigError(f"{key}={path} cannot be read ({' '.join(str(error).split())[:160]}); expected {where}") from error
    state = saved.get("state_dict", saved.get("params", saved)) if isinstance(saved, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"{key}={path} holds no dict of tensors; expected {where}")
    return dict(state)


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], key: str, path: str | Path, where: str) -> str:
    """Load a state whose names and shapes must be the network's own, but for a leading `module.`; returns its hash.

    Counters of batch normalisation (`num_batches_tracked`) may be there or not. The hash, SHA-256 over names and values in order of
    name, is the same for the same weights from another file.

    Raises:
        ConfigError: names or shapes that differ.
    """
    given = {name.removeprefix("module."): value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    wanted = {name: value.shape for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    wrong = [f"lacks {name}" for name in wanted if name not in given] + [f"has an unknown {name}" for name in given if name not in wanted]
    wrong += [
        f"has {name} {list(given[n].shape)} for {list(shape)}"
        for name, shape in wanted.items()
        if (n := name) in given and given[n].shape != shape
    ]
    if wrong:
        wrong.sort()
        more = f" and differs in {len(wrong) - 1} more names" if len(wrong) > 1 else ""
        raise ConfigError(f"{key}={path} does not fit: it {wrong[0]}{more}; expected {where}")
    network.load_state_dict(given, strict=False)
    digest = hashlib.sha256()
    for name, value in sorted(given.items()):
        digest.update(name.encode() + b"\0" + value.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Allowed(pickle.Unpickler):
    """An unpickler that knows the names given to it and no other."""

    def __init__(self, file: Any, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which is not a tensor")
        return self._names[module, name]


def _numpy_pickle(path: Path) -> dict[str, Any] | None:
    """The nested dict of arrays of a pickle; None if the file is no pickle, or one that PyTorch has written."""
    from numpy._core import multiarray

    with path.open("rb") as file:
        if file.read(2) not in (b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            return None
        file.seek(0)
        rebuild = multiarray._reconstruct  # type: ignore[attr-defined]
        names = {(f"numpy.{core}.multiarray", "_reconstruct"): rebuild for core in ("core", "_core")}
        found = _Allowed(file, {**names, ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}).load()
    if not isinstance(found, dict):
        raise pickle.UnpicklingError("it holds no dict of arrays")
    return found


class _Object:
    """A TorchScript object: its attributes, and nothing of its code."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Script(_Allowed):
    """Reads the object tree of a TorchScript archive; tensors come from the archive's own records."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        names: dict[tuple[str, str], Any] = {("torch", name): name for name in STORAGES}
        names |= {("torch.jit._pickle", name): _first for name in LISTS}
        names |= {("torch._utils", "_rebuild_tensor_v2"): _rebuild, ("collections", "OrderedDict"): OrderedDict}
        super().__init__(archive.open(f"{root}/data.pkl"), names)
        self._archive, self._root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        return _Object if module.split(".")[0] == "__torch__" else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        _, storage, record, _, _ = pid
        data = bytearray(self._archive.read(f"{self._root}/data/{record}"))
        return torch.frombuffer(data, dtype=STORAGES[storage]) if data else torch.empty(0, dtype=STORAGES[storage])


def _first(value: Any, *rest: Any) -> Any:
    return value


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)


def _torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    root = next(name for name in archive.namelist() if name.endswith("/constants.pkl")).split("/")[0]
    return dict(_tensors(_Script(archive, root).load(), ""))


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Tensors among the attributes, with the names that a state dict gives them."""
    for name, part in value.attributes.items():
        if isinstance(part, Tensor):
            yield prefix + name, part
        elif isinstance(part, _Object):
            yield from _tensors(part, f"{prefix}{name}.")
