"""Every step of every calibration prompt, prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.quant.parts import DrawPart


@dataclass(frozen=True)
class All(DrawPart):
    """No options of its own."""

    def pairs(self, prompts: int, steps: int) -> list[tuple[int, int]]:
        return [(prompt, step) for prompt in range(prompts) for step in range(steps)]
