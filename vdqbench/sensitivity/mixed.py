"""Mixed precision from what each group costs at several widths: a file for `method.sites.file`, and what it amounts to."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.quant.format import FLOAT_BITS, make
from vdqbench.quant.parts import Site
from vdqbench.sensitivity.allocate import ALLOCATIONS, Item, average
from vdqbench.sensitivity.groups import Request, Row, sites_file
from vdqbench.store import Store, write_atomic


@dataclass(frozen=True)
class Mixed:
    """What a budget was spent on.

    Attributes:
        weight_bits, activation_bits: averages over elements and steps, of the layers that the recipe quantizes.
        stored_bits: that a weight takes, if a layer whose width changes is stored in each of its widths.
        command: that runs a cell with it.
        beside: output error of the whole model with it and with one width everywhere, where errors judged.
    """

    path: Path
    weight_bits: float
    activation_bits: float
    stored_bits: float
    command: str
    beside: Mapping[str, float]


def give_out(
    rows: Sequence[Row],
    sites: Sequence[Site],
    cell: Cell,
    composer: Composer,
    base: Sequence[str],
    request: Request,
    path: Path,
    store: Store,
    progress: Progress,
) -> Mixed:
    """Give out bits and write the file.

    Raises:
        ConfigError: a group has no result at some width, or a budget is too small.
    """
    chosen, told = {}, [f"{cell.method} on {cell.model.name}: {request.allocation} allocation by {request.by}"]
    for side, budget, family in zip(
        ("weight", "activation"), (request.budget, request.activation_budget), cell.recipe.formats, strict=True
    ):
        chosen[side], line = _chosen(rows, side, budget, request, family)
        told += [line] if line else []
    owner = {layer.name: row.group.name for row in rows for layer in row.group.layers}

    def bits(site: Site, part: int) -> list[int]:
        pair = []
        for side, own in (("weight", site.weight_bits), ("activation", site.activation_bits)):
            pair.append(FLOAT_BITS if own is None else chosen[side].get(f"{owner[site.name]}/{part}", own))
        return pair

    table = {site.name: [bits(site, part) for part in range(request.parts)] for site in sites}
    write_atomic(path, lambda file: file.write_text(sites_file(table, request.parts, told), encoding="utf-8"))
    mixed = Cell.from_config(composer.plain([*base, f"++method.sites.file={path}"]))
    weight_bits, activation_bits = mixed.recipe.average_bits(sites)
    folders = [word for folder in request.folders for word in ("--config-dir", folder)]
    command = shlex.join(["vdqbench", *folders, *base, f"++method.sites.file={path}"])
    beside = _beside(mixed, cell, composer, base, request, store, progress) if request.fast else {}
    return Mixed(path, weight_bits, activation_bits, _stored(mixed, sites), command, beside)


def _chosen(rows: Sequence[Row], side: str, budget: float | None, request: Request, family: str) -> tuple[dict[str, int], str]:
    """Bits of weights or activations by `group/range`, and a line about them; nothing without a budget."""
    if budget is None:
        return {}, ""
    losses: dict[str, dict[int, float]] = {}
    first: dict[str, Row] = {}
    for row in rows:
        if row.variant.side == side and row.variant.bits is not None:
            if row.loss is None:
                raise ConfigError(f"{row.group.name} has no result at {row.variant.name} ({row.reason}), so no bits can be given out")
            name = f"{row.group.name}/{row.range}"
            losses.setdefault(name, {})[row.variant.bits] = row.loss
            first.setdefault(name, row)
    whole = sum(row.group.elements for row in first.values())
    items = [Item(name, row.group.elements / whole, losses[name], row.judge) for name, row in first.items()]
    cost = {bits: make(family, bits).stored_bits for bits in request.candidates}
    chosen = ALLOCATIONS[request.allocation](items, budget, cost)
    widths = ", ".join(str(bits) for bits in request.candidates)
    return (
        chosen,
        f"{side}s: {average(items, chosen, cost):.3f} of at most {budget:g} bits on average over elements and steps, from {widths}",
    )


def _stored(cell: Cell, sites: Sequence[Site]) -> float:
    total = 0.0
    for site in cell.recipe.assign(sites):
        widths = {bits for bits, _ in cell.recipe.schedule.plan(site, cell.recipe.steps)}
        total += site.elements * sum(FLOAT_BITS if bits is None else make(site.formats[0], bits).stored_bits for bits in widths)
    return total / sum(site.elements for site in sites)


def _beside(
    mixed: Cell, cell: Cell, composer: Composer, base: Sequence[str], request: Request, store: Store, progress: Progress
) -> dict[str, float]:
    """Output error of the whole model with mixed bits, and with each candidate everywhere."""
    from vdqbench.probe import Probe, applied

    sides = [key for key, budget in (("weight", request.budget), ("activation", request.activation_budget)) if budget is not None]
    cells = {"mixed": mixed}
    for bits in request.candidates:
        cells[f"{' and '.join(sides)} {bits} bits"] = Cell.from_config(composer.plain([*base, *(f"bits.{key}={bits}" for key in sides)]))
    probe = Probe(cell, store, progress, request.parts, request.moments, ["output_error"])
    found = {}
    for name, one in cells.items():
        with applied(one, store, progress):
            found[name] = probe.errors()["output_error"]
    return found
