"""Hadamard matrices H H^T = n I of the widths that occur in models, and products with them without building them.

A width n = K 2^m takes H_K (x) H_2 (x) ... (x) H_2. H_K is constructed here, never read from a table: Paley's two constructions from
the quadratic residues of a prime (Paley 1933), else the Goethals-Seidel array (1967) of four circulant matrices, found by a search
over sequences that are constant on the orbits of a multiplier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch import Tensor

DENSE = 128
"""Up to this width one product with the whole matrix is the fastest."""
LARGEST_FACTOR = 64
"""Of the powers of two into which a larger one is split: a few small products move less memory than one butterfly for each factor 2."""
LARGEST_CIRCULANT = 43
LARGEST_SEARCH = 12
"""Most orbits that the search for circulants goes through: 2^11 sequences."""


def power_of_two(width: int) -> int:
    """The largest power of two that divides a width."""
    return width & -width


def split(width: int) -> tuple[int, int] | None:
    """(K, 2^m) with K 2^m = width and the smallest K that has a matrix; None if there is none.

    >>> split(1152), split(4096), split(1408), split(18)
    ((36, 32), (1, 4096), (44, 32), None)
    """
    twos = power_of_two(width)
    if twos == width:
        return 1, width
    order = width // twos * 4
    while order <= width:
        if core(order) is not None:
            return order, width // order
        order *= 2
    return None


@cache
def core(order: int) -> Tensor | None:
    """A Hadamard matrix of an order that is a multiple of 4, int8 [n, n]; None if none of the constructions gives it."""
    if order % 4:
        return None
    if _is_prime(order - 1):
        return _paley_one(order - 1)
    if _is_prime(order // 2 - 1) and order // 2 % 4 == 2:
        return _paley_two(order // 2 - 1)
    sequences = _circulants(order // 4) if order // 4 % 2 and order // 4 <= LARGEST_CIRCULANT else None
    return None if sequences is None else _goethals_seidel(sequences)


def sylvester(order: int) -> Tensor:
    """The Hadamard matrix of a power of two, int8 [n, n]; symmetric."""
    matrix = torch.ones(1, 1, dtype=torch.int8)
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    while len(matrix) < order:
        matrix = torch.kron(matrix, pair)
    return matrix


def factors(width: int) -> list[Tensor] | None:
    """Matrices, int8, whose Kronecker product is a Hadamard matrix of this width; None if none is known."""
    parts = split(width)
    if parts is None:
        return None
    order, twos = parts
    matrix = core(order) if order > 1 else None
    if width <= DENSE:
        return [sylvester(twos) if matrix is None else torch.kron(matrix, sylvester(twos))]
    return [*([] if matrix is None else [matrix]), *(sylvester(size) for size in _sizes(twos))]


def product(x: Tensor, matrices: Sequence[Tensor], dim: int) -> Tensor:
    """x multiplied with the Kronecker product of square matrices along one dimension: y_i = sum_j M_ij x_j, block by block.

    The dimension may be a multiple of the size of the product, which then acts on each of its blocks. In the dtype of x.
    """
    dim %= x.ndim
    shape, size = x.shape, math.prod(len(matrix) for matrix in matrices)
    if x.shape[dim] % size:
        raise ValueError(f"a dimension of {x.shape[dim]} channels is no multiple of {size}")
    lead = math.prod(shape[:dim]) * (shape[dim] // size)
    trail = size * math.prod(shape[dim + 1 :])
    for matrix in matrices:
        matrix, trail = matrix.to(x), trail // len(matrix)
        x = x.reshape(-1, len(matrix)) @ matrix.t() if trail == 1 else torch.matmul(matrix, x.reshape(lead, len(matrix), trail))
        lead *= len(matrix)
    return x.reshape(shape)


def _sizes(twos: int) -> list[int]:
    """A power of two as a product of the fewest even ones up to LARGEST_FACTOR, as equal as can be."""
    bits, most = twos.bit_length() - 1, LARGEST_FACTOR.bit_length() - 1
    count = -(-bits // most)
    return [2 ** (bits // count + (i < bits % count)) for i in range(count)]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def _jacobsthal(q: int) -> Tensor:
    """Q_ij = 1 if j - i is a square modulo the prime q, -1 if it is none, 0 on the diagonal; Q Q^T = q I - J, Q 1 = 0."""
    character = torch.full((q,), -1, dtype=torch.int8)
    character[torch.arange(1, q).square() % q] = 1
    character[0] = 0
    index = torch.arange(q)
    return character[(index - index[:, None]) % q]


def _bordered(q: int, sign: int) -> Tensor:
    """The conference matrix [[0, 1], [sign, Q]]: C C^T = q I; skew for sign -1, symmetric for 1."""
    matrix = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    matrix[0, 1:], matrix[1:, 0], matrix[1:, 1:] = 1, sign, _jacobsthal(q)
    return matrix


def _paley_one(q: int) -> Tensor:
    """I + C of order q + 1 for a prime q = 3 modulo 4."""
    return _bordered(q, -1) + torch.eye(q + 1, dtype=torch.int8)


def _paley_two(q: int) -> Tensor:
    """C (x) [[1, 1], [1, -1]] + I (x) [[1, -1], [-1, -1]] of order 2 (q + 1) for a prime q = 1 modulo 4."""
    pair = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(_bordered(q, 1), pair) + torch.kron(torch.eye(q + 1, dtype=torch.int8), diagonal)


def _goethals_seidel(sequences: Sequence[Tensor]) -> Tensor:
    """The array of circulants A, B, C, D with A A^T + B B^T + C C^T + D D^T = 4 n I, from their first rows."""
    index = torch.arange(len(sequences[0]))
    a, b, c, d = (row[(index - index[:, None]) % len(row)] for row in sequences)
    back = b.flip(1), c.flip(1), d.flip(1)  # times the back-diagonal identity
    turned = b.t().flip(1), c.t().flip(1), d.t().flip(1)
    rows = [
        [a, back[0], back[1], back[2]],
        [-back[0], a, -turned[2], turned[1]],
        [-back[1], turned[2], a, -turned[0]],
        [-back[2], -turned[1], turned[0], a],
    ]
    return torch.cat([torch.cat(row, 1) for row in rows])


def _circulants(n: int) -> list[Tensor] | None:
    """Four sequences of +-1, int8 [n], whose periodic autocorrelations add up to 0 at every shift; None if the search finds none.

    Each is constant on the orbits of multiplication by a unit modulo n, the unit with the fewest orbits first.
    """
    for orbits in _partitions(n):
        if len(orbits) > LARGEST_SEARCH:
            return None
        member = torch.zeros(len(orbits), n, dtype=torch.float64)
        for row, orbit in zip(member, orbits, strict=True):
            row[orbit] = 1
        codes = torch.arange(2 ** (len(orbits) - 1))[:, None] >> torch.arange(len(orbits)) & 1
        sequences = 1 - 2 * (codes.double() @ member)
        power = torch.fft.fft(sequences).abs().square()  # the four spectra add up to 4 n, so none exceeds it
        kept = power.amax(1) < 4 * n + 0.5
        sequences, power = sequences[kept], power[kept]
        correlation = torch.fft.ifft(power).real.round().long()[:, [orbit[0] for orbit in orbits[1:]]]
        found = _opposite_pairs(correlation)
        if found is not None:
            return [sequences[i].to(torch.int8) for i in found]
    return None


def _partitions(n: int) -> Iterator[list[list[int]]]:
    """The orbits of Z_n, 0 first, under multiplication by each of its units, the fewest first."""

    def orbit(start: int, unit: int) -> tuple[int, ...]:
        members = [start]
        while (following := members[-1] * unit % n) != start:
            members.append(following)
        return tuple(sorted(members))

    units = (unit for unit in range(2, n) if math.gcd(unit, n) == 1)
    found = {tuple(sorted({orbit(start, unit) for start in range(n)})) for unit in units}
    for partition in sorted(found, key=lambda orbits: (len(orbits), orbits)):
        yield [list(members) for members in partition]


def _opposite_pairs(rows: Tensor) -> tuple[int, int, int, int] | None:
    """Four rows of integers, repetition allowed, that add up to 0."""
    i, j = torch.triu_indices(len(rows), len(rows))
    sums = rows[i] + rows[j]
    weights = torch.tensor([pow(1_000_003, k, 2**61 - 1) for k in range(rows.shape[1])])
    keys = (sums * weights).sum(1)  # of a sum of pairs; wraps, so equal keys are looked at
    ordered, place = keys.sort()
    at = torch.searchsorted(ordered, -keys).clamp(max=len(ordered) - 1)
    for pair in torch.nonzero(ordered[at] == -keys).flatten().tolist():
        other = int(place[at[pair]])
        if not (sums[pair] + sums[other]).any():
            return int(i[pair]), int(j[pair]), int(i[other]), int(j[other])
    return None
