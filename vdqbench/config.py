"""From the composed configuration to a cell: typed, frozen, validated, and without importing torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.prompts import PromptSet
from vdqbench.quant.parts import build, find
from vdqbench.quant.recipe import Recipe
from vdqbench.store import key_of, sha256

PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if (folder / "config.yaml").is_file())
WEIGHTS = PACKAGE / "models" / "weights"
GENERATION, CALIBRATION, ACCOUNT = 1, 2, 3
"""Versions of the algorithms; raise one when its output changes."""


def typed(kind: Any, node: Mapping[str, Any], where: str) -> Any:
    """Build the dataclass `kind` from a config node.

    Raises:
        ConfigError: a key that the dataclass does not have, one that is missing, or a value of another type.
    """
    known = {field.name: field for field in fields(kind)}
    prefix = f"{where}." if where else ""
    for key in node:
        if key not in known:
            raise ConfigError(f"{prefix}{key} is not an option{f' of {where}' if where else ''}{nearest(str(key), known)}")
    values = {}
    for name, field in known.items():
        if name not in node:
            raise ConfigError(f"{prefix}{name} is missing; it must be of type {field.type}")
        value, expected = node[name], str(field.type)
        wanted = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
        types = tuple(t for part in expected.split(" | ") for t in wanted.get(part, ()))
        optional = value is None and "None" in expected
        if types and not optional and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise ConfigError(f"{prefix}{name}={value!r} must be of type {expected}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def at_least(where: str, value: float, lowest: float) -> None:
    """Raises ConfigError if the value is below the lowest allowed."""
    if value < lowest:
        raise ConfigError(f"{where}={value} must be at least {lowest}")


@dataclass(frozen=True)
class Sampler:
    """How latents are sampled: number of steps, guidance scale, and on how many latent channels guidance acts."""

    name: str
    steps: int
    guidance: float
    guided_channels: int

    def __post_init__(self) -> None:
        if self.name != "ddim":
            raise ConfigError(f"sampler.name={self.name} is not a sampler{nearest(self.name, ['ddim'])}")
        if not 2 <= self.steps <= 1000:
            raise ConfigError(f"sampler.steps={self.steps} must lie in 2..1000")
        at_least("sampler.guidance", self.guidance, 0)
        at_least("sampler.guided_channels", self.guided_channels, 0)

    @property
    def semantic(self) -> dict[str, Any]:
        """What changes the trajectory; the fingerprint that a calibration must match."""
        return {"name": self.name, "steps": self.steps, "guidance": float(self.guidance), "guided_channels": self.guided_channels}


@dataclass(frozen=True)
class Model:
    """Which video model, and where its weights are."""

    name: str
    adapter: str | None
    weights: str | None
    files: tuple[str, ...]
    vocabulary: str | None
    guidance: float
    guided_channels: int
    clip: Any
    unavailable: str | None

    @property
    def folder(self) -> Path:
        return WEIGHTS if self.weights == "packaged" else Path(self.weights or "").expanduser()

    def check(self) -> None:
        """Raises ConfigError if the model cannot be run here, before anything is loaded."""
        if self.unavailable:
            raise ConfigError(f"model={self.name} cannot be run: {self.unavailable}")
        for file in self.files:
            if not (self.folder / file).is_file():
                raise ConfigError(
                    f"model.weights={self.weights} lacks {file} (looked in {self.folder}); "
                    "give the folder that holds it as model.weights=FOLDER"
                )

    def check_prompts(self, prompts: PromptSet) -> None:
        """Raises ConfigError if a prompt has words that a model with a closed vocabulary was not taught."""
        if self.vocabulary is None:
            return
        known = set(json.loads((self.folder / self.vocabulary).read_text(encoding="utf-8"))["vocabulary"])
        for _, text in prompts.items:
            if strange := sorted(set(text.lower().split()) - known):
                raise ConfigError(
                    f"prompts={prompts.name}: {text!r} has words that {self.name} was not taught ({', '.join(strange)}); "
                    f"it knows {', '.join(sorted(known))}"
                )

    @property
    def semantic(self) -> dict[str, Any]:
        """Name and the weights' hashes: not where they lie."""
        return {"name": self.name, "weights": {file: digest(self.folder / file) for file in self.files}}


def digest(path: Path) -> str:
    """SHA-256 of a file of weights, computed once per process as long as the file stays as it is."""
    status = path.stat()
    return _digest(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=256)
def _digest(path: Path, modified: int, size: int) -> str:
    return sha256(path)


@dataclass(frozen=True)
class Settings:
    """The options that stand by themselves."""

    seed: int
    seeds: int
    out: str
    device: str
    batch_size: int
    study: str | None
    preset: str | None
    plan: bool
    quiet: bool

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("seeds", self.seeds, 1)
        at_least("batch_size", self.batch_size, 1)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise ConfigError(f"device={self.device} must be auto, cpu, mps, cuda or cuda:NUMBER")


GROUPS = ("model", "method", "bits", "prompts", "calibration", "sampler", "kernel", "metric", "tracker", "table")


@dataclass(frozen=True)
class Cell:
    """One (model, method, bits, prompts, sampler, seed) and how it is scored; everything a run needs to know."""

    config: Mapping[str, Any]
    model: Model
    sampler: Sampler
    recipe: Recipe
    prompts: PromptSet
    calibration_prompts: PromptSet

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Cell:
        """Validate a composed configuration (a plain, resolved mapping).

        Raises:
            ConfigError: one sentence with key, value and expectation.
        """
        typed(Settings, {key: value for key, value in config.items() if key not in GROUPS}, "")
        for group in GROUPS[:-3]:
            if not isinstance(config.get(group), Mapping):
                raise ConfigError(f"{group} is missing; choose one with {group}=NAME")
        model = typed(Model, config["model"], "model")
        model.check()
        sampler = typed(Sampler, config["sampler"], "sampler")
        for group in ("model", "method", "bits", "prompts"):
            name = config[group].get("name")
            if not re.fullmatch(r"\w[\w.+-]*", str(name)):
                raise ConfigError(f"{group}.name={name} must be letters, digits and _ . + -, since folders are named after it")
        kernel = dict(config["kernel"])
        build(find("kernels", kernel.pop("name", None), "kernel.name"), kernel)
        recipe = Recipe.from_config(config["method"], config["bits"], sampler.steps)
        prompts = PromptSet.from_config(config["prompts"])
        calibration = PromptSet.from_config(config["calibration"].get("prompts"), "calibration.prompts")
        if not isinstance(config["calibration"].get("seed"), int):
            raise ConfigError(f"calibration.seed={config['calibration'].get('seed')} must be of type int")
        for one in (prompts, calibration):
            model.check_prompts(one)
        return cls(config, model, sampler, recipe, prompts, calibration)

    @property
    def out(self) -> Path:
        return Path(self.config["out"]).expanduser()

    @property
    def samples(self) -> list[tuple[str, str, int]]:
        """(prompt id, prompt, seed) of every video, seed by seed, so that more seeds only add videos at the end."""
        first = self.config["seed"]
        return [(pid, text, seed) for seed in range(first, first + self.config["seeds"]) for pid, text in self.prompts.items]

    @property
    def calibration_samples(self) -> list[tuple[str, str, int]]:
        return [(f"calib-{pid}", text, self.config["calibration"]["seed"]) for pid, text in self.calibration_prompts.items]

    @cached_property
    def statistics_key(self) -> str:
        """Key of the calibration of this model and sampler on these prompts: the same for every recipe and bit-width."""
        return key_of([CALIBRATION, self.model.semantic, self.sampler.semantic, self.calibration_samples])

    @property
    def calibration_key(self) -> str | None:
        """The same, if the recipe needs it."""
        return self.statistics_key if self.recipe.needs_calibration else None

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What changes a video of this cell, besides its sample."""
        return {
            "version": GENERATION,
            "model": self.model.semantic,
            "sampler": self.sampler.semantic,
            "recipe": self.recipe.semantic(),
            "kernel": None if self.recipe.is_fp else self.config["kernel"]["name"],
            "calibration": self.calibration_key,
        }

    @property
    def layers_key(self) -> str:
        """Key of what is measured on the quantized layers."""
        return key_of(["report", self.generation])

    @property
    def report_key(self) -> str:
        """Key of the account of sizes and bits."""
        return key_of(["report", ACCOUNT, self.config["kernel"], self.generation])

    def video_key(self, sample: tuple[str, str, int]) -> str:
        return key_of([self.generation, sample])

    @cached_property
    def key(self) -> str:
        """Identity of the cell: its generation and its samples; metrics can be added without changing it."""
        return key_of([self.generation, self.samples])

    @property
    def method(self) -> str:
        return self.config["method"]["name"]

    @property
    def bits(self) -> str:
        return "fp" if self.recipe.is_fp else self.config["bits"]["name"]

    @property
    def label(self) -> str:
        return self.method if self.recipe.is_fp else f"{self.method}-{self.bits}"

    @property
    def run_dir(self) -> Path:
        return self.out / "runs" / self.model.name / f"{self.label}-{self.key}"

    def reference(self) -> Cell:
        """The same cell in full precision."""
        return self if self.recipe.is_fp else self._reference

    @cached_property
    def _reference(self) -> Cell:
        method = {"name": "fp", "weight": None, "activation": None}
        config = {**self.config, "method": method, "bits": {"name": "fp", "weight": 16, "activation": 16}}
        return Cell(
            config,
            self.model,
            self.sampler,
            Recipe.from_config(method, config["bits"], self.sampler.steps),
            self.prompts,
            self.calibration_prompts,
        )


def pin_threads() -> None:
    """Waiting threads must sleep: spinning ones make two processes on one machine many times slower than one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
