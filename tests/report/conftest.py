"""Records made up in the test: a cell whose scores are known exactly, without any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from vdqbench.record import Record

DIRECTIONS = {"weight_size": False, "weight_bits": None, "activation_bits": None}


def make_record(
    scores: Mapping[str, Sequence[float] | float] | None = None,
    *,
    model: str = "mini_stdit",
    method: str = "asq",
    bits: str = "w8a8",
    state: str = "done",
    reason: str | None = None,
    seeds: int = 1,
    kernel: str | None = "sim",
    protocol: Mapping[str, Any] | None = None,
    prompts: Sequence[str] | None = None,
) -> Record:
    """A record; a list of values belongs to videos prompt by prompt for the first seed, then for the next; a number is a set's score."""
    scores = scores or {}
    count = max((len(v) for v in scores.values() if not isinstance(v, float)), default=0)
    names = list(prompts or [f"{i:04d}" for i in range(count // seeds)])
    entries = {}
    for name, values in scores.items():
        alone = isinstance(values, float)
        entries[name] = {
            "mean": values if alone else sum(values) / len(values),
            "values": None if alone else list(values),
            "n": 1 if alone else len(values),
            "label": name.upper(),
            "higher_is_better": DIRECTIONS.get(name, True),
            "protocol": dict(protocol or {"version": 1}),
        }
    return Record(
        key=f"{abs(hash((model, method, bits))):016x}"[:16],
        cell={
            **{"model": model, "method": method, "bits": bits, "prompts": "shapes_small", "n": count, "seeds": seeds},
            **{"seed": 0, "sampler": "ddim20", "kernel": kernel},
        },
        state=state,
        reason=reason,
        scores=entries,
        videos=[
            {"prompt_id": name, "prompt": f"prompt {name}", "seed": seed, "mp4": f"videos/{name}-{seed}.mp4"}
            for seed in range(seeds)
            for name in names
        ],
    )


@pytest.fixture(name="make_record")
def _make_record() -> Callable[..., Record]:
    return make_record
