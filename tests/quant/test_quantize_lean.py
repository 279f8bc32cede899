"""Quantizing a model that need not be restored: the same outputs, and never more memory than the model and one of its blocks."""

from __future__ import annotations

import weakref
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel
from tiny_stdit import recipe, roles, sample, stdit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vdqbench.calibrate import calibrate
from vdqbench.clock import StepClock
from vdqbench.errors import Unsupported
from vdqbench.models.roles import stdit_roles
from vdqbench.quant.layer import QUANTIZED
from vdqbench.quant.quantize import quantize
from vdqbench.replay import CallRecorder

FIXED = {
    "asq": {},
    "cw_tw": {},
    "dvd_quant": {"weight__candidates": 4},
    "dynamic": {},
    "gptq": {"calibration__tokens": 8},
    "osplus": {"sites__only": ["blocks.1.attn.[qkv]"], "calibration__tokens": 8, "activation__temporal": None},
    "quarot": {},
    "svdquant": {"weight__group_size": 8, "activation__group_size": 8, "transform__low_rank__iterations": 2},
}
"""Recipes whose weights are the same at every step: smoothed, rotated, shifted, beside a branch, rounded by search."""
TIMED = {"tsq": {"ranges": 2}}
CONVOLUTIONS = ("asq", "cw_tw", "tsq")
"""Recipes that can quantize those as well."""


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in self._storages((args, kwargs))}
        for storage in self._storages(made):
            where = storage.data_ptr()
            if where and where not in self.known and where not in given:
                self.known.add(where)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._remove, where, storage.nbytes())
        return made

    @staticmethod
    def _storages(nested: Any) -> list[torch.UntypedStorage]:
        return [leaf.untyped_storage() for leaf in torch.utils._pytree.tree_leaves(nested) if isinstance(leaf, torch.Tensor)]

    def _remove(self, where: int, size: int) -> None:
        self.known.discard(where)
        self.now -= size


def test_the_count_of_bytes_is_right():
    given = torch.zeros(250)
    with Peak() as peak:
        one = torch.zeros(1000)
        two = (one + 1).view(10, 100).t()
        assert (peak.now, peak.most) == (8000, 8000)
        del one
        assert peak.now == 4000
        three = two[0] * 2
        two.add_(1)
        given.add_(1)
        assert (peak.now, peak.most) == (4000 + 4 * len(three), 8000)


@cache
def calibrated():
    model, clock = stdit(), StepClock()
    recorder = CallRecorder(clock)
    return calibrate(model, stdit_roles(model), [lambda: sample(model, clock, 0)], clock, calls=recorder), recorder.recorded()


@pytest.mark.parametrize("name", [*FIXED, *TIMED])
def test_outputs_are_those_of_a_model_that_is_kept(name):
    chosen, outputs = recipe(name, 4, 8, **{**FIXED, **TIMED}[name]), {}
    (calibration, calls), own = calibrated(), dict(stdit().named_parameters())
    for keep in (True, False):
        model, clock = stdit(), StepClock()
        layers = stdit_roles(model) if name in CONVOLUTIONS else roles(model)
        quantized = quantize(model, layers, chosen, calibration, clock, calls=lambda: calls, keep=keep)
        outputs[keep] = sample(model, clock, 1)
        names = list(quantized.runs)
        changed = {site for site in names if not torch.equal(model.get_parameter(f"{site}.weight"), own[f"{site}.weight"])}
        quantized.restore()
        assert changed == (set(names) if name in FIXED and not keep else set())
        assert not any(type(module) in QUANTIZED.values() for module in model.modules())
        if keep:
            continue
        with pytest.raises(RuntimeError, match="load it again"):
            quantize(model, layers, chosen, calibration, clock)
        with pytest.raises(RuntimeError, match="load it again"):
            calibrate(model, layers, [], clock)
    assert all(torch.equal(*pair) for pair in zip(*outputs.values(), strict=True))


def test_a_layer_whose_forward_is_replaced_on_the_instance_is_refused():
    model = stdit()
    model.blocks[0].mlp.fc1.forward = model.blocks[0].mlp.fc1.forward
    with pytest.raises(Unsupported, match="a hook replaces the forward of a Linear"):
        quantize(model, roles(model), recipe("dynamic", 8, 8), None, StepClock())


def hunyuan() -> nn.Module:
    """HunyuanVideo's class in bfloat16, 200 MB of random weights."""
    with torch.device("meta"):
        model: Any = HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=8, attention_head_dim=64, num_layers=6, num_single_layers=12,
            num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=64, pooled_projection_dim=32,
            rope_axes_dim=(8, 28, 28),
        )  # fmt: skip
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval().requires_grad_(False)
    values = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.05).bfloat16()
    for parameter in model.parameters():
        flat = parameter.view(-1)
        for part in flat.split(len(values)):
            part.copy_(values[: len(part)])
    return model


def bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def test_quantizing_takes_no_more_than_the_model_and_one_block():
    model, clock = hunyuan(), StepClock(layout="embedded")
    layers = {name: "ffn.up" for name, module in model.named_modules() if type(module) in QUANTIZED and "blocks" in name}
    quantized_bytes = sum(bytes_of(model.get_submodule(name)) for name in layers)
    block = max(bytes_of(one) for one in (*model.transformer_blocks, *model.single_transformer_blocks))
    assert 190e6 < bytes_of(model) < 230e6 and quantized_bytes > 0.9 * bytes_of(model)
    arguments = {
        "hidden_states": torch.zeros(1, 4, 1, 2, 2, dtype=torch.bfloat16),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.zeros(1, 2, 64, dtype=torch.bfloat16),
        "encoder_attention_mask": torch.ones(1, 2),
        "pooled_projections": torch.zeros(1, 32, dtype=torch.bfloat16),
        "guidance": torch.tensor([6000.0]),
        "return_dict": False,
    }
    outputs, taken = [], []
    for keep in (True, False):
        with Peak() as peak, quantize(model, layers, recipe("dynamic", 4, 8), None, clock, keep=keep), torch.no_grad():
            outputs.append(model(**arguments)[0])
        taken.append(peak.most)
    assert taken[0] > 0.95 * quantized_bytes, "a second copy of all quantized weights"
    assert taken[1] < block, "less than one block beside the model"
    assert torch.equal(*outputs) and outputs[0].isfinite().all()
