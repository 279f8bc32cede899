"""Recipes: every shipped method composes, equal recipes have equal identities, wrong ones say what is wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from omegaconf import OmegaConf
from tiny_stdit import CONF, METHODS, STEPS, method_config, recipe

from vdqbench.errors import ConfigError
from vdqbench.quant import parts
from vdqbench.quant.parts import Site
from vdqbench.quant.recipe import Recipe, on_model

ARQ = {"dvd_quant", "dvd_bgr", "dvd_arq_only", "dvd_quant_teacache", "stp", "itp", "abs", "sba"}
ONLINE = {"fp", "teacache", "dynamic", "minmax_dynamic", "quarot", "viditq_w8a8", "dvd_pbq_only"} | ARQ
"""Recipes that need no calibration."""
ALONE = {"minmax_dynamic", "teacache", "dvd_pbq_only"} | ARQ
"""Recipes whose videos must be made one by one: something is shared over the batch, or decided for it."""


@pytest.mark.parametrize("name", METHODS)
def test_every_method_composes_and_lists_all_its_options(name):
    made = recipe(name, 4, 6)
    assert json.loads(json.dumps(made.semantic())) == made.semantic()
    assert made.needs_calibration == (name not in ONLINE)
    assert made.is_fp == (name == "fp") and made.batch_dependent == (name in ALONE)
    text = (CONF / "method" / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    config = OmegaConf.load(CONF / "method" / f"{name}.yaml")
    temporal = made.temporal.part if made.temporal else None
    for part, node in (
        (made.activation, config.activation),
        (temporal, config.activation and config.activation.get("temporal")),
        (made.weight, config.weight),
        (made.draw if "calibration" in config else None, config.get("calibration")),
        (made.schedule, config.schedule),
        *((t, config.transform[t.part_name()]) for t in made.transforms),
        *((r, config.reuse[r.part_name()]) for r in made.reuse),
    ):
        if part is not None:
            beside = {"grid", "site", "draw", "policy", *(["temporal"] if part is made.activation else [])}
            assert set(node) - beside == {field.name for field in fields(part)}


def test_every_bit_pair_composes():
    pairs = {(w, a) for w in (4, 6, 8, 16) for a in (4, 6, 8, 16)}
    for w, a in pairs:
        bits = OmegaConf.to_container(OmegaConf.create({"bits": OmegaConf.load(CONF / "bits" / f"w{w}a{a}.yaml")}), resolve=True)["bits"]
        assert bits == {"name": f"w{w}a{a}", "weight": w, "activation": a}
    assert len(list((CONF / "bits").glob("w*a*.yaml"))) == len(pairs)


def test_equal_outputs_have_equal_identities():
    assert recipe("tsq", ranges=1).semantic() == recipe("asq").semantic()
    assert recipe("tsq", ranges=2).semantic() != recipe("asq").semantic()
    assert recipe("tsq", 16, 16).semantic() == recipe("fp", 4, 4).semantic() == {"fp": True}
    assert recipe("cw_tw", 8, 16).semantic() == recipe("dynamic", 8, 16).semantic(), "only their activations differ"
    assert (
        recipe("asq", transform__smooth__statistic="max").semantic()
        == recipe("asq", transform__smooth__statistic="max", transform__smooth__momentum=0.5).semantic()
    )
    assert recipe("asq", 8).semantic() != recipe("asq", 7).semantic()


def test_average_bits_count_what_stays_in_floating_point():
    layers = [Site("a", "x", (4, 30), None, None), Site("b", "y", (4, 10), None, None)]
    assert recipe("dynamic", 4, 8, sites__keep_fp=["y"]).average_bits(layers) == (4 * 0.75 + 16 * 0.25, 8 * 0.75 + 16 * 0.25)
    assert recipe("fp").average_bits(layers) == (16, 16)
    assert recipe("dynamic", 4, 16).average_bits(layers) == (4, 16)
    with pytest.raises(ConfigError, match=r"keep_fp=z\* matches no layer"):
        recipe("dynamic", sites__keep_fp=["z*"]).assign(layers)


@pytest.mark.parametrize(
    ("method", "changes", "bits", "sentence"),
    [
        ("asq", {"weight__grid": "minmaz"}, (8, 8), "method.weight.grid=minmaz does not exist (did you mean minmax?)"),
        ("asq", {"activation__grid": "sttaic"}, (8, 8), "method.activation.grid=sttaic does not exist (did you mean static?)"),
        ("asq", {"schedule__policy": "fixt"}, (8, 8), "method.schedule.policy=fixt does not exist (did you mean fixed?)"),
        ("asq", {"transform": {"smoot": {}}}, (8, 8), "method.transform=smoot does not exist (did you mean smooth"),
        (
            "asq",
            {"activation__observer": "minmx"},
            (8, 8),
            "method.activation.observer=minmx is not one of its values (did you mean minmax",
        ),
        ("asq", {"activation__per": "token"}, (8, 8), "method.activation.per=token is not one of its values"),
        (
            "asq",
            {"transform__smooth__alhpa": 0.5},
            (8, 8),
            "smooth.alhpa is not an option of smooth (did you mean alpha?)",
        ),
        ("asq", {"transform__smooth__alpha": 1.5}, (8, 8), "method.transform.smooth.alpha=1.5 must be a number in [0, 1]"),
        ("asq", {"transform__smooth__alpha": "half"}, (8, 8), "method.transform.smooth.alpha='half' must be of type float"),
        ("asq", {"activation__ranges": True}, (8, 8), "method.activation.ranges=True must be of type int"),
        (
            "tsq",
            {"ranges": 3},
            (8, 8),
            "method.ranges=3 must divide the 4 steps of the sampler into equal parts: one of 1, 2, 4",
        ),
        ("tsq", {"ranges": 8}, (8, 8), "must divide the 4 steps"),
        ("asq", {"activation__ranges": 3}, (8, 8), "method.activation.ranges=3 must divide the 4 steps"),
        ("tsq", {"activaton": {}}, (8, 8), "method.activaton is not an option of a method (did you mean activation or calibration?)"),
        ("asq", {}, (1, 8), "bits.weight=1 must be a whole number in 2..16"),
        ("asq", {}, (8, 17), "bits.activation=17 must be a whole number in 2..16"),
        ("asq", {}, (8, 7.5), "bits.activation=7.5 must be a whole number in 2..16"),
        ("asq", {"weight": {"per": "channel"}}, (8, 8), "method.weight.grid is missing"),
    ],
)
def test_errors_are_one_sentence(method, changes, bits, sentence):
    config = method_config(method)
    for key, value in changes.items():
        node = config
        *path, last = key.split("__")
        for step in path:
            node = node[step]
        node[last] = value
        if (method, key) == ("tsq", "ranges"):
            config["transform"]["smooth"]["ranges"] = config["activation"]["ranges"] = value
    if "weight" in changes:
        config["weight"] = changes["weight"]
    with pytest.raises(ConfigError, match=re.escape(sentence)) as error:
        Recipe.from_config(config, {"weight": bits[0], "activation": bits[1]}, STEPS)
    assert "\n" not in str(error.value)


def test_all_parts_load_without_torch():
    code = "\n".join(
        [
            "import sys, vdqbench.quant.recipe, vdqbench.clock",
            "from vdqbench.quant.parts import SLOTS, find, names",
            "found = {slot: [find(slot, name, '') for name in names(slot)] for slot in SLOTS}",
            "assert all(found.values()), found",
            "heavy = {'torch', 'diffusers', 'numpy', 'pandas'} & set(sys.modules)",
            "assert not heavy, heavy",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_names_of_parts_are_their_files():
    assert parts.names("kernels") == ["sim"] and parts.names("draws") == ["all", "normal", "single", "stride"]
    assert {"dynamic", "static", "arq", "hidi_tq"} <= set(parts.names("activations"))


MODULATION = {"only": ["modulation"], "bits": {"modulation": {"activation": 16}}}
"""What conf/model/hunyuan_video.yaml has under `sites`."""


def on_a_model(name: str, **changes: object) -> Recipe:
    method = method_config(name, sites__only=["self_attn.*"], **changes)
    return Recipe.from_config(on_model(method, MODULATION), {"weight": 4, "activation": 8}, STEPS)


def test_a_model_brings_layers_and_their_bits_along():
    roles = ("embed", "self_attn.q", "modulation")
    sites = [Site(role, role, (4, 4), None, None) for role in roles]

    def bits(made: Recipe) -> dict[str, tuple[int | None, int | None]]:
        return {site.name: (site.weight_bits, site.activation_bits) for site in made.assign(sites)}

    assert bits(on_a_model("cw_tw")) == {"self_attn.q": (4, 8), "modulation": (4, None)}
    # a method that says what becomes of these layers is not overruled: by bits, by keeping them, or by a grid for the timestep's features
    assert bits(on_a_model("cw_tw", sites__bits={"modulation": {"activation": 6}}))["modulation"] == (4, 6)
    assert bits(on_a_model("cw_tw", sites__keep_fp=["modulation"]))["modulation"] == (None, None)
    assert bits(on_a_model("qvd"))["modulation"] == (4, 8)


def test_what_a_model_brings_along_is_in_the_identity_only_where_it_changes_something():
    method = method_config("dvd_quant", sites__only=["self_attn.*", "modulation"])
    assert on_model(method, MODULATION) == method and on_model(method, {}) is method
    everything = method_config("cw_tw")
    assert on_model(everything, {"only": ["modulation"]})["sites"]["only"] == ["*"]
    assert on_a_model("cw_tw").semantic() != recipe("cw_tw", 4, 8, sites__only=["self_attn.*"]).semantic()
    with pytest.raises(ConfigError, match=r"model.sites.file is not an option of a model \(expected one of bits, only"):
        on_model(method, {"file": "table.yaml"})
