"""One headless Chromium for all tests of this folder; without one they are skipped, and VDQ_INSTALL_BROWSER=1 installs Debian's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import chromium
import made_results
import pytest

from vdqbench.progress import Progress
from vdqbench.report.html.gather import Videos, gather
from vdqbench.report.html.page import write

APT = ("apt-get", "-qq", "-y", "--no-install-recommends", "install", "chromium")


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[chromium.Browser]:
    path = chromium.find()
    if path is None and os.environ.get("VDQ_INSTALL_BROWSER") == "1" and shutil.which("apt-get"):
        try:
            for command in (("apt-get", "-qq", "update"), APT):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=240)
        except subprocess.SubprocessError as error:
            pytest.skip(f"no chromium here, and it could not be installed: {error}")
        path = chromium.find()
    if path is None:
        pytest.skip("no chromium here: install it, name one as VDQ_BROWSER=PATH, or set VDQ_INSTALL_BROWSER=1 where apt-get may")
    started = chromium.Browser(path, tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("results")
    made_results.build(out)
    return out


@pytest.fixture(scope="session")
def made(results) -> Callable[[str], Path]:
    """The page with these videos, made once."""

    def make(videos: str) -> Path:
        path = results / f"report-{videos}.html"
        if not path.exists():
            found = gather(results, path, Videos.parse(videos), Progress(quiet=True))
            write(found, path, "Report of toys", Videos.parse(videos))
        return path

    return make


@pytest.fixture
def page(browser, made) -> Iterator[chromium.Page]:
    """The page with its videos, opened from disk."""
    opened = browser.page(made("all").as_uri())
    yield opened
    opened.close()
