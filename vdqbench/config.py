"""From the composed configuration to a cell: typed, frozen, validated, and without importing torch."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, NotHere, nearest
from vdqbench.inputs import NAMES, Input
from vdqbench.models import samplers
from vdqbench.prompts import PromptSet
from vdqbench.quant.parts import build, find
from vdqbench.quant.recipe import Recipe, on_model
from vdqbench.sources import WEIGHTS, Source, digest
from vdqbench.store import key_of

__all__ = ["CONF", "WEIGHTS", "Asset", "Cell", "Model", "Sampler", "Settings", "digest", "typed"]
PACKAGE = Path(__file__).resolve().parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if (folder / "config.yaml").is_file())
GENERATION, CALIBRATION, ACCOUNT, CONDITION = 1, 2, 3, 1
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
            if field.default is not MISSING:
                continue
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
    """How latents are sampled.

    Attributes:
        name: one of `vdqbench.models.samplers.NAMES`; `model` is the scheduler in the model's own folder.
        steps: that the scheduler is asked for.
        guidance: scale of classifier-free guidance, embedded or not.
        guided_channels: on how many latent channels guidance acts; None for all.
        options: of the scheduler, over those of the model's own (`shift`, `use_karras_sigmas`, ...).
    """

    name: str
    steps: int
    guidance: float
    guided_channels: int | None
    options: Any

    def __post_init__(self) -> None:
        if self.name not in samplers.NAMES:
            raise ConfigError(f"sampler.name={self.name} is not a sampler{nearest(self.name, samplers.NAMES)}")
        if not 2 <= self.steps <= 1000:
            raise ConfigError(f"sampler.steps={self.steps} must lie in 2..1000")
        at_least("sampler.guidance", self.guidance, 0)
        at_least("sampler.guided_channels", self.guided_channels or 0, 0)
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"sampler.options={self.options} must be a mapping of the scheduler's options, such as {{shift: 7}}")

    @property
    def semantic(self) -> dict[str, Any]:
        """What changes the trajectory; the fingerprint that a calibration must match."""
        made = {"name": self.name, "steps": self.steps, "guidance": float(self.guidance), "guided_channels": self.guided_channels}
        return {**made, "options": dict(self.options)} if self.options else made


@dataclass(frozen=True)
class Asset:
    """Weights of one part of a model, or of a metric's network, to be had from elsewhere.

    Attributes:
        part: what they are of: `denoiser`, `text_encoder`, `vae`, ...; the adapter knows the names.
        source: `hub:OWNER/NAME`, `hub:OWNER/NAME@REVISION`, the address of a file, `torchvision:NAME`, or a folder.
        gigabytes: size of the files, in 10^9 bytes; None if nobody states it.
        licence: its name, as their authors give it.
        files: paths or patterns below the source.
        gated: whether the licence must be accepted on the hub first.
        sha256: of the files by path, where it is known; all of it, or its first digits, at least 8.
    """

    part: str
    source: str
    gigabytes: float | None
    licence: str
    files: tuple[str, ...] = ("*",)
    gated: bool = False
    sha256: Any = None

    @property
    def where(self) -> Source:
        return Source(self.source)

    @property
    def is_here(self) -> bool:
        """Whether all files are on this machine."""
        return not self.where.missing(self.files)

    @property
    def elsewhere(self) -> bool:
        """Whether it can be fetched, from the hub or the web."""
        return bool(self.where.repository or self.where.address)

    @property
    def size(self) -> str:
        return "of unknown size" if self.gigabytes is None else f"{self.gigabytes:g} GB"

    def absent(self, owner: str) -> ConfigError:
        """The error that says so; see `lacking`."""
        return (NotHere if self.elsewhere else ConfigError)(self.lacking(owner))

    def lacking(self, owner: str) -> str:
        """That it is not on this machine, in one sentence, and the command that fetches it for `owner` (`model=NAME`, `metric=[NAME]`)."""
        where = self.where
        if not self.elsewhere:
            return f"{owner}: {self.source} lacks {', '.join(where.missing(self.files))} of its {self.part}; give the folder that holds it"
        first = f"accept its licence on https://huggingface.co/{where.repository}, log in with hf auth login, and " if self.gated else ""
        command = f"vdqbench prefetch {shlex.join(owner.split())}"
        return (
            f"{owner} needs its {self.part} ({self.source}, {self.size}, {self.licence}), which is not on this machine: "
            f"{first}run {command}"
        )


DTYPES, OFFLOADS = ("float32", "bfloat16", "float16"), ("none", "stages", "layers")
NEED = ("required", "optional")
CALIB = "calib-"
"""Beginning of the ids of calibration prompts."""


@dataclass(frozen=True)
class Model:
    """Which video model, where its weights are, and how it is run.

    Attributes:
        adapter: its class, as a dotted path.
        weights: `packaged`, `packaged/NAME`, `hub:OWNER/NAME` or a folder with all `files`; None if each part is where its asset says.
        files: paths or patterns of the files that the model is made of, below `weights`.
        dtype: of the parameters: float32, bfloat16 or float16.
        offload: `none`: all parts stay loaded; `stages`: one part at a time (text encoder, denoiser, VAE); `layers`: besides, the
            denoiser's layers are moved to the device one after the other. It changes no video.
        call: what each generation is asked for: height, width, num_frames, ...
        options: of the adapter, other than that.
        samplers: names of the samplers it can be sampled with, its usual one first.
        steps, guidance, guided_channels: usual values of `sampler`.
        sites: layers that a method quantizes on it besides those it names, and their bits (see `on_model`).
        inputs: conditioning inputs it takes besides the prompt (`image`, `sketch`, `pose`): `required` or `optional`.
        assets: weights that it needs from elsewhere.
        vocabulary: file with the only words that prompts may have.
        unavailable: why it cannot be run, if it cannot.
        parameters: of the denoiser, for lists; in no key.
    """

    name: str
    adapter: str | None
    weights: str | None
    files: tuple[str, ...]
    dtype: str
    offload: str
    call: Any
    options: Any
    samplers: tuple[str, ...]
    steps: int
    guidance: float
    guided_channels: int | None
    sites: Any
    inputs: Any
    assets: tuple[Asset, ...]
    vocabulary: str | None
    clip: Any
    unavailable: str | None
    parameters: int | None = None

    def __post_init__(self) -> None:
        for key, value, known in (("dtype", self.dtype, DTYPES), ("offload", self.offload, OFFLOADS)):
            if value not in known:
                raise ConfigError(f"model.{key}={value} is not a choice{nearest(value, known)}")
        for key in ("call", "options", "sites", "inputs"):
            if not isinstance(getattr(self, key), Mapping):
                raise ConfigError(f"model.{key}={getattr(self, key)} must be a mapping")
        for key in ("files", "samplers", "assets"):
            if not isinstance(getattr(self, key), tuple):
                raise ConfigError(f"model.{key}={getattr(self, key)} must be a list")
        for name in self.samplers:
            if name not in samplers.NAMES:
                raise ConfigError(f"model.samplers has {name}, which is not a sampler{nearest(name, samplers.NAMES)}")
        for name, need in self.inputs.items():
            if name not in NAMES:
                raise ConfigError(f"model.inputs.{name} is not an input{nearest(name, NAMES)}")
            if need not in NEED:
                raise ConfigError(f"model.inputs.{name}={need} is not a choice{nearest(need, NEED)}")
        if len({asset.part for asset in self.assets}) < len(self.assets):
            raise ConfigError(f"model.assets names a part of {self.name} twice; give each part one source")

    @classmethod
    def from_config(cls, node: Mapping[str, Any]) -> Model:
        """Raises ConfigError for a node that does not describe a model."""
        given = node.get("assets") or []
        if not isinstance(given, list) or not all(isinstance(one, Mapping) for one in given):
            raise ConfigError(f"model.assets={given} must be a list of mappings with part, source, gigabytes and licence")
        assets = tuple(typed(Asset, one, f"model.assets.{index}") for index, one in enumerate(given))
        return replace(typed(cls, {**node, "assets": []}, "model"), assets=assets)

    @property
    def source(self) -> Source | None:
        """Where the whole model is; None if each part is somewhere else."""
        return None if self.weights is None else Source(self.weights)

    @property
    def folder(self) -> Path:
        """The folder of the whole model, which must be on this machine (`check`)."""
        return (self.source and self.source.folder) or Path()

    def where(self, part: str) -> Path:
        """The folder of a part of a model: that of its asset, if each part is somewhere else.

        Raises:
            ConfigError: no asset is of this part, or it is not on this machine.
        """
        if self.source is not None:
            return self.folder
        asset = next((one for one in self.assets if one.part == part), None)
        if asset is None:
            raise ConfigError(f"model.assets says nothing about {part} of {self.name}; add its source, or give model.weights=FOLDER")
        if (folder := asset.where.folder) is None:
            raise asset.absent(self.words)
        return folder

    @property
    def fetched(self) -> tuple[Asset, ...]:
        """What is to be had from elsewhere: each part from where its asset says, or all of it from the hub."""
        if self.source is None:
            return tuple(asset for asset in self.assets if asset.elsewhere)
        return (Asset("weights", str(self.weights), None, "see there", self.files),) if self.source.repository else ()

    @property
    def words(self) -> str:
        """What names it, and its weights, on a command line."""
        return f"model={self.name}" + (f" model.weights={self.weights}" if self.source and self.source.repository else "")

    @property
    def is_here(self) -> bool:
        """Whether all its weights are on this machine."""
        return all(asset.is_here for asset in self.assets) if self.source is None else not self.source.missing(self.files)

    def check(self, here: bool = True) -> None:
        """Raises ConfigError if the model cannot be run (here, unless that is not asked), before anything is loaded."""
        if self.unavailable:
            raise ConfigError(f"model={self.name} cannot be run: {self.unavailable}")
        if not here:
            return
        if self.source is None and not self.assets:
            raise ConfigError(f"model.weights of {self.name} is missing; give model.weights=FOLDER or model.weights=hub:OWNER/NAME")
        if self.source is None:
            for asset in self.assets:
                if not asset.is_here:
                    raise asset.absent(self.words)
        for asset in self.fetched if self.source else ():
            if not asset.is_here:
                raise asset.absent(self.words)
        for file in self.source.missing(self.files) if self.source else ():
            raise ConfigError(
                f"model.weights={self.weights} lacks {file} (looked in {self.folder}); "
                "give the folder that holds it as model.weights=FOLDER"
            )

    @cached_property
    def scheduler_config(self) -> dict[str, Any]:
        """Configuration of the scheduler in the model's own folder; empty if it has none."""
        folders = [self.source.folder] if self.source else [asset.where.folder for asset in self.assets]
        files = [folder / "scheduler" / "scheduler_config.json" for folder in folders if folder is not None]
        return next((json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()), {})

    def steps_of(self, sampler: Sampler) -> int:
        """How many steps of the scheduler a generation really takes."""
        if sampler.name != "model":
            return samplers.scheduler_steps(sampler.name, sampler.steps, sampler.options)
        name, options = samplers.name_of(self.scheduler_config), {**self.scheduler_config, **sampler.options}
        return samplers.scheduler_steps(name, sampler.steps, {"skip_prk_steps": False, **options})

    def check_sampler(self, sampler: Sampler) -> None:
        """Raises ConfigError if the model cannot be sampled this way."""
        if sampler.name not in self.samplers:
            raise ConfigError(
                f"sampler.name={sampler.name} does not fit model={self.name}, which is sampled with {' or '.join(self.samplers)}; "
                "choose one of them, or leave sampler out for the first"
            )

    def check_prompts(self, prompts: PromptSet) -> None:
        """Raises ConfigError if a prompt has words that a model with a closed vocabulary was not taught."""
        if self.vocabulary is None:
            return
        known = set(json.loads((self.where("pipeline") / self.vocabulary).read_text(encoding="utf-8"))["vocabulary"])
        for _, text in prompts.items:
            if strange := sorted(set(text.lower().split()) - known):
                raise ConfigError(
                    f"prompts={prompts.name}: {text!r} has words that {self.name} was not taught ({', '.join(strange)}); "
                    f"it knows {', '.join(sorted(known))}"
                )

    @cached_property
    def semantic(self) -> dict[str, Any]:
        """What changes a video: name, what the weights are (not where they lie), and what else is not as by default."""
        if self.source is not None:
            weights: dict[str, Any] = self.source.identity(self.files)
        else:
            weights = {asset.part: asset.where.identity(asset.files) for asset in self.assets}
        made: dict[str, Any] = {"name": self.name, "weights": weights}
        if self.dtype != "float32":
            made["dtype"] = self.dtype
        return {**made, **{key: dict(getattr(self, key)) for key in ("call", "options") if getattr(self, key)}}


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
    def from_config(cls, config: Mapping[str, Any], here: bool = True) -> Cell:
        """Validate a composed configuration (a plain, resolved mapping).

        Args:
            here: whether the model's weights must be on this machine; without them the cell has no keys.

        Raises:
            ConfigError: one sentence with key, value and expectation.
        """
        typed(Settings, {key: value for key, value in config.items() if key not in GROUPS}, "")
        for group in GROUPS[:-3]:
            if not isinstance(config.get(group), Mapping):
                raise ConfigError(f"{group} is missing; choose one with {group}=NAME")
        model = Model.from_config(config["model"])
        model.check(here)
        sampler = typed(Sampler, config["sampler"], "sampler")
        model.check_sampler(sampler)
        for group in ("model", "method", "bits", "prompts"):
            name = config[group].get("name")
            if not re.fullmatch(r"\w[\w.+-]*", str(name)):
                raise ConfigError(f"{group}.name={name} must be letters, digits and _ . + -, since folders are named after it")
        kernel = dict(config["kernel"])
        build(find("kernels", kernel.pop("name", None), "kernel.name"), kernel)
        recipe = Recipe.from_config(on_model(config["method"], model.sites), config["bits"], model.steps_of(sampler))
        takes = model.inputs if here or model.is_here else dict.fromkeys(model.inputs, "optional")  # a plan on paper needs no pictures
        prompts = PromptSet.from_config(config["prompts"], takes=takes)
        calibration = PromptSet.from_config(config["calibration"].get("prompts"), "calibration.prompts", takes)
        if not isinstance(config["calibration"].get("seed"), int):
            raise ConfigError(f"calibration.seed={config['calibration'].get('seed')} must be of type int")
        for one in (prompts, calibration):
            if here or model.is_here:
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
        return [(f"{CALIB}{pid}", text, self.config["calibration"]["seed"]) for pid, text in self.calibration_prompts.items]

    def inputs(self, sample: tuple[str, str, int]) -> Mapping[str, Input]:
        """Conditioning inputs of a sample by name."""
        prompts = self.calibration_prompts if sample[0].startswith(CALIB) else self.prompts
        return prompts.inputs.get(sample[0].removeprefix(CALIB), {})

    def _identities(self, *samples: tuple[str, str, int]) -> list[Any]:
        """What names the inputs of samples, as the end of a key; empty where there are none, so that keys are as without them."""
        made = [{name: one.identity for name, one in self.inputs(sample).items()} for sample in samples]
        return [made] if any(made) else []

    @cached_property
    def statistics_key(self) -> str:
        """Key of the calibration of this model and sampler on these prompts: the same for every recipe and bit-width."""
        samples = self.calibration_samples
        return key_of([CALIBRATION, self.model.semantic, self.sampler.semantic, samples, *self._identities(*samples)])

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

    def condition_key(self, sample: tuple[str, str, int]) -> str:
        """Key of what the denoiser is told of a sample: the same for every seed, sampler and recipe."""
        return key_of(["condition", CONDITION, self.model.semantic, sample[1], *self._identities(sample)])

    def video_key(self, sample: tuple[str, str, int]) -> str:
        return key_of([self.generation, sample, *self._identities(sample)])

    @cached_property
    def key(self) -> str:
        """Identity of the cell: its generation and its samples; metrics can be added without changing it."""
        return key_of([self.generation, self.samples, *self._identities(*self.samples)])

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
            Recipe.from_config(method, config["bits"], self.recipe.steps),
            self.prompts,
            self.calibration_prompts,
        )


def pin_threads() -> None:
    """Waiting threads must sleep: spinning ones make two processes on one machine many times slower than one."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
