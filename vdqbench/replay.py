"""The calls of a denoiser in calibration, kept to be made again: whatever a layer or a block sees can be had from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError

VERSION = 1


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: of which calibration prompt, at which step, in which guidance branch, and with which arguments."""

    prompt: int
    step: int
    branch: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeat(self, denoiser: nn.Module, clock: StepClock, steps: int) -> Any:
        """Make the call again on the denoiser's device."""
        device = next(denoiser.parameters()).device
        with torch.no_grad(), clock.at(self.step, steps, self.branch):
            return denoiser(*to_device(self.args, device), **to_device(self.kwargs, device))


@dataclass(frozen=True)
class Calls:
    """All calls of some trajectories.

    Attributes:
        steps: of each trajectory.
        prompts: number of trajectories.
    """

    calls: Sequence[Call]
    steps: int
    prompts: int

    def at(self, prompt: int, step: int) -> list[Call]:
        """The calls of one step: one, or one for each guidance branch."""
        return [call for call in self.calls if call.prompt == prompt and call.step == step]

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, atomically; tensors of equal content are written once."""
        tensors: dict[str, Tensor] = {}
        listed = [[c.prompt, c.step, c.branch, _described(c.args, tensors), _described(c.kwargs, tensors)] for c in self.calls]
        about = {"version": VERSION, "steps": self.steps, "prompts": self.prompts, "calls": listed}
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        save_file(tensors, temporary, metadata={"calls": json.dumps(about)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path | str) -> Calls:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is not one of calls of this version.
        """
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("calls", "{}"))
            if about.get("version") != VERSION:
                raise ConfigError(f"{path} does not hold denoiser calls of version {VERSION}; delete it and calibrate again")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        calls = [Call(p, k, branch, _restored(args, tensors), _restored(kwargs, tensors)) for p, k, branch, args, kwargs in about["calls"]]
        return cls(calls, about["steps"], about["prompts"])


class CallRecorder:
    """Keeps the calls of a denoiser while it samples."""

    def __init__(self, clock: StepClock) -> None:
        self.clock, self.calls, self.prompt = clock, list[Call](), -1

    @contextmanager
    def attached(self, denoiser: nn.Module) -> Iterator[CallRecorder]:
        """Record what the denoiser is called with; undone on exit."""

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            copies = to_device((args, kwargs), torch.device("cpu"), copy=True)
            self.calls.append(Call(self.prompt, self.clock.step, self.clock.branch, *copies))

        handle = denoiser.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()

    def begin(self) -> None:
        """The next prompt's trajectory follows."""
        self.prompt += 1

    def recorded(self) -> Calls:
        """All calls so far."""
        return Calls(self.calls, self.clock.steps, self.prompt + 1)


def to_device(value: Any, device: torch.device, copy: bool = False) -> Any:
    """The same nested tuples, lists and mappings with all tensors on a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device, copy=copy)
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device, copy) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device, copy) for key, item in value.items()}
    return value


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        value = value.clone(memory_format=torch.contiguous_format)  # a single element that was expanded has stride 0
        content = value.view(torch.uint8) if value.ndim else value.reshape(1).view(torch.uint8)
        key = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode() + content.numpy().tobytes()).hexdigest()[:32]
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, tuple):
        return {"tuple": [_described(item, tensors) for item in value]}
    if isinstance(value, list):
        return {"list": [_described(item, tensors) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _described(item, tensors) for key, item in value.items()}}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(
        f"the denoiser was called with a {type(value).__name__}, which cannot be kept; only tensors, numbers, texts and nests of them can"
    )


def _restored(described: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = described.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "tuple":
        return tuple(_restored(item, tensors) for item in value)
    if kind == "list":
        return [_restored(item, tensors) for item in value]
    if kind == "dict":
        return {key: _restored(item, tensors) for key, item in value.items()}
    return value
