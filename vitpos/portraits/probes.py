"""Measuring the effect of a scheme by calling its hooks."""

import copy
import itertools
import math

import torch

from vitpos.positions import PositionEmbedding

FAMILIES = {
    "absolute": "absolute",
    "conditional": "conditional",
    "rotary": "rotary",
    "relative": "relative",
    "weights": "relative",
    "contextual": "contextual",
    "values": "contextual",
}


def table(scheme: PositionEmbedding, grid: tuple[int, int], layer: int = 0) -> torch.Tensor | None:
    """Returns the vectors that a scheme adds to the patch tokens at a block.

    Args:
        scheme: Any scheme.
        grid: Rows and columns of patches.
        layer: Index of the block, from 0.

    Returns:
        (rows * columns, embed_dim) in float32 on the CPU, or None for a scheme that adds nothing there.
    """
    rows, columns = grid
    held = next(itertools.chain(scheme.parameters(), scheme.buffers()), torch.zeros(()))
    with torch.no_grad():
        zeros = torch.zeros(1, rows * columns, scheme.geometry.embed_dim, device=held.device)
        added = scheme.tokens(zeros, grid, layer)[0].float().cpu()
    return added if bool(added.any()) else None


def similarity(vectors: torch.Tensor) -> torch.Tensor:
    """Returns the cosine similarities of all positions, (N, N) from (N, embed_dim) (ViT paper, figure 7)."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def mosaic(matrix: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Arranges similarities (N, N) as a picture: one map of the grid per position, at its place in the grid.

    Args:
        matrix: Cosine similarities in [-1, 1].
        grid: Rows R and columns C of patches, N = R * C.

    Returns:
        (R * (R + 1) - 1, C * (C + 1) - 1) grey values in [0, 1], with a line of one pixel between maps.
    """
    rows, columns = grid
    maps = (matrix.reshape(rows, columns, rows, columns) + 1) / 2
    padded = torch.nn.functional.pad(maps, (0, 1, 0, 1), value=1.0)  # a white line after each map
    return padded.permute(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]


def power(vectors: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Returns the 2-D Fourier power of a table over the grid, as shares of the total without the mean.

    Args:
        vectors: A table, (R * C, embed_dim).
        grid: Rows R and columns C.

    Returns:
        (R, C), summed over channels; frequency 0 is at row R // 2, column C // 2, with power 0.
    """
    waves = torch.fft.fft2((vectors - vectors.mean(0)).T.double().reshape(-1, *grid))
    total = waves.abs().square().sum(0)
    total[0, 0] = 0  # is only rounding error
    shifted: torch.Tensor = torch.fft.fftshift(total / total.sum().clamp(min=1e-30))
    return shifted


# Seeds other than 0: a scheme initialised with seed 0 would have the same numbers in its table as the queries.
def inputs(scheme: PositionEmbedding, batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws tokens (batch, N, embed_dim) and queries and keys (batch, heads, N, head_dim) from N(0, 1), seed 1."""
    own = scheme.geometry
    patches = own.grid[0] * own.grid[1]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, patches, own.embed_dim, generator=generator)
    q, k = torch.randn(2, batch, own.num_heads, patches, own.head_dim, generator=generator)
    return x, q, k


def randomized(scheme: PositionEmbedding) -> PositionEmbedding:
    """Returns a copy with parameters from N(0, 1), seed 2: a scheme that starts as the identity then has an effect."""
    scheme, generator = copy.deepcopy(scheme), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in scheme.parameters():
            parameter.normal_(generator=generator)
    return scheme


@torch.no_grad()
def kinds(scheme: PositionEmbedding) -> dict[str, list[int]]:
    """Detects by trial what a scheme does.

    Parameters are `randomized`, so that a scheme that starts as the identity is not mistaken for ``none``.

    Args:
        scheme: Any scheme, on the CPU.

    Returns:
        The blocks with an effect, by kind, in the order of `FAMILIES`: adds vectors to the tokens (``absolute``), adds
        vectors that depend on the tokens (``conditional``), rotates queries and keys (``rotary``), adds a bias to the
        logits (``relative``), adds a bias that depends on queries or keys (``contextual``), changes the ``weights``
        after the softmax, acts on the ``values``.
    """
    scheme, grid = randomized(scheme), scheme.geometry.grid
    x, q, k = inputs(scheme, 2)
    found: dict[str, list[int]] = {kind: [] for kind in FAMILIES}
    for layer in range(scheme.geometry.depth):
        moved = scheme.tokens(x, grid, layer)
        if moved is not x:
            added = moved - x
            alike = torch.allclose(added[0], added[1], rtol=1e-4, atol=1e-4)
            found["absolute" if alike else "conditional"].append(layer)
        turned = scheme.rotate(q, k, grid, layer)
        if turned[0] is not q or turned[1] is not k:
            found["rotary"].append(layer)
        bias = scheme.bias(q, k, grid, layer)
        if bias is not None:
            found["relative" if bias.dim() == 3 or torch.equal(bias[0], bias[1]) else "contextual"].append(layer)
        if scheme.uses_attention:
            even = torch.full_like(q @ k.transpose(-2, -1), 1 / q.shape[2])
            if scheme.weights(even, grid, layer) is not even:
                found["weights"].append(layer)
            if scheme.values(even, grid, layer) is not None:
                found["values"].append(layer)
    return {kind: layers for kind, layers in found.items() if layers}


@torch.no_grad()
def effect(scheme: PositionEmbedding, kind: str, layer: int) -> torch.Tensor:
    """Returns the change that a scheme makes in a block, for one random input: zeros if it is the identity.

    Args:
        scheme: Any scheme.
        kind: A kind found by `kinds`.
        layer: Index of the block.

    Returns:
        The change of tokens or queries, the bias, or the term added to the output, in the shape of the hook.
    """
    grid, (x, q, k) = scheme.geometry.grid, inputs(scheme, 1)
    if kind in ("absolute", "conditional"):
        return scheme.tokens(x, grid, layer) - x
    if kind == "rotary":
        return scheme.rotate(q, k, grid, layer)[0] - q
    if kind == "weights":
        return logits(scheme, kind, layer) - 1 / q.shape[2]
    if kind == "values":
        values = scheme.values((q @ k.transpose(-2, -1)).softmax(-1), grid, layer)
        return torch.zeros(()) if values is None else values
    bias = scheme.bias(q, k, grid, layer)
    return torch.zeros(()) if bias is None else bias


def by_offset(pairs: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Averages over all pairs of patches with the same offset.

    Args:
        pairs: (..., N, N) of query and key, N = R * C.
        grid: Rows R and columns C.

    Returns:
        (..., 2R - 1, 2C - 1): offsets of the key from the query, rows from 1 - R to R - 1, columns likewise.
    """
    rows, columns = grid
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    index = (row - row[:, None] + rows - 1) * (2 * columns - 1) + column - column[:, None] + columns - 1
    offsets = (2 * rows - 1) * (2 * columns - 1)
    count = torch.bincount(index.flatten(), minlength=offsets)
    total = torch.zeros(*pairs.shape[:-2], offsets, dtype=torch.float64)
    total.index_add_(-1, index.flatten(), pairs.flatten(-2).double())
    return (total / count).reshape(*pairs.shape[:-2], 2 * rows - 1, 2 * columns - 1)


@torch.no_grad()
def logits(scheme: PositionEmbedding, kind: str, layer: int) -> torch.Tensor:
    """Returns the effect of a ``rotary``, ``relative`` or ``weights`` scheme on each pair of patches, (heads, N, N).

    Relative: its bias. Weights: the weights that it returns for uniform ones. Rotary: the mean of
    ``q k^T / sqrt(head_dim)`` over queries q = k from N(0, 1), computed exactly with unit vectors e as the sum of
    ``rotate(e)_i . rotate(e)_j / sqrt(head_dim)``.
    """
    own = scheme.geometry
    if kind == "weights":
        patches = own.grid[0] * own.grid[1]
        return scheme.weights(torch.full((1, own.num_heads, patches, patches), 1 / patches), own.grid, layer)[0]
    if kind == "relative":
        _, q, k = inputs(scheme, 1)
        bias = scheme.bias(q, k, own.grid, layer)
        return torch.zeros(()) if bias is None else bias.reshape(-1, *bias.shape[-2:])
    units = torch.eye(own.head_dim)[:, None, None].expand(-1, own.num_heads, own.grid[0] * own.grid[1], -1)
    q, k = scheme.rotate(units, units, own.grid, layer)
    return torch.einsum("bhid,bhjd->hij", q, k) / math.sqrt(own.head_dim)


@torch.no_grad()
def contextual(scheme: PositionEmbedding, layer: int, draws: int = 256) -> torch.Tensor:
    """Returns biases by offset for queries and keys from N(0, 1), each the same at all positions and in all heads.

    Returns:
        (draws, heads, 2R - 1, 2C - 1), seed 1.
    """
    own = scheme.geometry
    patches, generator = own.grid[0] * own.grid[1], torch.Generator().manual_seed(1)
    found = []
    for _ in range(0, draws, 32):  # in chunks, because each bias is (heads, N, N)
        drawn = torch.randn(2, 32, 1, 1, own.head_dim, generator=generator)
        q, k = drawn.expand(-1, -1, own.num_heads, patches, -1)
        bias = scheme.bias(q, k, own.grid, layer)
        found += [] if bias is None else [by_offset(bias, own.grid)]
    return torch.cat(found)


@torch.no_grad()
def value_lengths(scheme: PositionEmbedding, layer: int) -> torch.Tensor:
    """Returns, by offset, the length of the vector added for attention to a single key, (heads, 2R - 1, 2C - 1)."""
    own = scheme.geometry
    patches = own.grid[0] * own.grid[1]
    one_key = torch.eye(patches)[:, None, None].expand(-1, own.num_heads, patches, -1)
    gained = scheme.values(one_key, own.grid, layer)  # (key, heads, query, head_dim)
    return by_offset(torch.zeros(()) if gained is None else gained.norm(dim=-1).permute(1, 2, 0), own.grid)


@torch.no_grad()
def response(scheme: PositionEmbedding, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the terms that a ``conditional`` scheme adds to two inputs, minus those for zeros.

    Returns:
        For a patch of ones at row R // 2 and column C // 2 among zeros, and for ones everywhere; both (embed_dim, R,
        C).
    """
    rows, columns = scheme.geometry.grid
    x = torch.zeros(3, rows, columns, scheme.geometry.embed_dim)
    x[1, rows // 2, columns // 2] = 1
    x[2] = 1
    x = x.flatten(1, 2)
    added = scheme.tokens(x, scheme.geometry.grid, layer) - x
    impulse, ones = (added[1:] - added[0]).transpose(1, 2).reshape(2, -1, rows, columns)
    return impulse, ones
