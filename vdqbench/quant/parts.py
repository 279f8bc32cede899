"""The slots of a recipe and how their parts are found: part `x` of a slot is the one class in `<slot>/x.py`.

A part is a frozen dataclass whose fields are its options. To add one, add its file: it subclasses its slot's base below,
and imports torch inside its functions only, so that a recipe can be checked without loading torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar

from vdqbench.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdqbench.clock import StepClock
    from vdqbench.models.base import Anatomy
    from vdqbench.quant.evidence import Evidence
    from vdqbench.quant.layer import LayerPlan
    from vdqbench.quant.quantizer import Coded, QTensor
    from vdqbench.quant.view import LayerView

Bits = tuple[int | None, int | None]
"""Bits of weight and activation; None is floating point."""


@dataclass(frozen=True)
class Site:
    """One quantizable layer.

    Attributes:
        name: of the module.
        role: what it does (`self_attn.q`).
        shape: of its weight.
        weight_bits, activation_bits: None stays in floating point.
        timed: bits in each of equal parts of the trajectory, where they are not the same all along.
        formats: number formats of weight and activation, as `vdqbench.quant.format.make` knows them.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    weight_bits: int | None
    activation_bits: int | None
    timed: tuple[Bits, ...] = ()
    formats: tuple[str, str] = ("int", "int")

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    def plan(self, steps: int) -> list[Bits]:
        """Bits at each of the steps of a trajectory, before a schedule changes them."""
        parts = self.timed or ((self.weight_bits, self.activation_bits),)
        return [parts[step * len(parts) // steps] for step in range(steps)]

    def matches(self, pattern: str) -> bool:
        """Whether an fnmatch pattern fits the layer's name or its role."""
        return fnmatchcase(self.name, pattern) or fnmatchcase(self.role, pattern)


@dataclass(frozen=True)
class Part:
    """An option of a slot.

    Attributes:
        version: raised when the part's output changes for the same options; it is part of every key.
        needs: what of calibration the part derives its parameters from: names of statistics of a layer's input, or `calls`
            for inputs and module calls themselves.
        sets_bits: whether the part may quantize layers that the cell's bit-widths leave in floating point.
    """

    where: ClassVar[str]
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ()
    sets_bits: ClassVar[bool] = False

    @classmethod
    def part_name(cls) -> str:
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def key(cls, option: str) -> str:
        """The configuration key of an option."""
        return f"{cls.where.format(name=cls.part_name())}.{option}"

    def require(self, holds: bool, option: str, expected: str) -> None:
        """Raises ConfigError unless the option's value is what it should be."""
        if not holds:
            raise ConfigError(f"{self.key(option)}={getattr(self, option)} must be {expected}")

    def choice(self, option: str, names: Sequence[str] | Mapping[str, Any]) -> None:
        """Raises ConfigError unless the option is one of the names."""
        value = getattr(self, option)
        if value not in names:
            raise ConfigError(f"{self.key(option)}={value} is not one of its values{nearest(str(value), names)}")

    def check(self, steps: int) -> None:
        """Raises ConfigError if the options do not fit a trajectory of so many steps."""
        check_ranges(self.key("ranges"), getattr(self, "ranges", 1), steps)

    @property
    def batch_dependent(self) -> bool:
        """Whether a video's output depends on what else is in its batch; one is then generated at a time."""
        return False

    def semantic(self) -> dict[str, Any]:
        """What of the part changes the output."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"part": self.part_name(), "version": self.version, **options}


class SitePart(Part):
    """Which layers are quantized, or with how many bits. Its only field is `value`, that of its key."""

    where = "method.sites"

    @classmethod
    def key(cls, option: str) -> str:
        return f"{cls.where}.{cls.part_name()}"

    def apply(self, sites: list[Site]) -> list[Site]:
        """The same layers with other bits."""
        raise NotImplementedError


class Transform:
    """A transform fitted to one layer and one range of steps: T of y = W x + b = (W T^-1)(T x) + branch(T x) + constant + b.

    A transform overrides `multiplier` if T is diagonal, else `input`; `weight`, `statistics` and `constant` follow it.
    """

    def multiplier(self) -> Tensor | None:
        """The diagonal of T, one factor for each input channel, if T is diagonal: it then costs nothing."""
        return None

    def input(self, x: Tensor) -> Tensor:
        """T x, computed at every call; channels are the last dimension of a linear's input and dimension 1 of a convolution's."""
        raise NotImplementedError

    def weight(self, weight: Tensor) -> Tensor:
        """W T^-1 (less what `branch` computes)."""
        raise NotImplementedError

    def statistics(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The statistics of T x, as far as they follow from those of x; the others are left out."""
        return {}

    def branch(self) -> Callable[[Tensor], Tensor] | None:
        """What is added to the output, from T x in floating point."""
        return None

    def constant(self, weight: Tensor) -> Tensor | None:
        """[Cout], added to the output for a T that shifts; from the weight as it was before this transform."""
        return None

    def sections(self) -> tuple[int, ...]:
        """Sizes of the groups of input channels that are quantized apart from each other; empty for one group."""
        return ()


class TransformPart(Part):
    """In which basis input and weight are quantized.

    Attributes:
        ranges: number of equal parts of the trajectory with their own transform.
        shared: whether layers of one module that read the same input get the same transform.
    """

    where = "method.transform.{name}"
    ranges: int = 1

    @property
    def shared(self) -> bool:
        return False

    def fit(self, view: LayerView) -> Transform:
        """The transform of one layer; `view` is restricted to the steps of one range."""
        raise NotImplementedError

    def concerns(self, site: Site) -> bool:
        """Whether it does anything to this layer, or to those that read the same input as this one."""
        return True

    def values(self, shape: tuple[int, ...]) -> int:
        """How many numbers are stored for a layer with a weight of this shape, if it is concerned."""
        raise NotImplementedError

    def branch_macs(self, shape: tuple[int, ...]) -> int:
        """Multiply-accumulates of its branch for one token, in 16 bits."""
        return 0

    @property
    def value_bytes(self) -> int:
        """Bytes of each of them."""
        return 4


class WeightPart(Part):
    """How the grid of a weight is found."""

    where = "method.weight"

    def prepare(self, plans: Sequence[LayerPlan], evidence: Evidence | None) -> Callable[[LayerView, int], QTensor]:
        """What quantizes weights, once all layers are planned; a part that learns over several layers does so here."""
        return self.quantize

    def quantize(self, view: LayerView, bits: int) -> QTensor:
        """`view.weight` (float32, transformed) on its grid."""
        raise NotImplementedError

    def values(self, shape: tuple[int, ...]) -> int:
        """How many parameters are stored beside the codes of a weight [Cout, Cin, ...]."""
        raise NotImplementedError

    def label_suffix(self) -> str:
        """What must stand beside the method's name wherever its numbers stand, such as a cut budget; empty for nothing."""
        return ""


class Activation:
    """The quantizer of one layer's input.

    Attributes:
        ranges: number of equal parts of the trajectory with their own parameters.
        branches: 2 if the guidance branches have their own parameters, else 1.
        own_format: whether it is a number format of its own, which the format of the bit-widths does not replace.
    """

    ranges: int = 1
    branches: int = 1
    own_format: ClassVar[bool] = False

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        """What turns an input into codes, in one range of steps.

        Args:
            index: of the range.
            branch: guidance branches in the input: `both` (halves of dimension 0, if `branches` is 2, the conditional one first),
                `both_reversed` (the unconditional one first), `cond`, `uncond`.
            multiplier: factors by which the channels of the input are multiplied first; broadcasts to it.
        """
        raise NotImplementedError


class ActivationPart(Part):
    """How the grid of an input is found.

    Attributes:
        floating: whether what the layer sees stays in floating point.
    """

    where = "method.activation"
    floating: ClassVar[bool] = False

    def fit(self, views: Sequence[LayerView]) -> Activation:
        """The quantizer of one layer from its views (one for each range of its transforms)."""
        raise NotImplementedError

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        """How many parameters are stored for a layer with a weight of this shape, over a trajectory of so many steps."""
        raise NotImplementedError


class Schedule:
    """A schedule at work on one model."""

    def bits(self, site: Site) -> Bits:
        """Bits of a layer in the denoiser call in progress."""
        raise NotImplementedError

    def chosen(self) -> list[int] | None:
        """Activation bits of the switched layers at each step of the last trajectory; None if they are known beforehand."""
        return None

    def close(self) -> None:
        """Undo what was done to the model."""


class SchedulePart(Part):
    """How many bits at which step."""

    where = "method.schedule"

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        raise NotImplementedError

    def plan(self, site: Site, steps: int, chosen: Sequence[int] | None = None) -> list[Bits]:
        """Bits of a layer at each step, for the account of sizes and average bits.

        Args:
            chosen: what a schedule that decides on the way has chosen in one trajectory; nominal bits without it.
        """
        raise NotImplementedError


class Reuse:
    """A reuse of steps at work on one model."""

    def computed(self) -> list[bool]:
        """Whether each step of the last trajectory was computed (and not taken over from one before)."""
        raise NotImplementedError

    def close(self) -> None:
        """Undo what was done to the model."""


class ReusePart(Part):
    """Which steps are not computed, but taken over from one before."""

    where = "method.reuse.{name}"

    def start(self, denoiser: nn.Module, clock: StepClock, anatomy: Anatomy) -> Reuse:
        raise NotImplementedError


@dataclass(frozen=True)
class DrawPart(Part):
    """At which moments of the calibration trajectories activations are looked at.

    Args:
        tokens: how many tokens (positions, for a convolution) of a layer's input are kept at each moment.
        seed: of the choice of tokens, and of moments where they are drawn.
    """

    tokens: int = 16
    seed: int = 0

    where = "method.calibration"

    def pairs(self, prompts: int, steps: int) -> list[tuple[int, int]]:
        """(prompt, step) of each moment, in the order in which it is looked at; one may come more than once.

        Args:
            prompts, steps: how many were recorded; step 0 is the noisiest.
        """
        raise NotImplementedError


class KernelPart(Part):
    """How quantized layers are executed. One instance serves one model."""

    where = "kernel"

    def start(self, plans: Sequence[LayerPlan], keep: bool = True) -> Callable[[LayerPlan], Callable[[Tensor], Tensor]]:
        """Called once with all layers; the result gives each layer its forward.

        Args:
            keep: whether the model's own weights are needed afterwards; see `settle`.
        """
        raise NotImplementedError

    def settle(self, forwards: Iterable[Any]) -> None:
        """Called when all forwards are made, if the model's own weights are not needed afterwards: quantized ones may take their place."""

    def storage(self, copies_bytes: int) -> str:
        """`stored` or `requantized`: how the weights of several ranges are kept, when all of them take so many bytes."""
        raise NotImplementedError


def check_ranges(key: str, ranges: int, steps: int) -> None:
    """Raises ConfigError unless so many ranges are equal parts of the steps; `key` is what gave them."""
    if not 1 <= ranges <= steps or steps % ranges:
        fitting = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
        raise ConfigError(f"{key}={ranges} must divide the {steps} steps of the sampler into equal parts: one of {fitting}")


SLOTS: dict[str, type[Part]] = {
    "sites": SitePart,
    "transforms": TransformPart,
    "weights": WeightPart,
    "activations": ActivationPart,
    "schedules": SchedulePart,
    "reuses": ReusePart,
    "draws": DrawPart,
    "kernels": KernelPart,
}


def names(slot: str) -> list[str]:
    """The parts of a slot: the files of its folder."""
    folder = importlib.import_module(f"vdqbench.quant.{slot}")
    return sorted(module.name for module in pkgutil.iter_modules(folder.__path__))


def find(slot: str, name: str, key: str) -> type[Part]:
    """The class of a part.

    Raises:
        ConfigError: there is none of this name; `key` is what named it.
    """
    if name not in names(slot):
        raise ConfigError(f"{key}={name} does not exist{nearest(str(name), names(slot))}")
    module = importlib.import_module(f"vdqbench.quant.{slot}.{name}")
    (part,) = (
        kind
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, SLOTS[slot]) and kind.__module__ == module.__name__
    )
    return part


CONVERT: dict[str, Any] = {"float": float, "tuple[str, ...]": tuple, "tuple[float, ...]": tuple, "Mapping[str, Any]": dict}
TYPES: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "int | None": (int, type(None)),
    "str | None": (str, type(None)),
    "float | None": (float, int, type(None)),
    "tuple[str, ...]": (list, tuple),
    "tuple[float, ...]": (list, tuple),
    "Mapping[str, Any]": (dict,),
}


def build(part: type[Part], options: Mapping[str, Any]) -> Any:
    """A part from its options.

    Raises:
        ConfigError: an option it does not have, one that is missing, or a value of the wrong type or out of range.
    """
    known = {field.name: field for field in fields(part)}
    for option in options:
        if option not in known:
            raise ConfigError(f"{part.key(option)} is not an option of {part.part_name()}{nearest(str(option), known)}")
    values: dict[str, Any] = {}
    for name, field in known.items():
        kind = str(field.type)
        if name not in options:
            if field.default is MISSING:
                raise ConfigError(f"{part.key(name)} is missing; it must be a {kind}")
            continue
        value = options[name]
        if type(value) not in TYPES[kind]:
            raise ConfigError(f"{part.key(name)}={value!r} must be of type {kind}")
        values[name] = value if value is None else CONVERT.get(kind, type(value))(value)
    return part(**values)
