"""Inspect a model: take the calibration that all methods share, repeat its calls and look at the weights once, and write what is found."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.errors import ConfigError
from vdqbench.inspect.phenomena import Finding
from vdqbench.progress import Progress
from vdqbench.store import Store, key_of, write_atomic
from vdqbench.tune import only_cell

if TYPE_CHECKING:
    from vdqbench.calibrate import Calibration
    from vdqbench.inspect.measure import Measured
    from vdqbench.inspect.trajectories import Trajectories
    from vdqbench.models.base import Adapter

VERSION = 1
"""Of what is kept of trajectories and of weights."""
ARTEFACTS = "artefacts.json"
"""File of a folder of results that names what it was made from, so that pruning the store spares it."""
OF_QUANTIZATION = ("method", "bits", "kernel", "metric", "tracker")
"""Groups that say nothing about the unquantized model."""


@dataclass(frozen=True)
class Request:
    """What is to be inspected.

    Attributes:
        overrides, folders: of a cell, of which model, sampler and calibration prompts count.
        layers: patterns of names or roles of layers whose inputs and weights are looked at; None takes all.
        name: of the folder of results; None names it after the model (and the patterns).

    Raises:
        ConfigError: a name that no folder may have.
    """

    overrides: tuple[str, ...]
    folders: tuple[str, ...] = ()
    layers: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"\w[\w.+-]*", self.name):
            raise ConfigError(f"name={self.name} must be letters, digits and _ . + -")

    def folder(self, cell: Cell) -> Path:
        """Where results go."""
        part = "" if self.layers is None else "-" + re.sub(r"[^\w.]+", "_", self.layers).strip("_")
        return cell.out / "inspect" / (self.name or cell.model.name + part)


@dataclass(frozen=True)
class Inspection:
    """The findings, and the folder with page, figures and numbers."""

    findings: tuple[Finding, ...]
    folder: Path


def inspect(request: Request) -> Inspection:
    """Measure, draw and write.

    Raises:
        ConfigError: one sentence with what is wrong.
    """
    base = only_cell(request.overrides, "inspect")
    for word in base:
        if re.match(rf"[+~]*({'|'.join(OF_QUANTIZATION)})\b", word):
            raise ConfigError(f"{word} does not change the unquantized model, which vdqbench inspect is about; leave it out")
    cell = Cell.from_config(Composer(request.folders).plain(["method=fp", *base]))

    from vdqbench import generate
    from vdqbench.inspect.findings import findings
    from vdqbench.inspect.inputs import chosen
    from vdqbench.inspect.measure import measure
    from vdqbench.inspect.style import styled

    store, progress = Store(cell.out / "store"), Progress(quiet=cell.config["quiet"])
    with styled():  # says that matplotlib is missing before anything is computed
        adapter = generate.load_adapter(cell)
        layers = chosen(adapter.layers(), request.layers)
        calibration = generate.measured(cell, store, progress)
        trajectories = _trajectories(cell, store, progress, adapter, calibration)
        measured = measure(layers, calibration, trajectories, _weights(cell, store, progress, adapter, layers))
        found, folder = findings(measured), request.folder(cell)
        _write(folder, request, cell, measured, found, progress)
    return Inspection(tuple(found), folder)


def _artefacts(cell: Cell) -> dict[str, tuple[str, str]]:
    """Kind -> (kind, key) of what a page is made from."""
    keys = dict.fromkeys(("calibration", "calls", "timing"), cell.statistics_key)
    keys |= {"trajectories": key_of([VERSION, cell.statistics_key]), "weights": key_of([VERSION, cell.model.semantic])}
    return {kind: (kind, key) for kind, key in keys.items()}


def _trajectories(cell: Cell, store: Store, progress: Progress, adapter: Adapter, calibration: Calibration) -> Trajectories:
    """What repeating the calls of calibration shows. Stored."""
    from safetensors.torch import load_file, save_file

    from vdqbench import generate
    from vdqbench.inspect.trajectories import Trajectories, follow, watched

    places = watched(adapter.layers(), calibration)
    where = (*_artefacts(cell)["trajectories"], ".safetensors")
    path = store.get(*where)
    if path is None:
        calls = generate.calls(cell, store)
        with progress.stage(f"repeat the calls of {cell.model.name}", calls.prompts * calls.steps) as advance:
            found = follow(adapter.denoiser, adapter.clock, calls, places, advance)
        path = store.put(*where, lambda file: save_file(found.tensors(), file))
    return Trajectories.of(load_file(path), places)


def _weights(cell: Cell, store: Store, progress: Progress, adapter: Adapter, layers: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Each layer's weights in numbers. Stored, of all layers of the model."""
    from vdqbench.inspect.weights import describe

    where = (*_artefacts(cell)["weights"], ".json")
    path = store.get(*where)
    if path is None:
        names = list(adapter.layers())
        made = {}
        with progress.stage(f"weights of {cell.model.name}", len(names)) as advance:
            for name in names:
                made[name] = describe(adapter.denoiser.get_parameter(f"{name}.weight"))
                advance(1)
        path = store.put(*where, partial(Path.write_text, data=json.dumps(made)))
    known = json.loads(path.read_text())
    return {name: known[name] for name in layers}


def _write(folder: Path, request: Request, cell: Cell, measured: Measured, found: list[Finding], progress: Progress) -> None:
    from vdqbench.inspect import page
    from vdqbench.inspect.draw import FIGURES, TEMPORAL
    from vdqbench.inspect.style import png

    drawn = [name for name in FIGURES if name not in TEMPORAL or len(measured.spread)]
    with progress.stage("figures", len(drawn)) as advance:
        for name in drawn:
            data = png(FIGURES[name](measured))
            write_atomic(folder / f"{name}.png", partial(Path.write_bytes, data=data))
            advance(1)
    for name, frame in page.frames(measured).items():
        _text(folder / f"{name}.csv", frame.to_csv(index=False, float_format="%.4g", lineterminator="\n"))
    _text(folder / ARTEFACTS, json.dumps(list(_artefacts(cell).values())) + "\n")
    _text(folder / "phenomena.csv", page.as_csv(found, request.layers))
    _text(folder / "page.md", page.as_markdown(cell.model.name, list(_about(request, cell, measured)), found, measured, drawn))
    known = {file.parent.name: _rows(file) for file in sorted(folder.parent.glob("*/phenomena.csv"))}
    _text(folder.parent / "README.md", page.overview(known))


def _about(request: Request, cell: Cell, measured: Measured) -> Iterator[str]:
    from vdqbench import __version__
    from vdqbench.environment import environment, revision
    from vdqbench.generate import device_of

    own = [f"layers={request.layers}"] * (request.layers is not None) + [f"name={request.name}"] * (request.name is not None)
    places = ("out=", "device=", "quiet=")  # where it ran changes nothing
    words = [word for word in request.overrides if not word.startswith(places)]
    yield f"    {shlex.join(['vdqbench', 'inspect', *words, *own])}\n"
    prompts, sampler = cell.calibration_prompts, cell.sampler
    sampled = f"{measured.changes['step'].max() + 1} steps of {sampler.name}, guidance {sampler.guidance:g}"
    yield f"The unquantized model on the {len(prompts.items)} calibration prompts {prompts.name}: {sampled},"
    yield f"seed {cell.config['calibration']['seed']}. {'' if request.layers else 'All '}{len(measured.weights)} of its layers"
    yield f"are looked at; they read {len(measured.ratios)} different tensors."
    if cell.model.name.startswith("mini_"):
        yield "This is a mini: a small model trained on procedural videos. What it shows need not hold for the models in the papers, nor"
        yield "the other way round."
    made = environment()
    machine = f"{made['processor']}, {made['cores']} cores"
    if device_of(cell).startswith("cuda"):
        import torch

        machine += f", {torch.cuda.get_device_name(device_of(cell))}"
    yield f"\nvdqbench {__version__}, revision {revision() or 'unknown'}, PyTorch {made['packages']['torch']}, {machine}."


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _text(path: Path, text: str) -> None:
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))
