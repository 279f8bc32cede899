"""Prompt sets: ordered texts with stable ids."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.inputs import SHAPES, Input, inputs_of

KEYS = {"name", "shapes", "texts", "file", "sha256", "limit", "inputs"}


@dataclass(frozen=True)
class PromptSet:
    """A named list of (id, text); ids are positions in the whole set, so a subset keeps the noise of the whole.

    Attributes:
        inputs: conditioning inputs by id and name.
    """

    name: str
    items: tuple[tuple[str, str], ...]
    inputs: Mapping[str, Mapping[str, Input]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, node: Mapping[str, Any], where: str = "prompts", takes: Mapping[str, str] | None = None) -> PromptSet:
        """Build the set that a `prompts` node describes.

        Exactly one of `shapes` (a split of the shapes videos), `texts` (a list) and `file` (one prompt a line, with an
        optional `sha256`) says where the texts come from; `limit` keeps the first ones; `inputs` says what comes with them
        (see `inputs_of`). Required inputs of captions of shapes videos are pictures of these unless it says otherwise.

        Args:
            takes: which inputs the model takes, each `required` or `optional`; None to ask for none and take all.

        Raises:
            ConfigError: none or several sources, a missing or altered file, an empty set, a limit below one, inputs that the model
                does not take, or lacks.
        """
        if not isinstance(node, Mapping):
            raise ConfigError(
                f"{where}={node} is not a prompt set; choose one as a group: {'prompts@' if '.' in where else ''}{where}=shapes_calib"
            )
        if unknown := sorted(set(node) - KEYS):
            raise ConfigError(f"{where}.{unknown[0]} is not an option of {where}{nearest(unknown[0], KEYS)}")
        if not isinstance(node.get("texts") or [], list):
            raise ConfigError(
                f"{where}.texts={node['texts']!r} must be a list, such as '{where}.texts=[\"a red circle growing on a dark background\"]'"
            )
        for key in ("shapes", "file", "sha256"):
            if not isinstance(node.get(key) or "", str):
                raise ConfigError(f"{where}.{key}={node[key]!r} must be of type str")
        sources = [key for key in ("shapes", "texts", "file") if node.get(key)]
        if len(sources) != 1:
            given = ", ".join(sources) or f"none; give {where}.file=PATH, or choose a set such as {where}=shapes_small"
            raise ConfigError(f"{where} must have exactly one of shapes, texts and file, got {given}")
        texts = {"shapes": _shapes, "texts": lambda texts, *_: list(texts), "file": _lines}[sources[0]](node[sources[0]], node, where)
        texts = [str(text).strip() for text in texts if str(text).strip()]
        limit = node.get("limit")
        if limit is not None and not (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1):
            raise ConfigError(f"{where}.limit={limit} must be a whole number of at least 1, or null for all prompts")
        if not texts:
            raise ConfigError(f"{where}.{sources[0]} holds no prompt; it needs at least one line of text")
        items = tuple((f"{index:04d}", text) for index, text in enumerate(texts))
        inputs = inputs_of(_wanted(node, takes, where), items, f"{where}.inputs")
        return cls(node["name"], items[:limit], {pid: inputs[pid] for pid, _ in items[:limit] if pid in inputs})


def _wanted(node: Mapping[str, Any], takes: Mapping[str, str] | None, where: str) -> Any:
    """`inputs` of a prompt set, with what its model needs."""
    given = node.get("inputs") or {}
    if takes is None or not isinstance(given, Mapping):
        return given
    given = {name: spec for name, spec in given.items() if spec is not None}
    for name in given:
        if name not in takes:
            raise ConfigError(f"{where}.inputs.{name}={given[name]}: this model takes {' or '.join(takes) or 'nothing'} besides the prompt")
    for name, need in takes.items():
        if need == "required" and name not in given:
            if not node.get("shapes"):
                raise ConfigError(
                    f"{where}.inputs.{name} is missing: this model needs one for each prompt; give {where}.inputs.{name}=FOLDER"
                )
            given[name] = SHAPES
    return given


def _shapes(split: str, node: Mapping[str, Any], where: str) -> list[str]:
    from vdqbench import shapes

    if split not in shapes.SPLITS:
        raise ConfigError(f"{where}.shapes={split} is not a split of the shapes videos{nearest(split, shapes.SPLITS)}")
    return [scene.caption for scene in shapes.scenes(split)]


def _lines(file: str, node: Mapping[str, Any], where: str) -> list[str]:
    path = Path(file).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{where}.file={file} cannot be read ({error.strerror}); give the path of a text file with one prompt a line"
        ) from error
    expected = node.get("sha256")
    if expected and (actual := hashlib.sha256(data).hexdigest()) != expected:
        raise ConfigError(
            f"{where}.file={file} has SHA-256 {actual}, expected {expected}; fetch the original file or set {where}.sha256=null"
        )
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}.file={file} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
