"""What a pipeline of diffusers is made of, known from configurations alone, and its parts one by one.

A pipeline is first built without weights: networks on the meta device, text encoders left out. That tells roles, shapes and costs,
and is what weights are loaded into when they are needed.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from vdqbench.config import Model
from vdqbench.errors import ConfigError

LIBRARIES = {"diffusers": diffusers, "transformers": transformers}
"""Where classes of parts come from; code of a checkpoint's own is never run."""
ENCODER = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
DENOISER = ("unet", "transformer", "transformer_2", "controlnet", "motion_adapter")
DECODER = ("vae",)
SMALL = ("scheduler", "guider")
"""Parts without weights, which are always there."""
PARTS = (*ENCODER, *DENOISER, *DECODER, *SMALL)
"""All that a pipeline may be made of here; what else it may have (safety checkers, image adapters) is left out."""
UNBOUNDED = 10**6
"""Lengths of a tokenizer from here on say that it has none."""


@dataclass(frozen=True)
class Part:
    """A part of a pipeline: its class, its configuration, and its folder, if it has weights on this machine."""

    kind: type
    config: Mapping[str, Any]
    folder: Path | None = None

    def empty(self) -> Any:
        """Built from its configuration alone; parameters on the meta device."""
        with torch.device("meta" if issubclass(self.kind, nn.Module) else "cpu"):
            return self.kind.from_config(dict(self.config))  # type: ignore[attr-defined]

    def load(self, dtype: torch.dtype) -> Any:
        """With its weights, from safetensors alone; without gradients."""
        if self.folder is None:
            raise ConfigError(f"{self.kind.__name__} is known from its configuration alone; give model.weights=FOLDER to load it")
        if not issubclass(self.kind, nn.Module):
            return self.kind.from_pretrained(self.folder, local_files_only=True)  # type: ignore[attr-defined]
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
        if self.kind.__module__.startswith("transformers"):
            options |= {"dtype": dtype}
        else:
            options |= {"torch_dtype": dtype, "low_cpu_mem_usage": importlib.util.find_spec("accelerate") is not None}
        with _quiet():
            return self.kind.from_pretrained(self.folder, **options).eval().requires_grad_(False)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Blueprint:
    """A pipeline's class, its parts by name, and its other options.

    Attributes:
        options: values that the pipeline itself is constructed with.
        tokens: longest text of its tokenizer, if that is bounded.
        about: what its folder says in `vdq.json`: `call` and `fps`, which are no part of diffusers' layout.
    """

    kind: type
    parts: Mapping[str, Part]
    options: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_model(cls, model: Model) -> Blueprint:
        """From the folders of a model: its own, or those of its assets `pipeline` and, by name, of single parts.

        Raises:
            ConfigError: a folder is not in diffusers' layout, or a part is of a class that diffusers and transformers do not have.
        """
        apart = {asset.part for asset in model.assets} if model.source is None else set()
        home = model.where("pipeline")
        index = _json(home / "model_index.json")
        kind = _pipeline(model.options.get("pipeline") or index.get("_class_name"))
        parts, options = {}, {}
        for name in _arguments(kind):
            listed = index.get(name)
            if name in apart:
                parts[name] = _part(model.where(name), None)
            elif name in PARTS and isinstance(listed, list) and listed[0]:
                parts[name] = _part(home / name, listed)
            elif name in index and not isinstance(listed, list):
                options[name] = listed
        _check_parts(parts, home)
        bound = _json(home / "tokenizer" / "tokenizer_config.json", {}).get("model_max_length", UNBOUNDED)
        return cls(kind, parts, options, bound if bound < UNBOUNDED else None, _json(home / "vdq.json", {}))

    @classmethod
    def of_architecture(cls, path: Path) -> Blueprint:
        """From one file with the class and the configurations, for a model whose weights are not here."""
        described = _json(path)
        parts = {name: Part(_class("diffusers", config["_class_name"]), config) for name, config in described["parts"].items()}
        return cls(_pipeline(described["pipeline"]), parts, described.get("options", {}), described.get("tokens"))

    def outline(self, kind: type | None = None) -> Any:
        """The pipeline without weights.

        Args:
            kind: a class to take the place of the pipeline's own.
        """
        given = {name: part.empty() for name, part in self.parts.items() if name not in ENCODER}
        with torch.device("meta"):  # AnimateDiff's put the parts of their denoiser together themselves
            return (kind or self.kind)(**{name: None for name in _arguments(self.kind)} | given | dict(self.options))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars of its libraries: generation has its own."""
    shown = [one for one in (diffusers.utils.logging, transformers.utils.logging) if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()


def _arguments(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]  # type: ignore[misc]


def _pipeline(name: Any) -> type:
    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise ConfigError(f"model.options.pipeline: {name} is not a pipeline of diffusers {diffusers.__version__}")
    return kind


def _check_parts(parts: Mapping[str, Part], home: Path) -> None:
    """Raises ConfigError if something is missing that no pipeline here can do without."""
    for wanted in (("scheduler",), DECODER, ("unet", "transformer")):
        if not set(wanted) & set(parts):
            raise ConfigError(f"{home / 'model_index.json'} names no {' or '.join(wanted)}, which a video pipeline has")
    if "unet" in parts and issubclass(parts["unet"].kind, diffusers.UNet2DConditionModel) and "motion_adapter" not in parts:
        raise ConfigError(
            f"{home} holds a UNet of images; add the part motion_adapter to model.assets, or give the folder of a video pipeline"
        )


def _part(folder: Path, listed: Any) -> Part:
    names = [folder / name for name in ("config.json", "scheduler_config.json", "guider_config.json")]
    config: dict[str, Any] = next((_json(file) for file in names if file.is_file()), {})
    library, name = listed or ("diffusers", config.get("_class_name"))
    return Part(_class(library, name), config, folder)


def _class(library: str, name: Any) -> type:
    kind = getattr(LIBRARIES.get(library), str(name), None)
    if not isinstance(kind, type):
        raise ConfigError(
            f"the part {name} of {library} is no class of diffusers {diffusers.__version__} or transformers; its code is not run"
        )
    return kind


def _json(path: Path, default: Any = None) -> Any:
    if not path.is_file() and default is not None:
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is missing or not JSON; model.weights must be a folder in the layout of diffusers' pipelines") from error
