"""What is installed is whole: configs and weights are in the wheel, and it works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True
    )
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_configs_weights_and_the_script(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {f"vdqbench/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    weights = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vdqbench" / "models" / "weights").rglob("*") if path.is_file()}
    assert shipped <= names and weights <= names and len(weights) >= 8
    assert not any("tests/" in name or "__pycache__" in name for name in names)
    scripts = next(name for name in names if name.endswith("entry_points.txt"))
    assert "vdqbench = vdqbench.cli:main" in zipfile.ZipFile(wheel).read(scripts).decode()


def test_weights_stay_small():
    folder = ROOT / "vdqbench" / "models" / "weights"
    model = sum(path.stat().st_size for path in folder.glob("mini_stdit*"))
    clip = sum(path.stat().st_size for path in (folder / "mini_clip").rglob("*"))
    assert model <= 14e6 and clip <= 8e6


def test_the_installed_package_works_from_any_folder(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "cwd").mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = "import vdqbench, sys; sys.stdout.write(vdqbench.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "cwd", env=env, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(tmp_path))
    plan = subprocess.run(
        [sys.executable, "-m", "vdqbench", "table=quickstart", "plan=true"],
        cwd=tmp_path / "cwd",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "8 of 8 cells to run" in plan.stdout
