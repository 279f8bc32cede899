"""`plan=true`: what would run, what is there already, and about how long the rest takes; of real models, what they need and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vdqbench.assets import of_model
from vdqbench.config import CONF, Cell
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.outline import Outline, is_real, outline
from vdqbench.progress import width
from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import build, find
from vdqbench.quant.recipe import Recipe, on_model
from vdqbench.record import Record
from vdqbench.runner import is_done, metric_keys
from vdqbench.store import Store
from vdqbench.verbs.prefetch import amount, overview

Row = tuple[str, str, Callable[[], Recipe]]
"""Names of a method and a bit option, and their recipe, if it can be had."""


def show(cells: Sequence[Cell]) -> int:
    """Print one line for each different cell; nothing is run or written, and no weights are loaded."""
    console = Console(width=width(), highlight=False)
    here = [cell for cell in cells if cell.model.is_here]
    absent = [cell for cell in cells if not cell.model.is_here]
    if here:
        _cells(list({(cell.run_dir, tuple(metric_keys(cell).items())): cell for cell in here}.values()), console)
    if absent:
        for line in dict.fromkeys(
            f"{cell.model.name} {cell.label}: {len(cell.samples)} videos, once its weights are here" for cell in absent
        ):
            console.print(line, soft_wrap=True)
    for name in dict.fromkeys(cell.model.name for cell in cells if is_real(cell.model)):
        _model([cell for cell in cells if cell.model.name == name], console)
    return 0


def _cells(cells: Sequence[Cell], console: Console) -> None:
    store = Store(cells[0].out / "store")
    pace = seconds_per_video(cells[0].out)
    table = Table("cell", "key", "state", "calibration", "videos", "time")
    left = 0.0
    seen: set[str] = set()
    for cell in cells:
        missing = {cell.video_key(sample) for sample in cell.samples if not store.has("video", cell.video_key(sample), ".mkv")} - seen
        seen |= missing
        each = pace.get(cell.model.name)
        left += len(missing) * (each or 0)
        table.add_row(
            cell.label,
            cell.key,
            "done" if is_done(cell) else "to do",
            calibration(cell, store),
            f"{len(cell.samples) - len(missing)}/{len(cell.samples)}",
            "" if not missing else f"{len(missing) * each:.0f} s" if each else "?",
        )
    console.print(table)
    timing = f"about {left:.0f} s of generation" if pace else "no record of this model yet to tell the time from"
    console.print(f"{sum(is_done(cell) is None for cell in cells)} of {len(cells)} cells to run; {timing}")


def _model(cells: Sequence[Cell], console: Console) -> None:
    """What a real model needs and is, and what the cells on it cost on paper."""
    model = cells[0].model
    console.print(f"\n[bold]{model.name}[/]", highlight=False)
    if needs := of_model(model):
        console.print(overview(needs))
        missing = [need for need in needs if not need.asset.is_here]
        console.print(
            f"{amount(missing, 1)} to fetch: vdqbench prefetch {model.words}" if missing else "all of it is there", soft_wrap=True
        )
    else:
        console.print(f"{model.weights}: {'there' if model.is_here else 'incomplete'}", markup=False)
    try:
        denoiser = outline(model)
    except ConfigError as error:
        console.print(f"not counted: {error}", soft_wrap=True, markup=False)
        return
    if model.source is not None and not model.is_here:
        console.print(f"as {model.name} is shipped; what {model.weights} is will be known when it is here", soft_wrap=True, markup=False)
    macs = sum(one.macs for one in denoiser.operations)
    console.print(
        f"denoiser: {denoiser.parameters:,} parameters, {len(denoiser.sites)} layers with a role; one call for one video in one guidance "
        f"branch has {macs / 1e12:.2f} T multiply-accumulates",
        soft_wrap=True,
    )
    for cell in {cell.method: cell for cell in cells}.values():
        roles = denoiser.roles(cell.recipe)
        if roles:
            said = ", ".join(f"{role} {count}" for role, (count, _) in roles.items())
            console.print(f"{cell.method} quantizes {sum(count for count, _ in roles.values())} layers: {said}", soft_wrap=True)
    _costs(cells, denoiser, console)


def _costs(cells: Sequence[Cell], denoiser: Outline, console: Console) -> None:
    """Size and operations, of a single quantized cell at every bit option, of several at their own."""
    table = Table("method", "bits", "layers", "W bits", "A bits", "size (GB)", "smaller", "TBOPs a call", "fewer", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    quantized = {cell.label: cell for cell in cells if not cell.recipe.is_fp}
    rows: list[Row] = [(cell.method, cell.bits, partial(_recipe, cell)) for cell in quantized.values()]
    if len(rows) == 1:
        rows += _at_other_bits(*quantized.values())
    kernel = {**cells[0].config["kernel"]}
    part = build(find("kernels", kernel.pop("name"), "kernel.name"), kernel)
    full = denoiser.cost(cells[0].reference().recipe, part)
    table.add_row("fp", "", "0", "16", "16", *_paid(full, full))
    refused: dict[str, list[str]] = {}
    for method, bits, recipe in rows:
        try:
            cost = denoiser.cost(recipe(), part)
        except (ConfigError, Unsupported) as error:
            refused.setdefault(str(error), []).append(bits)
            continue
        averages = (f"{cost[key]:.4g}" for key in ("weight_bits", "activation_bits"))
        table.add_row(method, bits, str(cost["quantized_layers"]), *averages, *_paid(cost, full))
    console.print(table)
    for reason, names in refused.items():
        console.print(f"not with {', '.join(names)}: {reason}", soft_wrap=True, markup=False)
    console.print("sizes as stored, what is not quantized at 16 bits; operations by w a + w + a, attention at 16 bits", soft_wrap=True)


def _paid(cost: Mapping[str, Any], full: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Size and operations, and how many times less they are than in full precision."""
    size, bops = cost["bytes"]["total"], cost["bops"]["total"]
    return (
        f"{size / 1e9:.3f}",
        f"{full['bytes']['total'] / size:.2f}x",
        f"{bops / 1e12:.1f}",
        f"{full['bops']['total'] / bops:.2f}x",
    )


def _recipe(cell: Cell) -> Recipe:
    return cell.recipe


def _at_other_bits(cell: Cell) -> list[Row]:
    """The cell's method at every other bit option; some it cannot be had at."""
    from omegaconf import OmegaConf

    method = on_model(cell.config["method"], cell.model.sites)
    rows: list[Row] = []
    for path in sorted((CONF / "bits").glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.create({"bits": OmegaConf.load(path)}), resolve=True)
        if path.stem != cell.bits and (node["bits"]["weight"], node["bits"]["activation"]) != (FLOAT_BITS, FLOAT_BITS):
            rows.append((cell.method, path.stem, partial(Recipe.from_config, method, node["bits"], cell.recipe.steps)))
    return rows


def calibration(cell: Cell, store: Store) -> str:
    """Whether the statistics that the cell needs are there."""
    if cell.calibration_key is None:
        return "none needed"
    return "there" if store.has("calibration", cell.calibration_key, ".safetensors") else "to do"


def seconds_per_video(out: Path) -> dict[str, float]:
    """Mean generation time by model, from the records below a results folder."""
    seconds: dict[str, list[float]] = {}
    for path in (out / "runs").glob("*/*/record.json"):
        try:
            record = Record.load(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if "generate" in record.timings and record.videos:
            seconds.setdefault(record.cell["model"], []).append(record.timings["generate"] / len(record.videos))
    return {model: sum(times) / len(times) for model, times in seconds.items()}
