"""What a scheme knows about positions, read off the module itself."""

import itertools

import torch

from vitpos.positions import PositionEmbedding


def table(scheme: PositionEmbedding, grid: tuple[int, int]) -> torch.Tensor | None:
    """Reads the vectors that a scheme adds to the patch tokens at the first block.

    Args:
        scheme: Any scheme.
        grid: Rows and columns of patches.

    Returns:
        (rows * columns, embed_dim) in float32 on the CPU, or None for a scheme that adds nothing there.
    """
    rows, columns = grid
    held = next(itertools.chain(scheme.parameters(), scheme.buffers()), torch.zeros(()))
    with torch.no_grad():
        zeros = torch.zeros(1, rows * columns, scheme.geometry.embed_dim, device=held.device)
        added = scheme.tokens(zeros, grid, 0)[0].float().cpu()
    return added if bool(added.any()) else None


def similarity(vectors: torch.Tensor) -> torch.Tensor:
    """Computes the cosine similarity of every two positions, (N, N) from (N, embed_dim) (ViT paper, figure 7)."""
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return unit @ unit.T


def mosaic(matrix: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Lays a similarity matrix (N, N) out as a picture: one map of the grid per position, at its place in the grid.

    Args:
        matrix: Cosine similarities in [-1, 1].
        grid: Rows R and columns C of patches, N = R * C.

    Returns:
        (R * (R + 1) - 1, C * (C + 1) - 1) grey values in [0, 1], maps a pixel apart.
    """
    rows, columns = grid
    maps = (matrix.reshape(rows, columns, rows, columns) + 1) / 2
    padded = torch.nn.functional.pad(maps, (0, 1, 0, 1), value=1.0)  # a white line after each map
    return padded.permute(0, 2, 1, 3).reshape(rows * (rows + 1), columns * (columns + 1))[:-1, :-1]
