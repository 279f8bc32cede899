"""Hadamard matrices of every width in use are orthogonal, and the fast product is the product with them."""

from __future__ import annotations

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vdqbench.quant import hadamard
from vdqbench.quant.hadamard import core, factors, product, split, sylvester

WIDTHS = [72, 128, 256, 320, 512, 640, 768, 960, 1024, 1152, 1280, 1408, 1536, 1920, 2048, 2304, 2560, 3072, 3456, 4096, 4608, 5120]
WIDE = [5632, 6912, 7680, 8192, 8960, 11008, 12288, 13824, 15360, 19968]
ORDERS = [12, 20, 24, 28, 36, 44, 52, 60, 68, 76, 84, 92, 108, 124, 132, 140, 148, 156, 164, 172]


@pytest.mark.parametrize("order", ORDERS)
def test_constructed_matrices_are_hadamard(order):
    matrix = core(order).long()
    assert matrix.shape == (order, order) and (matrix.abs() == 1).all()
    assert torch.equal(matrix @ matrix.t(), order * torch.eye(order, dtype=torch.long))


def test_sylvester_is_the_walsh_hadamard_matrix():
    bits = torch.arange(16)
    parity = torch.tensor([[bin(i & j).count("1") % 2 for j in bits.tolist()] for i in bits.tolist()])
    assert torch.equal(sylvester(16), (1 - 2 * parity).to(torch.int8))


@pytest.mark.parametrize("width", WIDTHS + WIDE)
def test_every_width_of_the_models_has_one(width):
    made = factors(width)
    assert math.prod(len(matrix) for matrix in made) == width and max(len(matrix) for matrix in made) <= 172
    for matrix in made:
        matrix = matrix.long()
        assert torch.equal(matrix @ matrix.t(), len(matrix) * torch.eye(len(matrix), dtype=torch.long))
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    y = product(x, made, -1) / width**0.5
    torch.testing.assert_close(y @ y.t(), x @ x.t(), rtol=1e-5, atol=1e-5 * width**0.5)


def test_the_composite_orders_of_the_named_widths():
    """K is the odd part of the width times 4, as in QuaRot's list (its 40 is 20 here: any valid order will do)."""
    known = {72: 36, 1152: 36, 3456: 108, 4608: 36, 6912: 108, 1536: 12, 8960: 140, 3072: 12, 1920: 60, 5120: 20, 13824: 108, 4096: 1}
    assert {width: split(width)[0] for width in known} == known


def test_widths_without_a_matrix():
    assert [split(width) for width in (3, 6, 18, 27, 1150, 1406)] == [None] * 6
    assert [split(width) for width in (1, 2, 4)] == [(1, 1), (1, 2), (1, 4)]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([8, 12, 40, 96, 144, 256, 320, 512]), st.integers(0, 2), st.integers(1, 3))
def test_the_product_is_that_with_the_dense_matrix(width, dim, blocks):
    made = factors(width)
    dense = reduce(torch.kron, made).double()
    shape = [2, 3, 4]
    shape[dim] = width * blocks
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([block @ dense.t() for block in x.movedim(dim, -1).split(width, dim=-1)], -1).movedim(-1, dim)
    torch.testing.assert_close(product(x, made, dim), expected, rtol=1e-10, atol=1e-10)


def test_a_width_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="20 channels is no multiple of 8"):
        product(torch.ones(1, 20), factors(8), -1)


def test_no_matrix_is_larger_than_it_has_to_be():
    """Large powers of two are split, so that the cost grows with n log n."""
    assert [len(matrix) for matrix in factors(4096)] == [64, 64] and [len(matrix) for matrix in factors(8192)] == [32, 16, 16]
    assert [len(matrix) for matrix in factors(4608)] == [36, 16, 8] and [len(matrix) for matrix in factors(128)] == [128]
    assert hadamard.power_of_two(1408) == 128
