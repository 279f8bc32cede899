"""Shortcut split: an input that is a concatenation is quantized part by part, and so is the weight that reads it.

Q-Diffusion (arXiv 2302.04304, Sec. 4.2): in the up blocks of a UNet the shortcut convolution reads the hidden state beside the skip
connection, whose ranges differ by far. The model's anatomy says which layers that are, and how many channels come first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import TransformPart
from vdqbench.quant.transforms.smooth import Identity

if TYPE_CHECKING:
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class Split(TransformPart):
    """No options; layers whose input is no concatenation stay as they are."""

    def fit(self, view: LayerView) -> Sections:
        if view.split is None:
            return Sections(())
        if view.transforms:
            raise Unsupported("method.transform.split must come first, while the parts of an input are apart: list it before the others")
        return Sections((view.split, view.weight.shape[1] - view.split))

    def values(self, shape: tuple[int, ...]) -> int:
        return 0


@dataclass(frozen=True)
class Sections(Identity):
    """The identity, with grids of their own for consecutive groups of channels of these sizes; empty for one group."""

    sizes: tuple[int, ...]

    def sections(self) -> tuple[int, ...]:
        return self.sizes
