"""Hydra without its main function: overrides to cells, and cells to a launcher.

Hydra's own multirun stops a sweep or hides its end when one job fails, and a paper's table is no product of lists. So
the grid is expanded here, every cell is validated before the first one runs, and Hydra's launcher gets the list.
"""

from __future__ import annotations

import difflib
import itertools
import logging
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from vdqbench.config import CONF
from vdqbench.errors import ConfigError, nearest


class Composer:
    """Composes configurations from the shipped `conf/` and, before it, the user's own folders."""

    def __init__(self, folders: Sequence[str] = ()) -> None:
        for folder in folders:
            if not Path(folder).is_dir():
                raise ConfigError(
                    f"--config-dir={folder} is not a folder; give one with config groups in it, such as {folder}/method/mine.yaml"
                )
        self.folders = [Path(folder).resolve() for folder in folders]
        GlobalHydra.instance().clear()
        path = create_config_search_path(str(CONF))
        for root in self.folders:
            path.prepend("command-line", f"file://{root}")
        self.hydra = Hydra.create_main_hydra2(task_name="vdqbench", config_search_path=path)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Options of each config group, `a/b` for nested ones."""
        found: dict[str, set[str]] = {}
        for root in (*self.folders, CONF):
            for file in root.glob("*/**/*.yaml"):
                parts = file.relative_to(root).with_suffix("").parts
                depth = 2 if parts[0] == "hydra" else 1
                found.setdefault("/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
        return {group: sorted(options) for group, options in sorted(found.items())}

    def compose(self, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
        """The whole configuration, Hydra's own part included.

        Raises:
            ConfigError: one sentence for whatever Hydra says in many.
        """
        try:
            return self.hydra.compose_config("config", list(overrides), mode, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(self._sentence(str(error), overrides)) from error

    def plain(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The resolved configuration without Hydra's part, as plain Python values.

        Raises:
            ConfigError: as `compose`, and for a mandatory value that is missing.
        """
        config = self.compose(overrides)
        try:
            OmegaConf.set_struct(config, False)
            config.pop("hydra")
            return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]
        except MissingMandatoryValue as error:
            raise ConfigError(f"{error.full_key} must be given: add {error.full_key}=VALUE") from error
        except OmegaConfBaseException as error:
            raise ConfigError(self._sentence(str(error), overrides)) from error

    def launch(self, jobs: Sequence[Sequence[str]], task: Any, overrides: Sequence[str]) -> None:
        """Run `task` on the configuration of every list of overrides, with the launcher that `overrides` choose."""
        config = self.compose([o for o in overrides if o.startswith("hydra")], RunMode.MULTIRUN)
        context = HydraContext(config_loader=self.hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        level = logging.root.manager.disable
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        try:
            launcher.launch([list(job) for job in jobs], initial_job_idx=0)
        finally:
            logging.disable(level)

    def _sentence(self, text: str, overrides: Sequence[str]) -> str:
        """What Hydra says in many lines and its own terms, in one line and the user's."""
        if match := re.search(r"Could not override '([^']+)'", text):
            key = match.group(1)
            culprit = next((o for o in overrides if _key(o) == key), key)
            if not culprit.startswith(("+", "~", "hydra")):
                config = self.compose([o for o in overrides if o != culprit])
                parent, _, last = key.rpartition(".")
                while parent and not isinstance(OmegaConf.select(config, parent), DictConfig):
                    parent, _, last = parent.rpartition(".")
                node = OmegaConf.select(config, parent) if parent else config
                known = {str(name) for name in node} | (set() if parent else set(self.groups)) - {"hydra"}
                if not difflib.get_close_matches(last, known, cutoff=0.5):
                    known = {p for p in _paths(node, parent) if difflib.get_close_matches(last, [p.rpartition(".")[2]])} or known
                    last = next(iter(known)) if len(known) == 1 else last
                    return f"{culprit}: there is no option {key}{nearest(last, known)}"
                return f"{culprit}: {f'{parent} has' if parent else 'there is'} no option {last}{nearest(last, known)}"
        if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
            group = next((g for g in sorted(self.groups, key=len, reverse=True) if match.group(1).startswith(f"{g}/")), None)
            if group:
                option = match.group(1).removeprefix(f"{group}/")
                return f"{group}={option} is not an option of {group}{nearest(option, self.groups[group])}"
        return " ".join(text.split())


def _paths(node: DictConfig, prefix: str) -> Iterator[str]:
    """Dotted paths of everything below a node."""
    for name in map(str, node):
        path = f"{prefix}.{name}" if prefix else name
        yield path
        if path != "hydra" and not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            yield from _paths(node[name], path)


def _key(override: str) -> str:
    """The key or group that an override names."""
    return override.lstrip("+~").split("=")[0].split("@")[0]


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The product of all comma lists, ranges and choices among the overrides, one list of overrides per cell.

    Raises:
        ConfigError: an argument that is no override.
    """
    parsed: list[Override] = []
    for argument in arguments:
        try:
            parsed.append(OverridesParser.create().parse_override(argument))
        except HydraException as error:
            raise ConfigError(
                f"{argument!r} is not an override: write key=value, with quotes around values that hold commas or spaces"
            ) from error
    axes = []
    for override in parsed:
        if not override.is_sweep_override() or (override.key_or_group or "").startswith("hydra"):
            axes.append([override.input_line or ""])
            continue
        try:
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        except HydraException as error:
            raise ConfigError(
                f"{override.input_line}: only lists a,b, range() and choice() can be swept; list the options by name"
            ) from error
    return [list(cell) for cell in itertools.product(*axes)]
