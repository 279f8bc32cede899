"""show the options of a config group (methods, models, bits, prompts, metrics, tables, ...), or the parts of recipes"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vdqbench.assets import of_model
from vdqbench.config import CONF, Model
from vdqbench.errors import ConfigError, nearest
from vdqbench.progress import width
from vdqbench.quant.parts import SLOTS, find, names


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench list", description=__doc__)
    parser.add_argument("group", nargs="?", help="one config group, singular or plural, or `parts`; all groups when left out")
    parser.add_argument("--config-dir", action="append", default=[], help="a folder with configs of your own")
    options = parser.parse_args(arguments)
    if options.group in ("part", "parts"):
        _parts(Console(width=width()))
        return 0
    roots = [*(Path(folder) for folder in options.config_dir), CONF]
    groups = sorted(
        {group.relative_to(root).as_posix() for root in roots for group in root.rglob("*") if group.is_dir() and any(group.glob("*.yaml"))}
    )
    groups = [group for group in groups if not group.startswith("hydra/job")]
    if options.group:
        wanted = {options.group, options.group.removesuffix("s"), f"hydra/{options.group}"}
        chosen = [group for group in groups if group in wanted or group.split("/")[0] in wanted]
        if not chosen:
            raise ConfigError(f"{options.group} is not a config group{nearest(options.group, groups)}")
        groups = chosen
    console = Console(width=width())
    for group in groups:
        if group == "model" and options.group:
            console.print(_models([file for root in roots for file in sorted((root / group).glob("*.yaml"))], options.config_dir))
            console.print(
                "missing weights are fetched with vdqbench prefetch model=NAME; what a model costs is in vdqbench model=NAME plan=true"
            )
            continue
        table = Table(title=group, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for root in roots:
            for file in sorted((root / group).glob("*.yaml")):
                table.add_row(file.stem, describe(file))
        console.print(table)
    return 0


def _models(files: Sequence[Path], folders: Sequence[str]) -> Table:
    """Every model with its size, what it needs from elsewhere, and whether it can be run here; `folders` are those of --config-dir."""
    table = Table("model", "what it is", "parameters", "GB", "licence", "here", box=None, padding=(0, 2, 0, 0))
    table.columns[0].no_wrap = True
    for column in table.columns[2:4]:
        column.justify = "right"
    defaults = yaml.safe_load((CONF / "model_defaults.yaml").read_text(encoding="utf-8"))
    for file in files:
        about = describe(file).removesuffix(".")
        try:
            node = {**defaults, **yaml.safe_load(file.read_text(encoding="utf-8"))}
            if "defaults" in node:  # it is made from another
                from vdqbench.compose import Composer

                node = Composer(folders).plain([f"model={file.stem}"])["model"]
            model = Model.from_config(node)
        except ConfigError as error:
            table.add_row(file.stem, about, "", "", "", escape(str(error)))
            continue
        needs = of_model(model)
        licences = dict.fromkeys(f"{need.asset.licence}{' (gated)' * need.asset.gated}" for need in needs)
        sizes = [need.asset.gigabytes for need in needs]
        size = "?" if None in sizes else f"{sum(size or 0 for size in sizes):.1f}" if sizes else ""
        state = model.unavailable or ("yes" if model.is_here else "missing" if needs else "incomplete")
        table.add_row(file.stem, about, _count(model.parameters), size, ", ".join(licences), state)
    return table


def _count(parameters: int | None) -> str:
    if parameters is None:
        return ""
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _parts(console: Console) -> None:
    """Every part by slot, with what it is and its options; `method=` files are made of them."""
    for slot in SLOTS:
        table = Table(title=slot, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for name in names(slot):
            part = find(slot, name, "")
            summary = str(sys.modules[part.__module__].__doc__).strip().splitlines()[0]
            options = ", ".join(f"{f.name}={_shown(f)}" for f in fields(part))  # type: ignore[arg-type]
            table.add_row(name, f"{summary}\n[dim]{options}[/]" if options else summary)
        console.print(table)


def _shown(option: Field[Any]) -> str:
    """The default of an option, as in YAML."""
    if option.default is MISSING:
        return "{}" if option.default_factory is not MISSING else "?"
    if isinstance(option.default, tuple):
        return escape(str(list(option.default)))
    return {"None": "null", "True": "true", "False": "false"}.get(str(option.default), str(option.default))


def describe(file: Path) -> str:
    """The first comment of a config file that says something, up to the first line that ends a clause, else its title."""
    said: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            said.append(line.lstrip("# ").strip())
            if said[-1].startswith("open:"):
                said.pop()
                break
            if said[-1].endswith((".", ";", ":")):
                break
        elif said:
            break
        elif match := re.match(r"title: (.*)", line):
            return match.group(1).strip("\"'")
    return " ".join(said).rstrip(";:")
