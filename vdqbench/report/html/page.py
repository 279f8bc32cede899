"""From the mapping to one HTML file: markup, style, scripts and data in one piece, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import datetime
import hashlib
import html
import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vdqbench import __version__
from vdqbench.report.html.data import page_data
from vdqbench.report.html.gather import Found, Videos
from vdqbench.store import write_atomic

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("dom", "data", "grid", "scale", "plot", "charts", "heat", "player", "cells", "plots", "tables", "cell", "app")
"""Parts of the script, in the order in which they need each other."""


def page(data: Mapping[str, Any]) -> str:
    """The page of a mapping as `data.page_data` makes it."""
    style, script = _asset("page.css"), _script()
    title = html.escape(str(data["title"]))
    parts = {"POLICY": _policy(style, script), "TITLE": title, "STYLE": style, "DATA": embedded(data), "SCRIPT": script}
    left, made = _asset("page.html"), []
    for name, text in parts.items():
        before, mark, left = left.partition("{{" + name + "}}")
        if not mark:
            raise ValueError(f"page.html has no place for {name}, or not in this order")
        made += [before, text]
    return "".join(made) + left


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: nothing in it can end the element, open a comment or be taken for markup.

    Numbers that are not finite become the words `inf`, `-inf` and `nan`.
    """
    text = json.dumps(_plain(data), allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _policy(style: str, script: str) -> str:
    """Only this style and this script, and media from within the page or beside it; no network."""
    return (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "img-src data: blob:; media-src 'self' data: blob: file:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _script() -> str:
    parts = "\n".join(_asset(f"{name}.js") for name in SCRIPTS)
    return f'\n(() => {{\n"use strict";\n{parts}\n}})();\n'


def write(found: Found, path: Path, title: str, videos: Videos) -> int:
    """Write the page of what was read, in one step; returns its size in bytes."""
    made = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    text = page(page_data(found, title, made, __version__, videos))
    content = text.encode("utf-8", errors="replace")
    write_atomic(path, lambda file: file.write_bytes(content))
    return len(content)
