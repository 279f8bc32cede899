"""STDiT against the outputs of the original code and against its checkpoint's names and shapes."""

from __future__ import annotations

import copy

import pytest
import torch

from vdqbench.models.stdit import STDiT

TINY = dict(input_size=(4, 8, 8), hidden_size=48, depth=2, num_heads=4, caption_channels=16, model_max_length=10, space_scale=0.5)
POSITIONS = ("pos_embed", "pos_embed_temporal")


def wave(shape: tuple[int, ...], frequency: float, phase: float) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.cos(frequency * torch.arange(size, dtype=torch.float64) + phase).float().reshape(shape)


@pytest.fixture
def tiny() -> STDiT:
    model = STDiT(**TINY).eval()
    names = sorted(name for name in model.state_dict() if name not in POSITIONS)
    assert len(names) == 54
    for k, name in enumerate(names):
        tensor = model.state_dict()[name]
        index = torch.arange(1, tensor.numel() + 1, dtype=torch.float64)
        tensor.copy_((0.05 * torch.sin(0.1 * index + k)).float().reshape(tensor.shape))
    return model


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    mask = (torch.arange(10)[None] < torch.tensor([[3], [7]])).long()
    return dict(x=wave((2, 4, 4, 8, 8), 0.013, 0.2), timestep=torch.tensor([999, 473]), y=wave((2, 1, 10, 16), 0.07, 0.5), mask=mask)


@torch.no_grad()
def test_matches_the_original_code(tiny, inputs):
    out = tiny(**inputs)
    assert out.shape == (2, 8, 4, 8, 8) and out.dtype == torch.float32
    assert out.sum().item() == pytest.approx(5.346943, abs=1e-2)
    assert out.abs().sum().item() == pytest.approx(1620.836181, rel=1e-5)
    torch.testing.assert_close(out[0, 0, 0, 0, :4], torch.tensor([-0.538961, -0.097489, -0.391212, 0.136514]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[0, 7, 3, 7, 4:], torch.tensor([0.251876, -0.229291, 0.191308, -0.254908]), atol=1e-4, rtol=0)
    torch.testing.assert_close(out[1, 3, 2, 5, :4], torch.tensor([0.444766, 0.112296, 0.274257, -0.121046]), atol=1e-4, rtol=0)


@torch.no_grad()
def test_splitting_qkv_changes_nothing(tiny, inputs):
    split = copy.deepcopy(tiny).split_qkv()
    torch.testing.assert_close(split(**inputs), tiny(**inputs), atol=1e-5, rtol=1e-5)
    linears = [name for name, m in split.blocks.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 13 * 2


@torch.no_grad()
def test_masked_tokens_take_no_part(tiny, inputs):
    loud = dict(inputs, y=torch.where(inputs["mask"][:, None, :, None] > 0, inputs["y"], 1e3))
    torch.testing.assert_close(tiny(**loud), tiny(**inputs))
    alone = {name: value[1:] for name, value in inputs.items()}
    torch.testing.assert_close(tiny(**alone), tiny(**inputs)[1:], atol=1e-5, rtol=1e-5)


def test_a_mask_with_holes_is_refused(tiny, inputs):
    with pytest.raises(ValueError, match="padded on the right"):
        tiny(**dict(inputs, mask=torch.tensor([[1, 0, 1] + [0] * 7, [1] * 2 + [0] * 8])))


def test_long_and_short_attention_agree():
    from vdqbench.models.stdit import attention

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 80, 24).unbind(0)
    bias = torch.randn(2, 1, 1, 80)
    long = attention(q, k, v, 4, bias)
    short = torch.cat([attention(q[:, i : i + 1], k, v, 4, bias) for i in range(80)], dim=1)
    torch.testing.assert_close(long, short)
    heads = [u.unflatten(-1, (4, 6)).transpose(1, 2) for u in (q, k, v)]
    by_hand = ((heads[0] @ heads[1].mT / 6**0.5 + bias).softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(long, by_hand, atol=1e-5, rtol=1e-5)
    few = attention(q, k[:, :9], v[:, :9], 4, bias[..., :9])
    by_hand = ((heads[0] @ heads[1][:, :, :9].mT / 6**0.5 + bias[..., :9]).softmax(-1) @ heads[2][:, :, :9]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(few, by_hand, atol=1e-5, rtol=1e-5)


def test_names_and_shapes_of_the_released_checkpoint():
    with torch.device("meta"):
        state = STDiT(input_size=(16, 64, 64)).state_dict()
    assert len(state) == 550
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    expected = {
        "pos_embed": (1, 1024, 1152),
        "pos_embed_temporal": (1, 16, 1152),
        "x_embedder.proj.weight": (1152, 4, 1, 2, 2),
        "t_embedder.mlp.0.weight": (1152, 256),
        "t_block.1.weight": (6912, 1152),
        "y_embedder.y_embedding": (120, 4096),
        "y_embedder.y_proj.fc1.weight": (1152, 4096),
        "blocks.27.scale_shift_table": (6, 1152),
        "blocks.27.attn.qkv.weight": (3456, 1152),
        "blocks.27.attn_temp.qkv.bias": (3456,),
        "blocks.27.cross_attn.kv_linear.weight": (2304, 1152),
        "blocks.27.mlp.fc2.weight": (1152, 4608),
        "final_layer.linear.weight": (32, 1152),
        "final_layer.scale_shift_table": (2, 1152),
    }
    assert {name: shapes[name] for name in expected} == expected
    buffers = (*POSITIONS, "y_embedder.y_embedding")
    assert sum(tensor.numel() for name, tensor in state.items() if name not in buffers) == 759_620_768
