"""Learned rounding: AdaRound on the output of whole blocks, as Q-Diffusion does it, one block after the other.

A unit (a block, a layer outside of all blocks, or the layers that make and read the features of the timestep) is given what it
gets when all units before it are quantized, and learns to give what it gives in the unquantized model. Activations are not
quantized meanwhile. Nothing of the model is changed: layers compute something else while a unit is learned.

Q-Diffusion: arXiv 2302.04304, Sec. 3.2.2, after BRECQ, arXiv 2102.05426; the joint temporal unit: TFMQ-DM, arXiv 2311.16503, Sec. 4.1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import Unsupported
from vdqbench.quant.evidence import Evidence
from vdqbench.quant.layer import LayerPlan, Moment, Prologue
from vdqbench.quant.quantizer import QTensor
from vdqbench.quant.rounding import exponent_at, soft, soft_start, undecided
from vdqbench.quant.variants import in_force, packed, pieces, unpacked, variant_name, variants
from vdqbench.quant.view import LayerView
from vdqbench.replay import Call, to_device

if TYPE_CHECKING:
    from vdqbench.quant.weights.adaround import AdaRound

PULL = 0.01
"""Weight of the regulariser that decides the rounding."""
READER = "time_proj"
"""Role of the layers that read the features of the timestep alone."""
Tensors = dict[str, Tensor]
Remember = Callable[[str, Callable[[], Tensors]], Tensors]


class Variant:
    """One quantized weight while it is learned.

    Args:
        nearest: the weight rounded to nearest; its grid is kept.
    """

    def __init__(self, view: LayerView, nearest: QTensor) -> None:
        self.delta, self.fmt, self.params = nearest.params.delta, nearest.fmt, nearest.params
        self.low, self.high = nearest.params.centred_bounds(nearest.fmt)
        scaled = view.weight / self.delta
        self.floor = scaled.floor()
        self.alpha = soft_start(scaled - self.floor).requires_grad_()
        self._now: tuple[Tensor, Tensor] | None = None

    @property
    def used(self) -> bool:
        """Whether the weight was asked for since `forget`."""
        return self._now is not None

    @property
    def h(self) -> Tensor:
        return self.now()[0]

    def now(self) -> tuple[Tensor, Tensor]:
        """Soft rounding and the weight it makes, the same ones until `forget`."""
        if self._now is None:
            h = soft(self.alpha)
            self._now = h, torch.minimum(torch.maximum(self.floor + h, self.low), self.high) * self.delta
        return self._now

    def forget(self) -> None:
        self._now = None

    def decided(self) -> QTensor:
        """Each weight rounded to the nearer side of its soft rounding."""
        codes = self.floor + (self.alpha.detach() >= 0)
        return QTensor(torch.minimum(torch.maximum(codes, self.low), self.high), self.params, self.fmt)


class Layer:
    """A layer whose weight is being, or has been, learned.

    Args:
        grid: quantizes a view's weight by rounding to nearest.
    """

    def __init__(self, plan: LayerPlan, grid: AdaRound) -> None:
        self.plan, self.grid = plan, grid
        self.in_force = in_force(plan)
        self.learned: dict[str, Variant] = {}
        self.found: dict[str, Tensors] = {}
        self._around: dict[int, tuple[Prologue, Any]] = {}

    @property
    def key(self) -> tuple[int, int | None]:
        """View and bits of the present step."""
        return self.in_force[self.plan.clock.step]

    def names(self) -> list[str]:
        """Of all quantized weights of the layer."""
        return [variant_name(piece, bits) for piece, bits in variants(self.plan)]

    def __call__(self, input: Tensor) -> Tensor:  # diffusers calls some layers by this keyword
        index, bits = self.key
        prologue, bias = self.around(index)
        x = prologue.transform(input)
        weight = (self.plan.views[index].weight if bits is None else self.weight(index, bits)).to(x.dtype)
        conv: Any = self.plan.module
        y = F.linear(x, weight, bias) if weight.ndim == 2 else conv._conv_forward(x, weight, bias)
        for branch in prologue.branches:
            y = y + branch(x)
        return y

    def around(self, index: int) -> tuple[Prologue, Any]:
        """What a view does to the input, and the bias with what its transforms add."""
        if index not in self._around:
            bias: Any = self.plan.module.bias
            constant = self.plan.views[index].constant()
            if constant is not None:
                bias = constant.to(self.plan.views[index].master.dtype) if bias is None else bias + constant.to(bias.dtype)
            quiet = replace(self.plan, activation=None, output=None)
            bias = None if bias is None else bias.detach()
            self._around[index] = quiet.prologue(Moment(None, None, index, 0, "both")), bias
        return self._around[index]

    def weight(self, index: int, bits: int) -> Tensor:
        """The transformed weight as far as it is quantized: found, being learned, or begun now."""
        parts = []
        for piece in pieces(self.plan.views[index]):
            name = variant_name(piece, bits)
            if name in self.found:
                parts.append(unpacked(self.found[name], self.grid.format(piece, bits), piece.device).dequantize())
                continue
            if name not in self.learned:
                self.learned[name] = Variant(piece, self.grid.quantize(piece, bits))
            parts.append(self.learned[name].now()[1])
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Case:
    """One call of a unit: what makes it, and what it gives in the unquantized model."""

    step: int
    branch: str
    run: Callable[[], list[Tensor]]
    target: list[Tensor]


@dataclass(frozen=True)
class Unit:
    """Layers that are learned together. `module` is what they are part of; None for the temporal unit."""

    name: str
    module: str | None
    layers: tuple[Layer, ...]


class Reconstruction:
    """Learns the layers of a model unit by unit.

    Args:
        plans: of the quantized layers.
        part: the options.
    """

    def __init__(self, plans: Sequence[LayerPlan], part: AdaRound, evidence: Evidence) -> None:
        self.part, self.evidence, self.steps = part, evidence, max((plan.steps for plan in plans), default=1)
        self.layers = {plan.site.name: Layer(plan, part) for plan in plans if variants(plan)}
        self.temporal = [layer for name, layer in self.layers.items() if part.temporal and _temporal(evidence.roles[name])]
        if part.temporal and not self.temporal:
            raise Unsupported(
                f"{part.key('temporal')}=true is about layers of the roles time_emb.* and {READER}, "
                "and the recipe quantizes none of this model"
            )
        self.members: dict[str, list[Layer]] = {}
        for name, layer in self.layers.items():
            if layer not in self.temporal:
                self.members.setdefault(self._block(name), []).append(layer)

    @cached_property
    def draws(self) -> list[Call]:
        """Denoiser calls of the drawn moments; one may come more than once."""
        return self.evidence.drawn()

    @cached_property
    def moments(self) -> list[Call]:
        """The different ones among them."""
        return list({id(call): call for call in self.draws}.values())

    @cached_property
    def counts(self) -> list[Counter[str]]:
        """How often each unit's module is called in each of the moments, in the order of the first calls."""
        result = []
        for moment in self.moments:
            counts: Counter[str] = Counter()
            with ExitStack() as undo:
                for name in self.members:
                    hook = partial(_count, counts, name)
                    undo.callback(self.evidence.denoiser.get_submodule(name).register_forward_pre_hook(hook).remove)
                moment.repeat(self.evidence.denoiser, self.evidence.clock, self.steps)
            result.append(counts)
        return result

    def run(self, remember: Remember) -> dict[str, Tensors]:
        """All quantized weights, packed, by `variant_name`.

        Args:
            remember: (name, make): what `make` gives, or gave before.
        """
        found: dict[str, Tensors] = {}
        with torch.inference_mode(False), torch.enable_grad():
            for unit in self.units(remember):
                tensors = remember(f"unit {unit.name}", partial(self._flat, unit))
                for layer in unit.layers:
                    layer.learned.clear()
                    for name in layer.names():
                        layer.found[name] = {kind: tensors[f"{name}|{kind}"] for kind in ("codes", "delta", "zero")}
                    found.update(layer.found)
        return found

    def units(self, remember: Remember) -> list[Unit]:
        """The units in the order in which they run; the temporal one first."""
        names = list(self.members)

        def order() -> Tensors:
            called = list(dict.fromkeys(name for counts in self.counts for name in counts))
            if never := [name for name in names if name not in called]:
                raise Unsupported(f"{never[0]} is not called at the drawn moments of calibration; list its layers in method.sites.keep_fp")
            return {"order": torch.tensor([names.index(name) for name in called], dtype=torch.int64)}

        ordered = [names[index] for index in remember("order", order)["order"].tolist()]
        units = [Unit(name, name, tuple(self.members[name])) for name in ordered]
        return [Unit(f"time_emb.*, {READER}", None, tuple(self.temporal)), *units] if self.temporal else units

    def learn(self, unit: Unit) -> None:
        """Learn the rounding of a unit's layers; those of the units before it have been found.

        Raises:
            Unsupported: the drawn moments leave out a range of steps, or the temporal unit depends on more than the timestep.
        """
        cases, draws = self._temporal_cases() if unit.module is None else self._module_cases(unit.module)
        regimes = len({self._regime(unit, cases[index]) for index in draws})
        missing = {name for layer in unit.layers for name in layer.names()} - self._met(unit, cases)
        if missing:
            raise Unsupported(
                f"layer {min(missing).partition('|')[0]}: method.calibration draws no moment of some of its ranges of steps, so there is "
                "nothing to learn its rounding from; draw more moments"
            )
        iterations, generator = self.part.iters * regimes, torch.Generator().manual_seed(self.part.seed)
        variants = [variant for layer in unit.layers for variant in layer.learned.values()]
        optimizer = torch.optim.Adam([variant.alpha for variant in variants], lr=self.part.lr)
        with self._quantized():
            for iteration in range(iterations):
                chosen = torch.randint(len(draws), (self.part.batch_moments,), generator=generator).tolist()
                loss = torch.stack([self._loss(cases[draws[i]]) for i in chosen]).mean()
                exponent = exponent_at(iteration / iterations)
                if not math.isinf(exponent):
                    loss = loss + PULL * sum(undecided(variant.h, exponent) for variant in variants if variant.used)
                self._step(loss, variants, optimizer)

    def _step(self, loss: Tensor, variants: list[Variant], optimizer: torch.optim.Optimizer) -> None:
        gradients = torch.autograd.grad(loss, [variant.alpha for variant in variants], allow_unused=True)
        for variant, gradient in zip(variants, gradients, strict=True):
            variant.alpha.grad = gradient
            variant.forget()
        optimizer.step()

    def _loss(self, case: Case) -> Tensor:
        """Squared error of the outputs, summed over dimension 1 and averaged over the others, as in the authors' code."""
        with self.evidence.clock.at(case.step, self.steps, case.branch):
            outputs = case.run()
        errors = [y.float() - target.to(y.device).float() for y, target in zip(outputs, case.target, strict=True)]
        return torch.stack([error.square().sum(1).mean() for error in errors]).sum()

    def _flat(self, unit: Unit) -> Tensors:
        self.learn(unit)
        learned = {name: packed(variant.decided()) for layer in unit.layers for name, variant in layer.learned.items()}
        return {f"{name}|{kind}": tensor for name, tensors in learned.items() for kind, tensor in tensors.items()}

    def _regime(self, unit: Unit, case: Case) -> tuple[Any, ...]:
        """Which weights are in force at a case."""
        with self.evidence.clock.at(case.step, self.steps, case.branch):
            return tuple(layer.key for layer in unit.layers)

    def _met(self, unit: Unit, cases: Sequence[Case]) -> set[str]:
        """Begin all weights that the cases use; their names."""
        for case in cases:
            with self.evidence.clock.at(case.step, self.steps, case.branch):
                for layer in unit.layers:
                    index, bits = layer.key
                    if bits is not None:
                        layer.weight(index, bits)
        for layer in unit.layers:
            for variant in layer.learned.values():
                variant.forget()
        return {name for layer in unit.layers for name in layer.learned}

    def _quantized(self) -> Any:
        """While this is entered, layers found or being learned compute with their quantized weights."""
        return self.evidence.replaced({name: layer for name, layer in self.layers.items() if layer.found or layer.learned})

    def _block(self, layer: str) -> str:
        """The innermost block around a layer; itself if there is none."""
        if self.part.units == "layer":
            return layer
        around = [block for block in self.evidence.blocks if layer.startswith(f"{block}.")]
        return max(around, key=len, default=layer)

    def _module_cases(self, name: str) -> tuple[list[Case], list[int]]:
        """Calls of a module with what it gets behind the quantized units, and what it gives in the unquantized model."""
        module, device = self.evidence.denoiser.get_submodule(name), next(self.evidence.denoiser.parameters()).device
        cases: list[Case] = []
        of_moment: dict[int, list[int]] = {}
        for moment, counts in zip(self.moments, self.counts, strict=True):
            targets = [output for _, _, output in self._captured(name, moment, counts[name])]
            with self._quantized():
                inputs = self._captured(name, moment, counts[name])
            of_moment[id(moment)] = list(range(len(cases), len(cases) + len(inputs)))
            for (args, kwargs, _), target in zip(inputs, targets, strict=True):
                cases.append(Case(moment.step, moment.branch, partial(_called, module, args, kwargs, device), _tensors(target)))
        return cases, [index for moment in self.draws for index in of_moment[id(moment)]]

    def _captured(self, name: str, moment: Call, count: int) -> list[tuple[Any, Any, Any]]:
        """Arguments and output of the `count` calls of a module in one denoiser call, which is broken off after the last."""
        kept: list[tuple[Any, Any, Any]] = []
        cpu = torch.device("cpu")

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            kept.append(to_device((args, kwargs, output), cpu, copy=True))
            if len(kept) == count:
                raise _Enough

        handle = self.evidence.denoiser.get_submodule(name).register_forward_hook(keep, with_kwargs=True)
        try:
            if count:
                moment.repeat(self.evidence.denoiser, self.evidence.clock, self.steps)
        except _Enough:
            pass
        finally:
            handle.remove()
        return kept

    def _temporal_cases(self) -> tuple[list[Case], list[int]]:
        """The features of every timestep of the trajectory, through the timestep's MLP to all layers that read them."""
        chain = [name for name, role in self.evidence.roles.items() if role.startswith("time_emb.")]
        readers = [name for name, role in self.evidence.roles.items() if role == READER]
        rows = self._rows([*chain, *readers])
        pairs = [*pairwise(chain), *((chain[-1], reader) for reader in readers)]
        links = {second: _link(first, second, rows[first][1], rows[second][0]) for first, second in pairs}
        modules = {name: self.evidence.denoiser.get_submodule(name) for name in (*chain, *readers)}
        device = next(self.evidence.denoiser.parameters()).device

        def through(step: int) -> list[Tensor]:
            x = modules[chain[0]](rows[chain[0]][0][step : step + 1].to(device))
            for name in chain[1:]:
                x = modules[name](links[name](x))
            return [modules[name](links[name](x)) for name in readers] or [x]

        ends = readers or chain[-1:]
        cases = [
            Case(step, call.branch, partial(through, step), [rows[name][1][step : step + 1] for name in ends])
            for step, call in enumerate(self._timesteps())
        ]
        return cases, list(range(self.steps))

    def _timesteps(self) -> list[Call]:
        """A denoiser call at each step of the trajectory."""
        return [self.evidence.calls.at(0, step)[0] for step in range(self.steps)]

    def _rows(self, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Inputs and outputs [steps, C] of layers that depend on the timestep alone."""
        moments = self._timesteps()
        rows = {}
        for name, calls in self.evidence.module_calls(names, moments).items():
            values = []
            for call in calls[:: max(len(calls) // self.steps, 1)]:
                x = call.args[0] if call.args else call.kwargs["input"]
                pair = x.flatten(0, -2), call.output.flatten(0, -2)
                if not torch.allclose(pair[0], pair[0][:1].expand_as(pair[0]), rtol=1e-3, atol=1e-5):
                    raise Unsupported(
                        f"layer {name} sees more than the timestep, so method.weight.temporal=true cannot learn it from timesteps alone; "
                        "set it to false"
                    )
                values.append([one[0] for one in pair])
            inputs, outputs = zip(*values, strict=True)
            rows[name] = torch.stack(inputs), torch.stack(outputs)
        return rows


def _called(module: nn.Module, args: Any, kwargs: Any, device: torch.device) -> list[Tensor]:
    return _tensors(module(*to_device(args, device), **to_device(kwargs, device)))


def _count(counts: Counter[str], name: str, module: nn.Module, args: Any) -> None:
    counts[name] += 1


class _Enough(Exception):  # noqa: N818 (a signal)
    """Ends a denoiser call early."""


LINKS: Mapping[str, Callable[[Tensor], Tensor]] = {"identity": lambda x: x, "silu": F.silu, "gelu": F.gelu, "relu": F.relu, "mish": F.mish}


def _link(first: str, second: str, output: Tensor, given: Tensor) -> Callable[[Tensor], Tensor]:
    """The activation function between two layers, found by comparing what one gives with what the other gets."""
    for link in LINKS.values():
        if output.shape == given.shape and (link(output.float()) - given.float()).norm() <= 1e-2 * given.float().norm():
            return link
    raise Unsupported(
        f"the input of layer {second} is no plain activation of the output of {first}, so method.weight.temporal=true cannot learn them "
        "jointly; set it to false"
    )


def _temporal(role: str) -> bool:
    return role == READER or role.startswith("time_emb.")


def _tensors(output: Any) -> list[Tensor]:
    """The tensors among a module's outputs."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output
    return [value for value in values if isinstance(value, Tensor)]
