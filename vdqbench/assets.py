"""What models and metrics need from elsewhere: which weights, from where, how large, under which licence, and whether they are here.

A model lists its assets itself. Those of metrics are the files of `conf/asset/`; an option of a metric names one as `asset:NAME`, and
CLIP with released weights as its backbone stands for the one of that name, if there is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vdqbench.config import CONF, Asset, Model, typed
from vdqbench.errors import ConfigError, nearest

PREFIX = "asset:"


@dataclass(frozen=True)
class Need:
    """An asset, and the words that name what needs it: `model=NAME` (and its weights, if they are given) or `metric=[NAME]`."""

    asset: Asset
    owner: str


@lru_cache(maxsize=64)
def named(name: str) -> Asset:
    """The asset of a file in `conf/asset/`.

    Raises:
        ConfigError: there is none of that name.
    """
    path = CONF / "asset" / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        raise ConfigError(f"{PREFIX}{name} is not an asset{nearest(name, [file.stem for file in path.parent.glob('*.yaml')])}")
    return typed(Asset, yaml.safe_load(path.read_text(encoding="utf-8")), PREFIX + name)


def of_model(model: Model) -> list[Need]:
    """What is to be had from elsewhere for a model."""
    return [Need(asset, model.words) for asset in model.fetched]


def of_metrics(nodes: Mapping[str, Mapping[str, Any]]) -> list[Need]:
    """Assets of metric nodes, each once for each metric."""
    return [Need(named(asset), f"metric=[{name}]") for name, options in nodes.items() for asset in dict.fromkeys(_names(options))]


def unknown(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Backbones of CLIP that no file describes, as `metric.NAME: MODEL WEIGHTS`: open_clip fetches them itself when they are first used."""
    found = []
    for name, options in nodes.items():
        for spec in _backbones(options):
            model, weights = str(spec["model"]), str(spec.get("weights"))
            if model.startswith("hf-hub:") or (spec.get("weights") and "/" not in weights and weights != "packaged" and not backbone(spec)):
                found.append(f"metric.{name}: {model} {weights}".removesuffix(" None"))
    return found


def check(needs: Iterable[Need]) -> None:
    """Raises NotHere for the first that is not on this machine, with the command that fetches it."""
    for need in needs:
        if not need.asset.is_here:
            raise need.asset.absent(need.owner)


def file(text: str) -> Path | None:
    """The file that `asset:NAME` stands for; None for any other text, and if it is not on this machine.

    Raises:
        ConfigError: there is no such asset.
    """
    if not text.startswith(PREFIX):
        return None
    asset = named(text.removeprefix(PREFIX))
    folder = asset.where.folder
    return folder / asset.files[0] if folder is not None and asset.is_here else None


def resolved(options: Any) -> Any:
    """Options of a metric with the paths of assets that are here in place of their names."""
    if isinstance(options, str):
        return str(file(options) or options)
    if isinstance(options, Mapping):
        return {key: resolved(value) for key, value in options.items()}
    return [resolved(value) for value in options] if isinstance(options, list | tuple) else options


def backbone(spec: Mapping[str, Any]) -> str | None:
    """Name of the asset that `{model: ARCHITECTURE, weights: TAG}` of open_clip stands for; None if no file describes it."""
    name = re.sub(r"\W", "_", f"clip_{spec.get('model')}_{spec.get('weights')}".lower())
    return name if (CONF / "asset" / f"{name}.yaml").is_file() else None


def _backbones(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if "model" in value:
            yield value
        for item in value.values():
            yield from _backbones(item)


def _names(value: Any) -> Iterator[str]:
    """Names of assets anywhere among the options of a metric; those of LPIPS only if it is among the scores."""
    if isinstance(value, str):
        if value.startswith(PREFIX):
            yield value.removeprefix(PREFIX)
    elif isinstance(value, Mapping):
        if "model" in value and (name := backbone(value)):
            yield name
        for key, item in value.items():
            if key != "lpips" or "lpips" in (value.get("scores") or ("lpips",)):
                yield from _names(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _names(item)
