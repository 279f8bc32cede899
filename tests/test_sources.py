"""Where weights are and what names them: folders, packaged ones, snapshots in a hub cache that is made here."""

from __future__ import annotations

import hashlib
import os

import pytest

from vdqbench import sources
from vdqbench.errors import ConfigError
from vdqbench.sources import WEIGHTS, Source, digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with one snapshot of one repository."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--video"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "vae").mkdir(parents=True)
    (snapshot / "vae" / "config.json").write_text("{}")
    (snapshot / "model_index.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_a_snapshot_is_named_by_its_commit(hub):
    source = Source("hub:someone/video")
    assert (source.repository, source.revision) == ("someone/video", None)
    assert source.folder == hub and source.missing(["model_index.json", "vae/*"]) == []
    assert source.identity(["vae/*"]) == {"hub:someone/video": COMMIT} == Source(f"hub:someone/video@{COMMIT}").identity([])
    assert source.missing(["vae/*.safetensors", "vae/config.json"]) == ["vae/*.safetensors"]


def test_what_is_not_in_the_cache_is_missing_and_nothing_is_fetched(hub):
    for text in ("hub:someone/other", "hub:someone/video@v2"):
        assert Source(text).folder is None and Source(text).missing(["*"]) == ["*"]
        with pytest.raises(ConfigError, match="is not on this machine"):
            Source(text).identity(["*"])
    with pytest.raises(ConfigError, match="write hub:OWNER/NAME"):
        _ = Source("hub:a/b/c").folder


def test_a_folder_is_named_by_its_files(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "b.bin").write_bytes(b"b")
    (tmp_path / "a.bin").write_bytes(b"a")
    expected = {"vae/b.bin": hashlib.sha256(b"b").hexdigest(), "a.bin": hashlib.sha256(b"a").hexdigest()}
    assert Source(str(tmp_path)).identity(["vae/*", "a.bin", "*.bin"]) == expected
    assert Source(str(tmp_path)).missing(["a.bin", "c.bin", "unet/*"]) == ["c.bin", "unet/*"]


def test_packaged_weights():
    assert Source("packaged").folder == WEIGHTS and Source("packaged/mini_clip").folder == WEIGHTS / "mini_clip"
    assert Source("packaged").missing(["mini_stdit.json"]) == []


def test_large_files_are_hashed_once_per_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "REMEMBERED", 100)
    hashed = []
    monkeypatch.setattr(sources, "sha256", lambda path: hashed.append(path.name) or hashlib.sha256(path.read_bytes()).hexdigest())
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"x" * 100), small.write_bytes(b"x" * 99)
    for _ in range(2):  # two processes
        sources._digest.cache_clear()
        for _ in range(2):
            assert digest(large) == hashlib.sha256(b"x" * 100).hexdigest() and digest(small) == hashlib.sha256(b"x" * 99).hexdigest()
    assert sorted(hashed) == ["large", "small", "small"]

    large.write_bytes(b"y" * 100)
    os.utime(large, ns=(1, 1))
    assert digest(large) == hashlib.sha256(b"y" * 100).hexdigest() and hashed.count("large") == 2
    for memory in (tmp_path / "cache").rglob("*.json"):
        memory.write_text("not json")
    sources._digest.cache_clear()
    assert digest(large) == hashlib.sha256(b"y" * 100).hexdigest() and hashed.count("large") == 3
    sources._digest.cache_clear()
