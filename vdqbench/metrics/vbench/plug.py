"""Networks of the user's own: `{_target_: package.module.Class, option: value}` becomes an object that a dimension can use."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from vdqbench.errors import ConfigError


def plug(spec: Any, key: str, methods: tuple[str, ...], **shared: Any) -> Any:
    """Build what `spec` describes; it must have a `name`, which goes into the score's name, `protocol()`, and these methods.

    Args:
        spec: the class by its dotted path, and its options.
        key: of the option, for errors.
        methods: names of the methods it must have.
        shared: the metric's own options, handed on where the class takes an option of that name.

    Raises:
        ConfigError: nothing is described, it cannot be imported or built, or it lacks something.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("_target_"), str):
        raise ConfigError(f"{key}={spec!r} must be like {{_target_: package.module.Class, option: value}}, a class with {_list(methods)}")
    target = spec["_target_"]
    module, _, name = target.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target} cannot be imported ({error}); give the dotted path of a class") from error
    try:
        known = inspect.signature(kind).parameters
        options = {**{option: value for option, value in shared.items() if option in known}, **spec}
        options.pop("_target_")
        built = kind(**options)
    except TypeError as error:
        raise ConfigError(f"{key}._target_={target} cannot be built from {sorted(set(spec) - {'_target_'})} ({error})") from error
    for method in ("protocol", *methods):
        if not callable(getattr(built, method, None)):
            raise ConfigError(f"{key}._target_={target} has no {method}(); it needs {_list(methods)}")
    if not re.fullmatch(r"[a-z0-9_]+", str(getattr(built, "name", ""))):
        raise ConfigError(f"{key}._target_={target} needs a name of small letters, digits and _, since the score is named after it")
    return built


def _list(methods: tuple[str, ...]) -> str:
    return ", ".join(("name", "protocol()", *(f"{method}()" for method in methods)))
