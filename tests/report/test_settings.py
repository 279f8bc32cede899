"""Which cells are compared with each other, and what they are called."""

from __future__ import annotations

from dataclasses import replace

import made_results
from made_results import MODEL, OTHER, REFERENCE

from vdqbench.report.settings import bits, families, flat, identity, labels, settings, variants


def test_a_setting_is_all_done_cells_with_one_reference():
    found = settings(made_results.records())
    assert [(one.model, len(one.records)) for one in found] == [(MODEL, 7), (OTHER, 1)]
    assert found[0].key == REFERENCE[MODEL] and found[0].reference is found[0].records[0] and found[0].reference.cell["method"] == "fp"
    assert found[1].reference is None and len(found[1].quantized) == 1
    assert len(found[0].quantized) == 6 and found[0].reference not in found[0].quantized
    assert found[0].label == "mini_toy, 3 prompts of toys, ddim6"


def test_settings_that_look_alike_are_told_apart_by_their_reference():
    one, other = made_results.record("asq", "w8a8", 0.5), made_results.record("tsq", "w8a8", 0.5)
    other.keys["reference"] = "9" * 16
    assert {setting.label for setting in settings([one, other])} == {
        f"mini_toy, 3 prompts of toys, ddim6, reference {key}" for key in ("f" * 8, "9" * 8)
    }


def test_records_without_a_reference_are_in_no_setting():
    lost = made_results.record("asq", "w8a8", 0.5)
    lost.keys = {}
    assert settings([lost]) == []


def test_options_that_differ_name_the_variant_by_their_shortest_ends():
    def cell(ranges: int, alpha: float):
        options = {"ranges": ranges, "activation": {"ranges": ranges}, "transform": {"smooth": {"alpha": alpha, "same": 1}}}
        return made_results.record("tsq", "w8a8", 0.5, options=options)

    made = [cell(1, 0.5), cell(4, 0.5), cell(4, 0.7)]
    assert list(variants(made).values()) == ["ranges=1, alpha=0.5", "ranges=4, alpha=0.5", "ranges=4, alpha=0.7"]
    assert variants(made[:1]) == {identity(made[0]): ""}
    assert list(families(made[:2]).values()) == ["tsq (ranges=1)", "tsq (ranges=4)"]


def test_an_end_that_two_options_share_is_not_short_enough():
    def cell(one: int, other: int):
        return made_results.record("m", "w8a8", 0.5, options={"a": {"x": one, "y": 0}, "b": {"x": other, "y": 1}})

    assert list(variants([cell(1, 2), cell(2, 1)]).values()) == ["a.x=1, b.x=2", "a.x=2, b.x=1"]


def test_labels_are_unique_within_a_setting():
    made = made_results.records()
    twin = replace(made[2], key="7" * 16)
    names = labels([*made, twin])
    assert names[identity(made[0])] == "fp" and names[identity(made[5])] == "dvd (delta=0.1) w4a6"
    assert names[identity(twin)] == "tsq w4a4 [777777]" and names[identity(made[2])] == f"tsq w4a4 [{made[2].key[:6]}]"
    assert len({name for record, name in zip([*made, twin], names.values(), strict=True) if record.cell["model"] == MODEL}) == 10


def test_two_methods_that_are_one_cell_are_two_records():
    one = made_results.record("asq", "w8a8", 0.5)
    other = replace(one, cell={**one.cell, "method": "tsq"})
    assert set(labels([one, other]).values()) == {"asq w8a8", "tsq w8a8"}


def test_flat_names_and_bits():
    assert flat({"a": {"b": {"c": 1}}, "d": [1, 2], "e": {}}) == {"a.b.c": 1, "d": [1, 2]}
    assert bits(made_results.record("asq", "w4a8", 0.5)) == (4.0, 8.0) and bits(made_results.record("fp", "fp", 0.5)) == (16.0, 16.0)
