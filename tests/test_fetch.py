"""Downloads from a server on loopback: whole, broken off and taken up again, changed meanwhile, of a wrong hash."""

from __future__ import annotations

import hashlib
import shutil
from collections import namedtuple

import pytest
from web import Web, serving

from vdqbench.assets import named
from vdqbench.config import Asset
from vdqbench.fetch import FetchError, fetch, located, space
from vdqbench.progress import Progress

CONTENT = bytes(range(256)) * 9000
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Web(files={"/net.pth": CONTENT})) as web:
        yield web


def asset(web: Web, sha256: str | None = HASH, path: str = "/net.pth") -> Asset:
    known = {"net.pth": sha256} if sha256 else None
    return Asset("network", web.address + path, 0.002, "MIT", ("net.pth",), sha256=known)


QUIET = Progress(quiet=True)


@pytest.mark.parametrize("sha256", [HASH, HASH[:8], None])
def test_a_file_is_fetched_once(web, sha256, tmp_path):
    one = asset(web, sha256)
    assert not one.is_here
    folder = fetch(one, QUIET)
    assert (folder / "net.pth").read_bytes() == CONTENT and one.is_here and tmp_path in folder.parents
    assert sorted(file.name for file in folder.iterdir()) == ["net.pth", "net.pth.lock"]
    fetch(one, QUIET)
    assert [method for method, _, _ in web.asked] == ["GET"]


def test_a_broken_download_goes_on_by_itself(web):
    web.breaks = [100_000, 1_000_000]
    fetch(asset(web), QUIET)
    assert [part for _, _, part in web.asked] == [None, "bytes=100000-", "bytes=1100000-"]
    assert (asset(web).where.folder / "net.pth").read_bytes() == CONTENT


def test_a_download_that_keeps_breaking_goes_on_with_the_next_command(web):
    web.breaks = [1000, 1000, 1000]
    with pytest.raises(FetchError, match=r"broke off after 3000 bytes .*run the same command again to go on from there"):
        fetch(asset(web), QUIET)
    assert not asset(web).is_here
    fetch(asset(web), QUIET)
    assert web.asked[-1][2] == "bytes=3000-" and asset(web).is_here


def test_a_server_without_ranges_is_read_from_the_beginning(web):
    web.ranges, web.breaks = False, [5000]
    fetch(asset(web), QUIET)
    assert (asset(web).where.folder / "net.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("sha256", [hashlib.sha256(CONTENT[::-1]).hexdigest(), None])
def test_a_file_that_changed_meanwhile_is_not_mixed(web, sha256):
    web.breaks = [1000, 1000, 1000]
    with pytest.raises(FetchError, match="broke off"):
        fetch(asset(web, sha256), QUIET)
    web.files["/net.pth"] = CONTENT[::-1]
    fetch(asset(web, sha256), QUIET)
    assert (asset(web).where.folder / "net.pth").read_bytes() == CONTENT[::-1]


def test_without_hash_and_version_nothing_is_taken_up(web):
    web.etags, web.breaks = False, [1000]
    fetch(asset(web, None), QUIET)
    assert [part for _, _, part in web.asked] == [None, None]


def test_what_was_whole_before_it_was_put_in_place_is_not_fetched_again(web):
    one = asset(web)
    one.where.folder.mkdir(parents=True)
    (one.where.folder / "net.pth.part").write_bytes(CONTENT)
    fetch(one, QUIET)
    assert web.asked == [("GET", "/net.pth", f"bytes={len(CONTENT)}-")] and one.is_here


def test_a_wrong_hash_deletes_and_says_so(web):
    wrong = asset(web, "0" * 64)
    with pytest.raises(FetchError, match=rf"has SHA-256 {HASH[:16]}\.\.\. in place of {'0' * 16}\.\.\. and was deleted"):
        fetch(wrong, QUIET)
    assert not wrong.is_here and [file.name for file in wrong.where.folder.iterdir()] == ["net.pth.lock"]


def test_a_file_that_is_there_is_verified_too(web):
    one = asset(web)
    path = fetch(one, QUIET) / "net.pth"
    path.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(FetchError, match=r"net\.pth of http.* was deleted"):
        fetch(one, QUIET)
    assert not path.exists()
    fetch(one, QUIET)
    assert path.read_bytes() == CONTENT


def test_a_file_that_is_not_there(web):
    with pytest.raises(FetchError, match=r"other\.pth answers 404"):
        fetch(asset(web, path="/other.pth"), QUIET)


def test_a_full_disk_is_told_before(web, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 10**6))
    (said,) = space([asset(web), asset(web)])
    assert "0.0 GB free and 0.0 GB are to be fetched" in said and "HF_HOME" in said
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, 10**9))
    assert not list(space([asset(web)]))


@pytest.mark.parametrize("name", ["raft_large", "alexnet"])
def test_what_torchvision_knows_is_fetched_from_where_it_says(name):
    asset = named(name)
    assert asset.where.address == asset.source and asset.source.startswith("torchvision:")
    assert located(asset.source).startswith("https://") and located(asset.source).rsplit("/", 1)[1] == asset.files[0]
    assert located("https://example.org/a.bin") == "https://example.org/a.bin"
