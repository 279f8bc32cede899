"""The slots of a recipe and how their parts are found: part `x` of a slot is the one class in `<slot>/x.py`.

A part is a frozen dataclass whose fields are its options. To add one, add its file: it subclasses its slot's base below,
and imports torch inside its functions only, so that a recipe can be checked without loading torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from vdqbench.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdqbench.clock import StepClock
    from vdqbench.quant.layer import LayerPlan
    from vdqbench.quant.quantizer import Coded, QTensor
    from vdqbench.quant.view import LayerView

Bits = tuple[int | None, int | None]
"""Bits of weight and activation; None is floating point."""


@dataclass(frozen=True)
class Site:
    """One quantizable layer: its module name, its role (`self_attn.q`), the shape of its weight, and its bits."""

    name: str
    role: str
    shape: tuple[int, ...]
    weight_bits: int | None
    activation_bits: int | None

    @property
    def elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Part:
    """An option of a slot.

    Attributes:
        version: raised when the part's output changes for the same options; it is part of every key.
        needs: names of the statistics of a layer's input that the part derives its parameters from.
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
        ranges = getattr(self, "ranges", 1)
        if not 1 <= ranges <= steps or steps % ranges:
            fitting = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
            raise ConfigError(
                f"{self.key('ranges')}={ranges} must divide the {steps} steps of the sampler into equal parts: one of {fitting}"
            )

    def semantic(self) -> dict[str, Any]:
        """What of the part changes the output."""
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"part": self.part_name(), "version": self.version, **options}


class SitePart(Part):
    """Which layers are quantized, or with how many bits. Its only field is the value of its key."""

    where = "method.sites"

    @classmethod
    def key(cls, option: str) -> str:
        return f"{cls.where}.{cls.part_name()}"

    def apply(self, sites: list[Site]) -> list[Site]:
        """The same layers with other bits."""
        raise NotImplementedError


class Transform:
    """A transform fitted to one layer and one range of steps: T of y = W x = (W T^-1)(T x).

    A transform overrides `multiplier` if T is diagonal, else `input`; `weight` and `statistics` follow it.
    """

    def multiplier(self) -> Tensor | None:
        """The diagonal of T, one factor for each input channel, if T is diagonal: it then costs nothing."""
        return None

    def input(self, x: Tensor) -> Tensor:
        """T x, computed at every call."""
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

    def values(self, channels: int) -> int:
        """How many numbers are stored for a layer with so many input channels."""
        raise NotImplementedError


class WeightPart(Part):
    """How the grid of a weight is found."""

    where = "method.weight"

    def quantize(self, view: LayerView, bits: int) -> QTensor:
        """`view.weight` (float32, transformed) on its grid."""
        raise NotImplementedError

    def values(self, shape: tuple[int, ...]) -> int:
        """How many parameters are stored beside the codes of a weight [Cout, Cin, ...]."""
        raise NotImplementedError


class Activation:
    """The quantizer of one layer's input.

    Attributes:
        ranges: number of equal parts of the trajectory with their own parameters.
        branches: 2 if the guidance branches have their own parameters, else 1.
    """

    ranges: int = 1
    branches: int = 1

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        """What turns an input into codes, in one range of steps.

        Args:
            index: of the range.
            branch: guidance branches in the input: `both` (halves of dimension 0, if `branches` is 2), `cond`, `uncond`.
            multiplier: factors by which the channels of the input are multiplied first; broadcasts to it.
        """
        raise NotImplementedError


class ActivationPart(Part):
    """How the grid of an input is found.

    Attributes:
        batch_dependent: whether a video's output depends on what else is in its batch; one is then generated at a time.
    """

    where = "method.activation"

    @property
    def batch_dependent(self) -> bool:
        return False

    def fit(self, views: Sequence[LayerView]) -> Activation:
        """The quantizer of one layer from its views (one for each range of its transforms)."""
        raise NotImplementedError

    def values(self) -> int:
        """How many parameters are stored for a layer."""
        raise NotImplementedError


class Schedule:
    """A schedule at work on one model."""

    def bits(self, site: Site) -> Bits:
        """Bits of a layer in the denoiser call in progress."""
        raise NotImplementedError

    def close(self) -> None:
        """Undo what was done to the model."""


class SchedulePart(Part):
    """How many bits at which step."""

    where = "method.schedule"

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        raise NotImplementedError

    def plan(self, site: Site, steps: int) -> list[Bits]:
        """Nominal bits of a layer at each step, for the account of sizes and average bits."""
        raise NotImplementedError


class KernelPart(Part):
    """How quantized layers are executed. One instance serves one model."""

    where = "kernel"

    def start(self, plans: Sequence[LayerPlan]) -> Callable[[LayerPlan], Callable[[Tensor], Tensor]]:
        """Called once with all layers; the result gives each layer its forward."""
        raise NotImplementedError

    def storage(self, copies_bytes: int) -> str:
        """`stored` or `requantized`: how the weights of several ranges are kept, when all of them take so many bytes."""
        raise NotImplementedError


SLOTS: dict[str, type[Part]] = {
    "sites": SitePart,
    "transforms": TransformPart,
    "weights": WeightPart,
    "activations": ActivationPart,
    "schedules": SchedulePart,
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


CONVERT: dict[str, Any] = {"float": float, "tuple[str, ...]": tuple}
TYPES: dict[str, tuple[type, ...]] = {
    "float": (float, int),
    "int": (int,),
    "bool": (bool,),
    "str": (str,),
    "tuple[str, ...]": (list, tuple),
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
        values[name] = CONVERT.get(kind, type(value))(value)
    return part(**values)
