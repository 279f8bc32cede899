"""What only repeating the denoiser calls of calibration shows: how outputs change along a trajectory, and features of the timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdqbench.calibrate import Calibration
from vdqbench.clock import StepClock
from vdqbench.quant.accumulator import relative_change
from vdqbench.quant.evidence import first_tensor
from vdqbench.quant.recipe import TEMPORAL, TEMPORAL_SOURCE
from vdqbench.quant.temporal import SAME, Features
from vdqbench.replay import Calls

PRE, POST = "pre", "post"
"""Sites of features: what the timestep's network gives, and what the layers that project it read, behind the activation function."""
CLOSE = 1e-4
"""Relative difference of statistics up to which two layers read the same features."""


@dataclass(frozen=True)
class Trajectories:
    """What repeating the calls gave.

    Attributes:
        changes: ||F_t - F_(t-1)||_1 / ||F_(t-1)||_1 of the conditional outputs F, [P, K - 1] float32.
        features: by layer and site; empty where the model has none.
    """

    changes: Tensor
    features: Mapping[tuple[str, str], Features]

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        found = {"changes": self.changes}
        for (layer, site), one in self.features.items():
            found |= {
                f"{layer}|{site}|rows": one.rows.contiguous(),
                f"{layer}|{site}|step": torch.tensor(one.step),
                f"{layer}|{site}|variant": torch.tensor(one.variant),
            }
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], places: Sequence[tuple[str, str]]) -> Trajectories:
        """From what `tensors` gave, with the features of these layers and sites in this order."""

        def part(place: tuple[str, str], name: str) -> Tensor:
            return tensors["|".join((*place, name))]

        features = {
            place: Features(part(place, "rows"), tuple(part(place, "step").tolist()), tuple(part(place, "variant").tolist()))
            for place in places
        }
        return cls(tensors["changes"], features)


def watched(layers: Mapping[str, str], calibration: Calibration) -> list[tuple[str, str]]:
    """(layer, site) of the features of the timestep: of layers that read the same ones, the first.

    Behind the activation function those are inputs of `time_proj`, else of `modulation`, where other things are mixed in; before
    it, outputs of `time_emb.out`.
    """
    role = next((role for role in TEMPORAL if role in layers.values()), None)
    found: list[tuple[str, str]] = []
    for name in (name for name, own in layers.items() if own == role):
        if not any(_alike(calibration, name, known) for known, _ in found):
            found.append((name, POST))
    return found + [(name, PRE) for name, own in layers.items() if own == TEMPORAL_SOURCE]


def _alike(calibration: Calibration, one: str, other: str) -> bool:
    a, b = (calibration.statistics(name)["max"] for name in (one, other))
    return a.shape == b.shape and bool((a - b).norm() <= CLOSE * a.norm())


def follow(
    denoiser: nn.Module,
    clock: StepClock,
    calls: Calls,
    places: Sequence[tuple[str, str]],
    advance: Callable[[int], Any] = lambda count: None,
) -> Trajectories:
    """Repeat all calls once.

    The conditional branch's outputs count, as for delta-GBS.

    Args:
        places: from `watched`.
        advance: called after each step of each trajectory.
    """
    rows: dict[tuple[str, str], dict[int, list[Tensor]]] = {place: {} for place in places}

    def keep(place: tuple[str, str], values: Tensor) -> None:
        known = rows[place].setdefault(clock.step, [])
        for row in values.detach().float().reshape(-1, values.shape[-1]).cpu():
            if all((row - other).norm() > SAME * other.norm() for other in known):
                known.append(row.clone())

    def hooked(place: tuple[str, str]) -> Any:
        module = denoiser.get_submodule(place[0])
        if place[1] == PRE:
            return module.register_forward_hook(lambda module, args, output: keep(place, first_tensor(output)))
        return module.register_forward_pre_hook(
            lambda module, args, kwargs: keep(place, args[0] if args else kwargs["input"]), with_kwargs=True
        )

    changes = torch.zeros(calls.prompts, calls.steps - 1)
    with ExitStack() as undo:
        for place in places:
            undo.callback(hooked(place).remove)
        for prompt in range(calls.prompts):
            before: Tensor | None = None
            for step in range(calls.steps):
                for call in calls.at(prompt, step):
                    output = first_tensor(call.repeat(denoiser, clock, calls.steps))
                    if call.branch == "uncond":
                        continue
                    output = clock.conditional(output)
                    if before is not None:
                        changes[prompt, step - 1] = float(relative_change(output, before))
                    before = output.float()
                advance(1)
    return Trajectories(changes, {place: _features(by_step) for place, by_step in rows.items()})


def _features(by_step: Mapping[int, list[Tensor]]) -> Features:
    at = [(step, variant) for step in sorted(by_step) for variant in range(len(by_step[step]))]
    stacked = torch.stack([by_step[step][variant] for step, variant in at])
    return Features(stacked, tuple(step for step, _ in at), tuple(variant for _, variant in at))
