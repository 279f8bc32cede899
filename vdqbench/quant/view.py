"""What a part sees of a layer: its weight and the statistics of its input, in the basis that the parts before it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import Site, Transform, TransformPart


@dataclass(frozen=True)
class LayerView:
    """One layer over one range of steps.

    Attributes:
        site: the layer.
        master: its weight [Cout, Cin, ...] as loaded.
        peers: masters of all layers of the same module that read the same input, itself included.
        recorded: statistics of its input, [P, K, ..., Cin] float32 for P prompts and the K steps of the range.
        transforms: what was done to the basis so far.
    """

    site: Site
    master: Tensor
    peers: tuple[Tensor, ...]
    recorded: Mapping[str, Tensor]
    transforms: tuple[Transform, ...] = ()

    @property
    def weight(self) -> Tensor:
        """The transformed weight, float32."""
        return self._transformed(self.master)

    @property
    def peer_weights(self) -> list[Tensor]:
        """The transformed weights of the peers, float32."""
        return [self._transformed(master) for master in self.peers]

    def statistic(self, name: str) -> Tensor:
        """A statistic of the transformed input, [P, K, ..., Cin].

        Raises:
            Unsupported: it was not recorded, or does not follow from what was.
        """
        if name not in self.recorded:
            raise Unsupported(
                f"layer {self.site.name} has no statistic {name!r} of its transformed input; choose a grid that is found online"
            )
        return self.recorded[name]

    def part_of_steps(self, index: int, count: int) -> LayerView:
        """The view of one of `count` equal parts of its steps."""
        return replace(self, recorded={name: value.chunk(count, dim=1)[index] for name, value in self.recorded.items()})

    def through(self, transform: Transform) -> LayerView:
        """The view in the basis that one more transform makes."""
        return replace(self, recorded=transform.statistics(self.recorded), transforms=(*self.transforms, transform))

    def _transformed(self, weight: Tensor) -> Tensor:
        weight = weight.detach().float()
        for transform in self.transforms:
            weight = transform.weight(weight)
        return weight


def views(layer: LayerView, parts: Sequence[TransformPart]) -> list[LayerView]:
    """Fit the transforms, one after the other, to a layer: a view for each range of the finest of them.

    Raises:
        Unsupported: a transform with fewer ranges than one before it, or ranges that do not nest.
    """
    result = [layer]
    for part in parts:
        repeat, rest = divmod(part.ranges, len(result))
        if rest or not repeat:
            raise Unsupported(
                f"{part.key('ranges')}={part.ranges} does not refine the {len(result)} ranges of the transforms before it: use a multiple"
            )
        windows = [view.part_of_steps(i, repeat) for view in result for i in range(repeat)]
        result = [window.through(part.fit(window)) for window in windows]
    return result
