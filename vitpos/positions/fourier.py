"""Absolute positions from learnable Fourier features."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.positions.absolute import Absolute, divisible
from vitpos.positions.base import Geometry, Grid, count, positive, register


@register("fourier")
class Fourier(Absolute):
    """Learnable Fourier features of (row, column), followed by a small MLP.

    With positions p = (row, column) in patches, from 0, and F = fourier_dim: ``r = [cos(p W^T), sin(p W^T)] / sqrt(F)``
    and ``table = GELU(r W1 + b1) W2 + b2``. W (F/2, 2) is initialised from N(0, gamma^-2), so that initially r(p) .
    r(q) is close to ``exp(-|p - q|^2 / (2 gamma^2)) / 2``. All weights are learned and none depends on the grid: other
    grids are computed, not resized.

    Source: Li et al. 2021 (Learnable Fourier Features for Multi-Dimensional Spatial Positional Encoding), Algorithm 1
    (equations 2 and 6) with one positional group of M = 2 coordinates. The algorithm leaves these choices open, and
    they are ours: the unit of the positions, Glorot uniform W1 and W2, zero b1 and b2, the defaults. Public
    implementations that draw W with standard deviation ``gamma**2`` differ from the paper unless gamma is 1.

    Args:
        fourier_dim: Width F of the Fourier features, even; None for embed_dim.
        hidden_dim: Width of the MLP's hidden layer.
        gamma: Initial correlation length in patches: frequencies have standard deviation 1 / gamma.
        scale: Initial RMS of the table on the training grid; None keeps that of the drawn weights, about 0.02.
        inject: ``"stem"``, ``"every"`` (each layer with its own frequencies and MLP) or ``"shared"``.
    """

    precise = ("frequencies",)

    def __init__(
        self,
        geometry: Geometry,
        *,
        fourier_dim: int | None = None,
        hidden_dim: int = 32,
        gamma: float = 1.0,
        scale: float | None = None,
        inject: str = "stem",
    ) -> None:
        super().__init__(geometry, inject=inject)
        if fourier_dim is None:
            self.fourier_dim = divisible(self.scheme, "embed_dim", geometry.embed_dim, 2)
        else:
            self.fourier_dim = divisible(self.scheme, "fourier_dim", count(self.scheme, "fourier_dim", fourier_dim), 2)
        self.hidden_dim = count(self.scheme, "hidden_dim", hidden_dim)
        self.gamma = positive(self.scheme, "gamma", gamma)
        self.scale = None if scale is None else positive(self.scheme, "scale", scale)
        # Not nn.Linear: init_weights would reset the inner modules after this one and undo its initialisation.
        self.frequencies = nn.Parameter(empty(self.tables, self.fourier_dim // 2, 2))
        self.weight1 = nn.Parameter(empty(self.tables, self.hidden_dim, self.fourier_dim))
        self.bias1 = nn.Parameter(empty(self.tables, self.hidden_dim))
        self.weight2 = nn.Parameter(empty(self.tables, geometry.embed_dim, self.hidden_dim))
        self.bias2 = nn.Parameter(empty(self.tables, geometry.embed_dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Re-initialises the weights."""
        self.frequencies.normal_(std=1 / self.gamma)
        for weight in (self.weight1, self.weight2):
            bound = math.sqrt(6 / (weight.shape[1] + weight.shape[2]))
            weight.uniform_(-bound, bound)
        self.bias1.zero_()
        self.bias2.zero_()
        if self.scale is not None:
            for table, weight in enumerate(self.weight2):
                drawn = self.vectors(self.geometry.grid, table, weight.device)
                weight.mul_(self.scale / drawn.square().mean().sqrt())

    def vectors(self, grid: Grid, table: int, device: torch.device) -> Tensor:
        """Computes the vectors of a grid."""
        exact = torch.promote_types(self.frequencies.dtype, torch.float32)
        parameters = (self.frequencies, self.weight1, self.bias1, self.weight2, self.bias2)
        frequencies, weight1, bias1, weight2, bias2 = (parameter[table].to(exact) for parameter in parameters)
        row = torch.arange(grid[0], dtype=exact, device=device)[:, None, None]
        column = torch.arange(grid[1], dtype=exact, device=device)[:, None]
        # Half precision would corrupt the angles; the cost does not grow with the batch.
        with torch.autocast(device.type, enabled=False):
            angles = (row * frequencies[:, 0] + column * frequencies[:, 1]).flatten(0, 1)  # (N, F/2)
            features = torch.cat([angles.cos(), angles.sin()], dim=-1) / math.sqrt(self.fourier_dim)  # (N, F)
            return F.linear(F.gelu(F.linear(features, weight1, bias1)), weight2, bias2)[None]
