"""The store: whole artefacts or none, corruption detected, one maker at a time."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdqbench.store import Store, key_of, write_atomic


def text(content: str):
    return lambda path: path.write_text(content)


def test_put_then_get(tmp_path):
    store = Store(tmp_path)
    assert store.get("video", "abcd", ".txt") is None
    path = store.put("video", "abcd", ".txt", text("hello"))
    assert path == tmp_path / "video" / "ab" / "abcd.txt" and path.read_text() == "hello"
    assert store.get("video", "abcd", ".txt") == path and store.has("video", "abcd", ".txt")
    assert sorted(p.name for p in path.parent.iterdir()) == ["abcd.txt", "abcd.txt.sha256"]


def test_a_failing_writer_leaves_nothing(tmp_path):
    store = Store(tmp_path)

    def half(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.put("video", "abcd", ".txt", half)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("damage", [lambda p: p.write_text("hellO"), lambda p: p.write_text(""), lambda p: p.write_text("hello more")])
def test_a_corrupt_artefact_is_set_aside_and_made_again(tmp_path, damage, caplog):
    store = Store(tmp_path)
    path = store.put("video", "abcd", ".txt", text("hello"))
    damage(path)
    assert store.get("video", "abcd", ".txt") is None
    assert "corrupt" in caplog.text and not path.exists() and path.with_name("abcd.txt.corrupt").exists()
    store.put("video", "abcd", ".txt", text("hello"))
    assert store.get("video", "abcd", ".txt").read_text() == "hello"


def test_an_artefact_without_its_checksum_does_not_count(tmp_path):
    store = Store(tmp_path)
    path = store.put("video", "abcd", ".txt", text("hello"))
    path.with_name("abcd.txt.sha256").unlink()
    assert not store.has("video", "abcd", ".txt") and store.get("video", "abcd", ".txt") is None


def test_prune_keeps_what_is_needed(tmp_path):
    store = Store(tmp_path)
    kept = store.put("video", "aa11", ".mkv", text("keep"))
    gone = store.put("video", "bb22", ".mkv", text("drop"))
    other = store.put("scores", "aa11", ".json", text("another kind"))
    files, size = store.prune({("video", "aa11")})
    assert kept.exists() and not gone.exists() and not other.exists()
    assert files == 4 and size == len("drop") + len("another kind") + 2 * 65
    assert [(kind, key) for kind, key, _ in store.entries()] == [("video", "aa11")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v), max_leaves=8
)


@given(json_values, json_values)
def test_keys_differ_exactly_when_values_do(a, b):
    import json

    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (key_of(a) == key_of(b)) == same


def test_key_ignores_order_of_mappings_only():
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert key_of([1, 2]) != key_of([2, 1])
    with pytest.raises(TypeError, match="Path"):
        key_of([Path("x")])


def test_write_atomic_replaces(tmp_path):
    target = tmp_path / "deep" / "file"
    write_atomic(target, text("one"))
    write_atomic(target, text("two"))
    assert target.read_text() == "two" and list(target.parent.iterdir()) == [target]


def make_once(root: str, results) -> None:
    store = Store(Path(root))
    waited = []
    with store.lock("video", "abcd", lambda: waited.append(True)):
        made = store.get("video", "abcd", ".txt") is None
        if made:
            time.sleep(0.5)
            store.put("video", "abcd", ".txt", text("slow"))
    results.put((made, bool(waited)))


def test_two_processes_make_one_artefact_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=make_once, args=(str(tmp_path), results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert sorted(made for made, _ in (results.get(timeout=5) for _ in workers)) == [False, False, True]
