"""What parts that need more than statistics see of the unquantized model: inputs of layers and calls of modules.

Both come from repeating denoiser calls of the calibration trajectories at the moments that the recipe draws.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import Unsupported
from vdqbench.quant.parts import DrawPart
from vdqbench.replay import Call, Calls, to_device

if TYPE_CHECKING:
    from vdqbench.quant.view import LayerView

Tensors = dict[str, Tensor]
Remember = Callable[[Any, Callable[[], Tensors]], Tensors]
"""(key, make): what `make` gives, made once for each JSON-able key."""


@dataclass(frozen=True)
class Samples:
    """Tokens of one layer's input: values float32 [n, Cin] of a linear or [n, Cin, *kernel] of a convolution, and their steps [n]."""

    values: Tensor
    step: Tensor


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module and what it gave, on the CPU."""

    step: int
    branch: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class Evidence:
    """The unquantized model at the drawn moments of calibration; what is not asked for is not computed.

    Args:
        roles: of the layers whose inputs are kept, by name.
        calls: of the denoiser in calibration, or what loads them.
        remember: keeps what took long to find; by default as long as this object lives.
        blocks: names of the modules that are reconstructed as a whole, `vdqbench.models.base.Anatomy.blocks`.

    Attributes:
        views: the layers that the recipe quantizes, by name, before any transform: how the neighbours of a layer are quantized.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        roles: Mapping[str, str],
        calls: Callable[[], Calls],
        draw: DrawPart,
        clock: StepClock,
        remember: Remember | None = None,
        blocks: tuple[str, ...] = (),
    ) -> None:
        self.denoiser, self.roles, self.draw, self.clock = denoiser, dict(roles), draw, clock
        self.blocks = blocks
        self.views: dict[str, LayerView] = {}
        self._load = calls
        self._calls: Calls | None = None
        self._samples: dict[bool, dict[str, Samples]] = {}
        self._known: dict[str, Tensors] = {}
        self.remember = remember or self._remember

    @property
    def calls(self) -> Calls:
        if self._calls is None:
            self._calls = self._load()
        return self._calls

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(prompt, step) of each drawn moment."""
        return self.draw.pairs(self.calls.prompts, self.calls.steps)

    def drawn(self) -> list[Call]:
        """The denoiser calls of all drawn moments, in the order of the draw."""
        return [call for prompt, step in self.pairs for call in self.calls.at(prompt, step)]

    def samples(self, layer: str, of_output: bool = False) -> Samples:
        """Tokens of a layer's input (or output, [n, Cout]), the same ones for all layers that read one tensor."""
        if of_output not in self._samples:
            self._samples[of_output] = self._collect(of_output)
        return self._samples[of_output][layer]

    def unit(self, layer: str) -> str:
        """The largest module around a layer whose quantizable layers all play the same part: its attention, its feed-forward.

        That is the module behind a norm whose output error the searches measure; a layer alone in its role is its own.
        """
        kind, best, parents = self.roles[layer].partition(".")[0], layer, layer.split(".")[:-1]
        for depth in range(len(parents), 0, -1):
            prefix = ".".join(parents[:depth])
            if any(role.partition(".")[0] != kind for name, role in self.roles.items() if name.startswith(f"{prefix}.")):
                break
            best = prefix
        return best

    def module_calls(self, names: Sequence[str], moments: Sequence[Call] | None = None) -> dict[str, list[ModuleCall]]:
        """What modules are called with and give, at the drawn moments or the given denoiser calls."""
        kept: dict[str, list[ModuleCall]] = {name: [] for name in names}
        cpu = torch.device("cpu")

        def hook(name: str) -> Callable[..., None]:
            def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                step, branch = self.clock.step, self.clock.branch
                kept[name].append(ModuleCall(step, branch, *to_device((args, kwargs, output), cpu, copy=True)))

            return keep

        with ExitStack() as undo:
            for name in names:
                undo.callback(self.denoiser.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True).remove)
            for call in self.drawn() if moments is None else moments:
                call.repeat(self.denoiser, self.clock, self.calls.steps)
        return kept

    def rerun(self, name: str, calls: Sequence[ModuleCall]) -> Iterator[tuple[ModuleCall, Any]]:
        """Call a module again with what it was called with; with the layers as they are now."""
        module, device = self.denoiser.get_submodule(name), next(self.denoiser.parameters()).device
        for call in calls:
            with self.clock.at(call.step, self.calls.steps, call.branch):
                yield call, module(*to_device(call.args, device), **to_device(call.kwargs, device))

    def output_error(self, name: str, calls: Sequence[ModuleCall], forwards: Mapping[str, Callable[[Tensor], Tensor]]) -> float:
        """Squared error of a module's output, relative to its square, when some of its layers compute something else.

        A module that gives several tensors (the video's and the text's tokens) counts with all of them.


        Args:
            calls: of the unquantized module.
            forwards: what the layers of these names compute instead.
        """
        error = size = 0.0
        with torch.no_grad(), self.replaced(forwards):
            for call, output in self.rerun(name, calls):
                for found, kept in zip(tensors(output), tensors(call.output), strict=True):
                    target = kept.to(found.device).float()
                    error += float((found.float() - target).square().sum())
                    size += float(target.square().sum())
        return error / max(size, torch.finfo(torch.float32).tiny)

    @contextmanager
    def replaced(self, forwards: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Let the layers of these names compute something else for a while."""
        modules: dict[Any, Any] = {self.denoiser.get_submodule(name): forward for name, forward in forwards.items()}
        before = {module: vars(module).get("forward") for module in modules}
        try:
            for module, forward in modules.items():
                module.forward = forward
            yield
        finally:
            for module, forward in before.items():
                if forward is None:
                    vars(module).pop("forward", None)
                else:
                    module.forward = forward

    def _remember(self, key: Any, make: Callable[[], Tensors]) -> Tensors:
        name = json.dumps(key, sort_keys=True)
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def _collect(self, of_output: bool) -> dict[str, Samples]:
        """One repetition of the distinct drawn calls, with all layers looked at."""
        counts = Counter(self.pairs)
        values: dict[str, list[Tensor]] = {name: [] for name in self.roles}
        steps: dict[str, list[Tensor]] = {name: [] for name in self.roles}
        moment, times = 0, 1
        seen: dict[Any, tuple[Tensor, Tensor]] = {}

        def keep(name: str, module: nn.Module, x: Tensor) -> None:
            window = tuple(str(getattr(module, option, None)) for option in ("kernel_size", "stride", "padding"))
            key = id(x), -1 if x.is_inference() else x._version, window
            if key not in seen:
                generator = torch.Generator().manual_seed(self.draw.seed * 1_000_003 + moment)
                seen[key] = x, _tokens(module, x, self.draw.tokens, generator, of_output)  # x is kept alive, so its id is its own
            rows = seen[key][1]
            values[name] += [rows] * times
            steps[name] += [torch.full((len(rows),), self.clock.step)] * times

        def hook(name: str) -> Callable[..., None]:
            if of_output:
                return lambda module, args, output: keep(name, module, output)
            return lambda module, args, kwargs: keep(name, module, args[0] if args else kwargs["input"])

        with ExitStack() as undo:
            for name in self.roles:
                module = self.denoiser.get_submodule(name)
                if of_output:
                    undo.callback(module.register_forward_hook(hook(name)).remove)
                else:
                    undo.callback(module.register_forward_pre_hook(hook(name), with_kwargs=True).remove)
            for moment, ((prompt, step), times) in enumerate(counts.items()):  # noqa: B007 (read by keep)
                for call in self.calls.at(prompt, step):
                    call.repeat(self.denoiser, self.clock, self.calls.steps)
                    seen.clear()
        if empty := [name for name in self.roles if not values[name]]:
            raise Unsupported(f"layer {empty[0]} was not called at the drawn moments of calibration; list it in method.sites.keep_fp")
        return {name: Samples(torch.cat(values[name]), torch.cat(steps[name])) for name in self.roles}


def first_tensor(output: Any) -> Tensor:
    """A module's output, or the first tensor of several."""
    return output if isinstance(output, Tensor) else output[0]


def tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors of a module's output."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() else []
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def _tokens(module: nn.Module, x: Tensor, count: int, generator: torch.Generator, of_output: bool) -> Tensor:
    """Some tokens of an input, [n, C] or [n, C, *kernel], float32 on the CPU."""
    if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        rows = x.detach().flatten(0, -2)
    elif of_output:
        rows = x.detach().movedim(1, -1).flatten(0, -2)
    else:
        return _windows(module, x.detach(), count, generator)
    chosen = torch.randperm(len(rows), generator=generator)[:count]
    return rows[chosen.to(rows.device)].float().cpu()


def _windows(module: Any, x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """What a convolution multiplies with its kernel at some output positions: [n, Cin, *kernel]."""
    if any(size != 1 for size in module.dilation) or isinstance(module.padding, str):
        raise Unsupported(
            f"a convolution with dilation {module.dilation} and padding {module.padding} cannot be sampled; list it in method.sites.keep_fp"
        )
    kernel, dims = module.kernel_size, len(module.kernel_size)
    pads = [pad for size in reversed(module.padding) for pad in (size, size)]
    x = torch.nn.functional.pad(x, pads) if any(pads) else x
    for dim in range(dims):
        x = x.unfold(2 + dim, kernel[dim], module.stride[dim])  # [B, C, *positions, *kernel]
    x = x.movedim(1, 1 + dims)  # [B, *positions, C, *kernel]
    sizes = x.shape[: 1 + dims]
    chosen = torch.randperm(sizes.numel(), generator=generator)[:count].to(x.device)
    return x[torch.unravel_index(chosen, sizes)].float().cpu()
