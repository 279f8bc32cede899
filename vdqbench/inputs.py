"""Conditioning inputs of prompts (image, sketch, pose): the user's files, or pictures of the shapes videos that captions describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.sources import digest
from vdqbench.store import key_of

if TYPE_CHECKING:
    import numpy as np

    from vdqbench.store import Store

NAMES = ("image", "sketch", "pose")
SHAPES = "shapes"
"""In the place of files: pictures of the shapes video of each caption."""
RENDERED = ("image", "sketch")
VERSION, SEED = 1, 2024
"""Of those pictures: version of how they are made, and seed of the videos that they are taken from."""
EDGE = 24
"""Difference of neighbouring pixels, of 255, from which on a sketch has a line between them."""


@dataclass(frozen=True)
class Input:
    """What a prompt comes with.

    Attributes:
        name: `image`, `sketch` or `pose`.
        path: an image; for a pose a video or a folder of frames. None for a picture of the shapes video of `caption`.
        index: of the prompt; the shapes videos of two prompts begin in different places.
    """

    name: str
    path: Path | None = None
    caption: str = ""
    index: int = 0

    @cached_property
    def identity(self) -> Any:
        """What names its content, wherever it lies."""
        if self.path is None:
            return [SHAPES, VERSION, self.name, self.caption, self.index]
        files = sorted(self.path.iterdir()) if self.path.is_dir() else [self.path]
        return [digest(file) for file in files if file.is_file()]

    def file(self, store: Store) -> Path:
        """Where it lies; a picture is made and put into the store, once."""
        if self.path is not None:
            return self.path
        where = ("input", key_of(self.identity), ".png")
        return store.get(*where) or store.put(*where, partial(_save, self.picture()))

    def picture(self) -> np.ndarray:
        """The picture of the caption, uint8 [H, W, 3]."""
        import numpy as np

        from vdqbench import shapes

        frame = shapes.render([shapes.Scene.from_caption(self.caption)], SEED, np.array([self.index]))[0, 0]
        return sketched(frame) if self.name == "sketch" else frame


def sketched(image: np.ndarray) -> np.ndarray:
    """White lines on black, uint8 [H, W, 3], where neighbouring pixels of an image [H, W, 3] differ by `EDGE` in some channel."""
    import numpy as np

    across, down = (np.abs(np.diff(image.astype(int), axis=axis)).max(-1) >= EDGE for axis in (1, 0))
    lines = np.zeros(image.shape[:2], bool)
    lines[:, :-1] |= across
    lines[:-1] |= down
    return np.repeat(lines[..., None].astype(np.uint8) * 255, 3, axis=-1)


def inputs_of(node: Any, items: Sequence[tuple[str, str]], where: str) -> dict[str, dict[str, Input]]:
    """Inputs by prompt id and name, as `prompts.inputs` gives them.

    Args:
        node: by name, `shapes`, a folder whose files in natural order belong to the prompts in order, or a path with {id} in the
            place of a prompt's id; null for none.
        items: (id, text) of all prompts of the set.

    Raises:
        ConfigError: a name or picture that does not exist, files that are missing, or more or fewer than prompts.
    """
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where}={node} must be a mapping such as {{image: FOLDER}}")
    found: dict[str, dict[str, Input]] = {}
    for name, spec in node.items():
        if name not in NAMES:
            raise ConfigError(f"{where}.{name} is not an input{nearest(str(name), NAMES)}")
        if spec is None:
            continue
        if not isinstance(spec, str):
            raise ConfigError(f"{where}.{name}={spec!r} must be shapes, a folder, or a path with {{id}} in it")
        made = _rendered(name, items, where) if spec == SHAPES else _files(name, Path(spec).expanduser(), items, where)
        for (pid, _), one in zip(items, made, strict=True):
            found.setdefault(pid, {})[name] = one
    return found


def _rendered(name: str, items: Sequence[tuple[str, str]], where: str) -> list[Input]:
    from vdqbench import shapes

    if name not in RENDERED:
        raise ConfigError(f"{where}.{name}=shapes: shapes videos have no picture of this kind{nearest(name, RENDERED)}")
    for _, text in items:
        try:
            shapes.Scene.from_caption(text)
        except ValueError as error:
            raise ConfigError(f"{where}.{name}=shapes: {error}; give a folder with one file for each prompt") from None
    return [Input(name, caption=text, index=int(pid)) for pid, text in items]


def _files(name: str, path: Path, items: Sequence[tuple[str, str]], where: str) -> list[Input]:
    if "{id}" in str(path):
        files = [Path(str(path).replace("{id}", pid)) for pid, _ in items]
        for file in files:
            if not file.exists():
                raise ConfigError(f"{where}.{name}={path}: there is no {file}; prompts are numbered from 0000")
        return [Input(name, file) for file in files]
    if not path.is_dir():
        raise ConfigError(f"{where}.{name}={path} is not a folder; give one with a file for each prompt, or a path with {{id}} in it")
    from vdqbench import video

    files = video.listing(path)[0] if name == "pose" else video.images(path)
    if len(files) != len(items):
        raise ConfigError(f"{where}.{name}={path} holds {len(files)} files for {len(items)} prompts; give one for each, in their order")
    return [Input(name, file) for file in files]


def _save(picture: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path, format="PNG")
