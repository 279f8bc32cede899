"""What a part sees of a layer: its weight and its input, in the basis that the parts before it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import ActivationPart, Site, Transform, TransformPart, WeightPart

if TYPE_CHECKING:
    import torch

    from vdqbench.quant.evidence import Evidence, Samples


@dataclass(frozen=True)
class LayerView:
    """One layer over one range of steps.

    Attributes:
        site: the layer.
        master: its weight [Cout, Cin, ...] as loaded.
        peers: masters of all layers of the same module that read the same input, itself included.
        recorded: statistics of its input, [P, K, ..., Cin] float32 for P prompts and the K steps of the range; for a draw
            that leaves moments out [1, M, ..., Cin] for its M moments.
        transforms: what was done to the basis so far.
        group: names of the peers.
        evidence: the unquantized model, for parts that need more than statistics.
        weight_part, activation_part: how the recipe finds the grids of the layer.
        window: first step of the range and the one after its last; None for all.
        split: number of channels of the first part of an input that is a concatenation.
        section: input channels that this view is restricted to; None for all.
        of_output: whether it shows the layer's output in the place of its input.
        place: device on which weights are transformed and quantized; None for that of the master.
    """

    site: Site
    master: Tensor
    peers: tuple[Tensor, ...]
    recorded: Mapping[str, Tensor]
    transforms: tuple[Transform, ...] = ()
    group: tuple[str, ...] = ()
    evidence: Evidence | None = None
    weight_part: WeightPart | None = None
    activation_part: ActivationPart | None = None
    window: tuple[int, int] | None = None
    split: int | None = None
    section: slice | None = None
    of_output: bool = False
    place: torch.device | None = None

    @property
    def device(self) -> torch.device:
        """Where the layer computes."""
        return self.place or self.master.device

    @property
    def weight(self) -> Tensor:
        """The transformed weight, float32."""
        weight = self._transformed(self.master)
        return weight if self.section is None else weight[:, self.section]

    @property
    def peer_weights(self) -> list[Tensor]:
        """The transformed weights of the peers, float32."""
        return [self._transformed(master) for master in self.peers]

    @property
    def sections(self) -> tuple[int, ...]:
        """Sizes of the groups of input channels with grids of their own; empty for one group."""
        return next((sizes for transform in self.transforms if (sizes := transform.sections())), ())

    @property
    def channels(self) -> int:
        """Number of input channels (of output channels, if it shows the output)."""
        return self.site.shape[0] if self.of_output else self.weight.shape[1]

    def statistic(self, name: str) -> Tensor:
        """A statistic of the transformed input, [P, K, ..., Cin].

        Raises:
            Unsupported: it was not recorded, or does not follow from what was.
        """
        if name not in self.recorded:
            raise Unsupported(
                f"layer {self.site.name} has no statistic {name!r} of its transformed input; choose a grid that is found online "
                "or from samples"
            )
        value = self.recorded[name]
        return value if self.section is None else value[..., self.section]

    def samples(self) -> Samples:
        """Tokens of the transformed input in this range of steps.

        Raises:
            Unsupported: there is no evidence, or none in this range.
        """
        from vdqbench.quant.evidence import Samples

        raw = self.required_evidence().samples(self.site.name, self.of_output)
        if self.window is not None:
            inside = (raw.step >= self.window[0]) & (raw.step < self.window[1])
            raw = Samples(raw.values[inside], raw.step[inside])
        if not len(raw.values):
            raise Unsupported(f"layer {self.site.name}: method.calibration draws no moment of steps {self.window}; draw more of them")
        values = raw.values.to(self.device)
        for transform in self.transforms:
            values = applied(transform, values)
        return Samples(values if self.section is None else values[:, self.section], raw.step)

    def required_evidence(self) -> Evidence:
        """The evidence.

        Raises:
            Unsupported: there is none.
        """
        if self.evidence is None:
            raise Unsupported(f"layer {self.site.name}: a part of the recipe needs the denoiser calls of a calibration, and there are none")
        return self.evidence

    def part_of_steps(self, index: int, count: int) -> LayerView:
        """The view of one of `count` equal parts of its steps.

        Raises:
            Unsupported: the recipe's draw leaves moments out, so that steps cannot be told apart.
        """
        if count == 1:
            return self
        if self.evidence is not None and self.evidence.draw.part_name() != "all":
            raise Unsupported(f"{count} ranges of steps need statistics of every step: use method.calibration.draw=all")
        first, last = self.window or (0, self.recorded_steps)
        width = (last - first) // count
        recorded = {name: value.chunk(count, dim=1)[index] for name, value in self.recorded.items()}
        return replace(self, recorded=recorded, window=(first + index * width, first + (index + 1) * width))

    @property
    def recorded_steps(self) -> int:
        """Number of steps that the statistics cover."""
        if self.recorded:
            return next(iter(self.recorded.values())).shape[1]
        return self.required_evidence().calls.steps

    def through(self, transform: Transform) -> LayerView:
        """The view in the basis that one more transform makes."""
        return replace(self, recorded=transform.statistics(self.recorded), transforms=(*self.transforms, transform))

    def restricted(self, section: slice) -> LayerView:
        """The view of some of the input channels."""
        return replace(self, section=section)

    def constant(self) -> Tensor | None:
        """[Cout], what transforms that shift add to the output; None if none does."""
        total, weight = None, self.master.detach().to(self.device).float()
        for transform in self.transforms:
            added = transform.constant(weight)
            total = added if total is None else total if added is None else total + added
            weight = transform.weight(weight)
        return total

    def _transformed(self, weight: Tensor) -> Tensor:
        weight = weight.detach().to(self.device).float()
        for transform in self.transforms:
            weight = transform.weight(weight)
        return weight


def applied(transform: Transform, x: Tensor) -> Tensor:
    """T x of samples [n, Cin] or [n, Cin, *kernel]."""
    diagonal = transform.multiplier()
    if diagonal is not None:
        return x * diagonal.to(x.device).view(-1, *(1,) * (x.ndim - 2))
    return transform.input(x)


def views(layer: LayerView, parts: Sequence[TransformPart]) -> list[LayerView]:
    """Fit the transforms, one after the other, to a layer: a view for each range of the finest of them.

    Raises:
        Unsupported: a transform with ranges that do not nest with those before it, or one after a branch, whose input it would change.
    """
    result = [layer]
    for part in parts:
        if any(transform.branch() is not None for transform in result[0].transforms):
            raise Unsupported(f"method.transform.{part.part_name()} follows a branch beside the quantized weight: list the branch last")
        if part.ranges == 1 and len(result) > 1:  # one transform for all ranges cannot follow several: it is fitted to each
            repeat, rest = 1, 0
        else:
            repeat, rest = divmod(part.ranges, len(result))
        if rest or not repeat:
            raise Unsupported(
                f"{part.key('ranges')}={part.ranges} does not refine the {len(result)} ranges of the transforms before it: use a multiple"
            )
        windows = [view.part_of_steps(i, repeat) for view in result for i in range(repeat)]
        result = [window.through(part.fit(window)) for window in windows]
    return result
