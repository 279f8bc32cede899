"""Calibration: run the real sampler once and record, for each layer and step, the statistics all recipes derive from."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError
from vdqbench.quant.layer import check_unspent
from vdqbench.replay import CallRecorder

VERSION = 1
Statistics = dict[str, Tensor]


def channel_statistics(x: Tensor, split: bool) -> Statistics:
    """Statistics of an input [..., N, C] (or [B, C], a batch of single tokens) by channel, float32.

    Returns:
        mean_max: [C], the mean over the leading dimensions of the largest |x| over N: ViDiT-Q's and ASQ's statistic.
        min, max: [branches, C], over everything; branches is 2 if `split` and the leading dimension has two halves, else 1.
    """
    x = (x.unsqueeze(-2) if x.ndim == 2 else x).reshape(-1, x.shape[-2] if x.ndim > 2 else 1, x.shape[-1]).float()
    lo, hi = x.amin(-2), x.amax(-2)
    halves = 2 if split and len(x) % 2 == 0 else 1
    return {
        "mean_max": torch.maximum(hi, -lo).mean(0),
        "min": lo.unflatten(0, (halves, -1)).amin(1),
        "max": hi.unflatten(0, (halves, -1)).amax(1),
    }


REDUCE: dict[str, Callable[[Tensor], Tensor]] = {
    "mean_max": lambda calls: calls.mean(0),
    "min": lambda calls: calls.amin(0),
    "max": lambda calls: calls.amax(0),
}
"""How a statistic of several calls of a layer in one step becomes one."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of the inputs of a model's layers.

    Attributes:
        tensors: by first layer that reads an input, and name: `mean_max` [P, K, Cin], `min` and `max` [P, K, branches, Cin]
            float32, of P prompts and K steps in visiting order. `branches` is 2 (conditional, unconditional) where the
            guidance branches could be told apart, else 1.
        source: for each layer, the first layer that reads the same tensor.
        sampler: what the trajectories were sampled with.
    """

    tensors: dict[str, Statistics]
    source: dict[str, str]
    steps: int
    prompts: int
    sampler: dict[str, Any] = field(default_factory=dict)

    def statistics(self, layer: str) -> Statistics:
        """Statistics of a layer's input.

        Raises:
            ConfigError: the layer was not observed.
        """
        if layer not in self.source:
            raise ConfigError(f"the calibration has no layer {layer}: it was made with another model; calibrate again")
        return self.tensors[self.source[layer]]

    def check(self, sampler: Mapping[str, Any]) -> None:
        """Raises ConfigError if a sampler differs from the calibrated one."""
        given = json.loads(json.dumps(dict(sampler)))
        for key in sorted(given.keys() | self.sampler.keys()):
            if given.get(key) != self.sampler.get(key):
                raise ConfigError(
                    f"sampler.{key}={given.get(key)} differs from the {self.sampler.get(key)} of the calibration; "
                    "calibrate again with this sampler"
                )

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, atomically."""
        path = Path(path)
        tensors = {f"{layer}|{name}": value.contiguous() for layer, values in self.tensors.items() for name, value in values.items()}
        about = {"version": VERSION, "steps": self.steps, "prompts": self.prompts, "sampler": self.sampler, "source": self.source}
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        save_file(tensors, temporary, metadata={"calibration": json.dumps(about, sort_keys=True)})
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path | str) -> Calibration:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is not a calibration of this version.
        """
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("calibration", "{}"))
            if about.get("version") != VERSION:
                raise ConfigError(f"{path} is not a calibration of version {VERSION}; delete it and calibrate again")
            tensors: dict[str, Statistics] = {}
            for key in file.keys():  # noqa: SIM118 (not a dict)
                layer, _, name = key.rpartition("|")
                tensors.setdefault(layer, {})[name] = file.get_tensor(key)
        return cls(tensors, about["source"], about["steps"], about["prompts"], about["sampler"])


def calibrate(
    denoiser: nn.Module,
    layers: Mapping[str, str],
    trajectories: Iterable[Callable[[], Any]],
    clock: StepClock,
    *,
    sampler: Mapping[str, Any] | None = None,
    statistics: Callable[[Tensor, bool], Statistics] = channel_statistics,
    reduce: Mapping[str, Callable[[Tensor], Tensor]] = REDUCE,
    calls: CallRecorder | None = None,
) -> Calibration:
    """Observe a model while it samples.

    Args:
        layers: the layers to observe, by module name.
        trajectories: each runs one prompt's whole sampling, with the clock attached.
        sampler: what identifies the sampler; kept for `Calibration.check`.
        statistics: of one input (channels last) and whether its halves are guidance branches; `reduce` merges those of
            several calls in a step, stacked along dimension 0.
        calls: keeps the calls of the denoiser as well, if given.

    Raises:
        RuntimeError: a layer was not called at some step, the trajectories differ in their number of steps, or the model's own
            weights are gone.
    """
    check_unspent(denoiser)
    recorder = Recorder(denoiser, layers, clock, statistics, reduce)
    with ExitStack() as undo:
        for name in layers:
            hook = denoiser.get_submodule(name).register_forward_pre_hook(recorder.hook(name), with_kwargs=True)
            undo.callback(hook.remove)
        undo.enter_context(calls.attached(denoiser) if calls else nullcontext())
        undo.enter_context(torch.no_grad())
        for trajectory in trajectories:
            recorder.begin()
            if calls:
                calls.begin()
            trajectory()
            recorder.end()
    return recorder.calibration(json.loads(json.dumps(dict(sampler or {}))))


class Recorder:
    """Collects statistics of one trajectory after the other; an input read by several layers is looked at once."""

    def __init__(
        self,
        denoiser: nn.Module,
        layers: Mapping[str, str],
        clock: StepClock,
        statistics: Callable[[Tensor, bool], Statistics],
        reduce: Mapping[str, Callable[[Tensor], Tensor]],
    ) -> None:
        self.layers, self.clock, self.measure, self.reduce = list(layers), clock, statistics, reduce
        self.turns: tuple[str, ...] = getattr(denoiser, "turns", ())
        self.channel_dim = {name: 1 if denoiser.get_parameter(f"{name}.weight").ndim > 2 else -1 for name in layers}
        self.done: list[dict[str, Statistics]] = []
        self.source: dict[str, str] = {}
        self.steps = 0

    def begin(self) -> None:
        self.seen: dict[tuple[int, int], tuple[Any, int, Statistics]] = {}
        self.calls: dict[str, list[list[tuple[str, Statistics]]]] = {name: [] for name in self.layers}

    def hook(self, name: str) -> Callable[..., None]:
        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            steps = self.calls[name]
            steps.extend([] for _ in range(self.clock.step + 1 - len(steps)))
            steps[self.clock.step].append((self.clock.branch, self.look(x, self.channel_dim[name])))

        return observe

    def look(self, x: Tensor, channel_dim: int) -> Statistics:
        """Statistics of a tensor; the very same ones for the same tensor, as long as nothing wrote to it."""
        version = -1 if x.is_inference() else x._version
        reference, at, known = self.seen.get((id(x), channel_dim), (lambda: None, -1, {}))
        if version >= 0 and reference() is x and at == version:
            return known
        result = self.measure(x.movedim(channel_dim, -1), self.clock.batched)
        if self.clock.branch == "both_reversed":  # the conditional branch counts as the first
            result = {name: value.flip(0) if value.ndim > 1 else value for name, value in result.items()}
        self.seen[id(x), channel_dim] = (weakref.ref(x), version, result)
        return result

    def end(self) -> None:
        """Reduce a trajectory to [K, ...] for each input and statistic, on the CPU."""
        steps = self.clock.steps
        if self.done and steps != self.steps:
            raise RuntimeError(f"calibration trajectories take {self.steps} and {steps} steps; they must be sampled alike")
        self.steps = steps
        for name, calls in self.calls.items():
            rests = self._rests(name)
            missing = [k for k in range(steps) if k not in rests and (k >= len(calls) or not calls[k])]
            if missing or len(calls) > steps or not steps:
                raise RuntimeError(
                    f"layer {name} was not called at each of the {steps} steps that the clock counted (first missing: {missing[:1]})"
                )
        inputs = {name: tuple(id(values) for step in calls for _, values in step) for name, calls in self.calls.items()}
        first: dict[tuple[int, ...], str] = {}
        for name in self.layers:
            first.setdefault(inputs[name], name)
        source = {name: first[inputs[name]] for name in self.layers}
        if self.done and source != self.source:
            raise RuntimeError("layers that read one tensor in the first trajectory read different ones in a later one")
        self.source = source
        self.done.append({name: self._finite(name, self._stacked(self.calls[name])) for name in first.values()})

    def _rests(self, layer: str) -> set[int]:
        """Steps at which another network of a denoiser of several ran, and the one that the layer is in did not."""
        if not self.turns:
            return set()
        ran: dict[str, set[int]] = {network: set() for network in self.turns}
        for name, calls in self.calls.items():
            if (network := name.partition(".")[0]) in ran:
                ran[network] |= {k for k, step in enumerate(calls) if step}
        own = ran.get(layer.partition(".")[0])
        if own is None:
            return set()
        if not own:
            raise RuntimeError(
                f"{layer.partition('.')[0]} runs at none of the {self.clock.steps} steps, so it cannot be calibrated; take more"
            )
        return set().union(*ran.values()) - own

    def _stacked(self, calls: list[list[tuple[str, Statistics]]]) -> Statistics:
        """Of each step; of one at which the layer's network rests, those of the nearest at which it runs."""
        called = [k for k, step in enumerate(calls) if step]
        known = {k: self._step(calls[k]) for k in called}
        steps = [known[min(called, key=lambda j: abs(j - k))] for k in range(self.steps)]
        return {name: torch.stack([step[name] for step in steps]).cpu() for name in self.reduce}

    @staticmethod
    def _finite(layer: str, statistics: Statistics) -> Statistics:
        if not all(value.isfinite().all() for value in statistics.values()):
            raise RuntimeError(f"the input of layer {layer} is not finite in full precision; run the model in a wider precision")
        return statistics

    def _step(self, calls: list[tuple[str, Statistics]]) -> Statistics:
        """The calls of one step as one, with the branches of two passes side by side."""
        merged = [
            {name: reduce(torch.stack([values[name] for at, values in calls if at == branch])) for name, reduce in self.reduce.items()}
            for branch in dict.fromkeys(branch for branch, _ in calls)
        ]
        if len(merged) == 1:
            return merged[0]
        return {
            name: torch.cat([values[name] for values in merged])
            if merged[0][name].ndim > 1
            else reduce(torch.stack([v[name] for v in merged]))
            for name, reduce in self.reduce.items()
        }

    def calibration(self, sampler: dict[str, Any]) -> Calibration:
        if not self.done:
            raise RuntimeError("calibration needs at least one trajectory")
        tensors = {layer: {name: torch.stack([t[layer][name] for t in self.done]) for name in self.reduce} for layer in self.done[0]}
        return Calibration(tensors, self.source, self.steps, len(self.done), sampler)
