"""check this installation: versions, devices, threads, video codecs, weights, store; says what is missing and the remedy"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vdqbench.environment import PACKAGES, environment, installed

Finding = tuple[str, bool, str, str]
"""What was checked, whether it is well, what was found, and the remedy if it is not."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench doctor", description=__doc__)
    parser.add_argument("out", nargs="?", default="results", type=Path, help="the results folder (out=...)")
    options = parser.parse_args(arguments)
    checks: tuple[Callable[[Path], list[Finding]], ...] = (packages, machine, codecs, weights, store)
    findings = [finding for check in checks for finding in check(options.out)]
    table = Table("what", "", "found", "remedy", box=None)
    for what, well, found, remedy in findings:
        table.add_row(what, "ok" if well else "MISSING", found, "" if well else remedy, style=None if well else "yellow")
    Console(highlight=False).print(table)
    return int(any(not well for _, well, _, _ in findings))


def packages(out: Path) -> list[Finding]:
    found = [(name, installed(name)) for name in PACKAGES]
    return [(name, version is not None, version or "not installed", f"pip install {name}") for name, version in found]


def machine(out: Path) -> list[Finding]:
    here = environment()
    result: list[Finding] = [
        ("python", True, here["python"], ""),
        ("processor", True, f"{here['processor']}, {here['cores']} cores", ""),
    ]
    try:
        import torch
    except ImportError as error:
        return [*result, ("torch", False, str(error), "pip install torch")]
    threads = f"{torch.get_num_threads()} threads, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', 'unset')}"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [*result, ("threads", True, threads, ""), ("devices", True, ", ".join(["cpu", *devices]), "")]


def codecs(out: Path) -> list[Finding]:
    try:
        import av
    except ImportError as error:
        return [("PyAV", False, str(error), "pip install av")]
    missing = [name for name in ("ffv1", "libx264") if name not in av.codecs_available]
    ffmpeg = shutil.which("ffmpeg")
    return [
        (
            "PyAV",
            not missing,
            f"{av.__version__}" + (f", lacks {', '.join(missing)}" if missing else ""),
            "pip install --force-reinstall av",
        ),
        ("ffmpeg", True, ffmpeg or "not on the path (not needed: PyAV brings its own)", ""),
    ]


def weights(out: Path) -> list[Finding]:
    from vdqbench.config import WEIGHTS

    expected = [f"mini_stdit{part}.safetensors" for part in ("", "_text", "_vae")] + ["mini_clip/open_clip_model.safetensors"]
    missing = [name for name in expected if not (WEIGHTS / name).is_file()]
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    return [
        (
            "packaged weights",
            not missing,
            f"lack {', '.join(missing)}" if missing else f"{size / 1e6:.1f} MB",
            "pip install --force-reinstall vdqbench",
        )
    ]


def store(out: Path) -> list[Finding]:
    from vdqbench.store import Store

    folder = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    count = sum(1 for _ in Store(out / "store").entries()) if out.exists() else 0
    writable = os.access(folder, os.W_OK)
    return [
        ("store", writable, f"{out}/store: {count} artefacts", f"make {folder} writable or choose another out=FOLDER"),
        ("disk", free > 1e9, f"{free / 1e9:.0f} GB free", "free some space or choose another out=FOLDER"),
    ]
