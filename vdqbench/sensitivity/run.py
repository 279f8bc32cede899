"""Measure what each group costs, by errors of the denoiser or by scores of videos, and write what came out.

While a group is judged, all other layers stay in floating point. Errors come from calls of the calibration trajectories that
are repeated (one calibration and one set of exact outputs for all groups); scores from videos of the calibration prompts,
an ordinary cell for each group.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.progress import Progress
from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import Site
from vdqbench.sensitivity import tables
from vdqbench.sensitivity.groups import Group, Request, Row, alone, grouped
from vdqbench.sensitivity.mixed import Mixed, give_out
from vdqbench.store import Store, write_atomic
from vdqbench.tune import ON_CALIBRATION, metrics_for, only_cell, without_metric


@dataclass(frozen=True)
class Sensitivity:
    """The rows, the folder with table and heat map, and the mixed precision, if a budget was given."""

    rows: tuple[Row, ...]
    folder: Path
    mixed: Mixed | None


def measure(request: Request) -> Sensitivity:
    """Measure all groups, write table and heat map, and give out bits if there is a budget.

    Raises:
        ConfigError: one sentence with what is wrong.
    """
    from vdqbench import generate

    composer, base = Composer(request.folders), only_cell(request.overrides, "sensitivity")
    cell = Cell.from_config(composer.plain(base))
    _check(cell, request)
    variants = {variant.name: Cell.from_config(composer.plain([*base, *variant.overrides])) for variant in request.variants}
    adapter, store, progress = generate.load_adapter(cell), Store(cell.out / "store"), Progress(quiet=cell.config["quiet"])
    sites = _sites(cell, adapter)
    groups = grouped(sites, adapter.anatomy(), request.labels)
    folder = cell.out / "sensitivity" / (request.name or f"{cell.model.name}-{cell.method}-{cell.bits}-{request.by}")

    def judge(group: Group) -> str:
        return request.judge(group, cell.model.name.startswith("mini_"))

    if request.fast:
        rows = _errors(variants, groups, request, judge, store, progress)
    else:
        rows = _scores(composer, base, groups, request, judge, folder, cell)
    _write(folder / "table.csv", tables.as_csv(rows, request))
    if (picture := tables.picture(rows, request)) is not None:
        write_atomic(folder / "heatmap.png", lambda file: picture.save(file, format="PNG"))
    mixed = None
    if request.budget is not None or request.activation_budget is not None:
        mixed = give_out(rows, sites, cell, composer, base, request, folder / "sites.yaml", store, progress)
    _write(folder / "table.md", tables.as_markdown(rows, request, cell, mixed))
    return Sensitivity(tuple(rows), folder, mixed)


def _check(cell: Cell, request: Request) -> None:
    recipe = cell.recipe
    if request.name and not re.fullmatch(r"\w[\w.+-]*", request.name):
        raise ConfigError(f"name={request.name} must be letters, digits and _ . + -")
    if recipe.is_fp:
        raise ConfigError(f"method={cell.method} bits={cell.config['bits']['name']} quantizes nothing; choose a method and bits that do")
    if recipe.schedule.part_name() != "fixed" or recipe.reuse or any(part.sets_bits for part in recipe.sites):
        raise ConfigError(
            f"method={cell.method} sets bits by step or reuses steps; sensitivity is about a method with schedule fixed, "
            "without reuse and without sites.file, such as dynamic"
        )
    if cell.recipe.steps % request.parts:
        fitting = ", ".join(str(n) for n in range(1, cell.recipe.steps + 1) if cell.recipe.steps % n == 0)
        raise ConfigError(f"ranges={request.ranges} must divide the {cell.recipe.steps} steps of the sampler: one of {fitting}")


def _sites(cell: Cell, adapter: Any) -> list[Site]:
    """The layers that the recipe quantizes.

    Raises:
        ConfigError: there are none, or their bits vary.
    """
    from vdqbench.quant.quantize import sites_of

    sites = cell.recipe.quantized(cell.recipe.assign(sites_of(adapter.denoiser, adapter.layers())))
    if not sites:
        raise ConfigError(f"method={cell.method} quantizes no layer of {cell.model.name}")
    if timed := [site.name for site in sites if site.timed]:
        raise ConfigError(f"method={cell.method} gives layer {timed[0]} other bits in some steps; choose a method that does not")
    return sites


def _errors(
    variants: dict[str, Cell], groups: Sequence[Group], request: Request, judge: Callable[[Group], str], store: Store, progress: Progress
) -> list[Row]:
    from vdqbench.probe import Probe, applied, put_on, taken_off

    kinds = list(dict.fromkeys(judge(group) for group in groups))
    probe = Probe(variants["cell"], store, progress, request.parts, request.moments, kinds)
    rows = []
    with progress.stage("sensitivity", len(request.variants) * len(groups)) as advance:
        for variant in request.variants:
            with applied(variants[variant.name], store, progress) as model, taken_off(model):
                for group in groups:
                    layers = [layer.name for layer in group.layers if layer.name in model.runs]
                    with put_on(model, layers):
                        for part in range(request.parts):
                            error = probe.errors(part)[judge(group)]
                            value = error if math.isfinite(error) else math.inf
                            rows.append(Row(group, part, variant, judge(group), value, value))
                    advance(1)
    return rows


def _scores(
    composer: Composer,
    base: Sequence[str],
    groups: Sequence[Group],
    request: Request,
    judge: Callable[[Group], str],
    folder: Path,
    cell: Cell,
) -> list[Row]:
    from vdqbench.sweep import run_all

    scores = list(dict.fromkeys(judge(group) for group in groups))
    floating = [f"bits.weight={FLOAT_BITS}", f"bits.activation={FLOAT_BITS}"]
    common = [*without_metric(base), *metrics_for(scores, composer, dict(cell.config)), *ON_CALIBRATION, *floating]
    wanted = [(variant, group, part) for variant in request.variants for group in groups for part in range(request.parts)]
    jobs = [common]
    for variant, group, part in wanted:
        name = f"{group.name}-range{part}" if request.parts > 1 else group.name
        bits = cell.bits if variant.bits is None else variant.name
        path = folder / "sites" / f"{name}-{bits}.yaml"
        _write(path, alone(group, part, request.parts, variant))
        jobs.append([*common, f"++method.sites.file={path.absolute()}", f"method.name={cell.method}-{name}", f"bits.name={bits}"])
    cells = [Cell.from_config(composer.plain(job)) for job in jobs]
    exact, *records = run_all(composer, jobs, cells, request.overrides)
    rows = []
    for (variant, group, part), record in zip(wanted, records, strict=True):
        score, whole = record.scores.get(judge(group)), exact.scores.get(judge(group))
        if record.state != "done" or score is None or whole is None:
            rows.append(Row(group, part, variant, judge(group), None, None, record.reason or exact.reason))
            continue
        if score["higher_is_better"] is None:
            raise ConfigError(f"{judge(group)} has no better direction, so it cannot tell what is sensitive; give another score")
        worse = whole["mean"] - score["mean"]
        rows.append(Row(group, part, variant, judge(group), score["mean"], worse if score["higher_is_better"] else -worse))
    return rows


def _write(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))
