"""Contextual relative positions: learned vectors of offsets, multiplied with queries, keys or attention weights."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from vitpos.errors import VitposError
from vitpos.positions.base import (
    Geometry,
    Grid,
    PositionEmbedding,
    choice,
    count,
    flag,
    not_negative,
    positive,
    register,
)

Index = tuple[Tensor, Tensor | None]


class Contextual(PositionEmbedding, ABC):
    """Base class: every offset between two patches has a learned vector of head_dim channels, weighted by the content.

    With d = head_dim, query i, key j, attention a, and a separate r for each letter of `on`:

    - ``"k"`` adds ``q_i . r^K[i, j] / sqrt(d)`` to the logits,
    - ``"q"`` adds ``k_j . r^Q[j, i] / sqrt(d)`` to the logits,
    - ``"v"`` adds ``sum_j a[i, j] r^V[i, j]`` to the head's output, which disables fused attention.

    r[i, j] depends on the offset only, through its row and column numbers (`numbers`): it is the sum of a vector for
    each, or one vector for the pair (`joint`). Every block has its own vectors.

    The vectors that a query can meet are gathered and multiplied with the queries. The alternative, gathering the
    products of the batch, has a slower backward, which on some devices also adds in a different order every time. If
    rows and columns are separate, a query meets rows + columns vectors, and a product with a 0/1 matrix distributes the
    results to the keys; if they are joint, it meets N, and the vectors take (N, N, d).

    Args:
        on: One of `words`.
        words: Allowed values of `on`, made of the letters q, k, v.
        per_head: Whether each head has its own vectors.
        std: Initial standard deviation of the vectors.
        sizes: Count of different numbers for row offsets and for column offsets.
        joint: Whether each pair of numbers has a vector; otherwise each number has one.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        on: str,
        words: tuple[str, ...],
        per_head: bool,
        std: float,
        sizes: Grid,
        joint: bool,
    ) -> None:
        super().__init__(geometry)
        self.on = choice(self.scheme, "on", on, words)
        self.std = not_negative(self.scheme, "std", std)
        self.sizes, self.joint = sizes, joint
        heads = geometry.num_heads if flag(self.scheme, "per_head", per_head) else 1
        vectors = sizes[0] * sizes[1] if joint else sizes[0] + sizes[1]
        shape = (geometry.depth, vectors, heads, geometry.head_dim)
        self.tables = nn.ParameterDict({part: nn.Parameter(empty(shape)) for part in self.on})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Re-initialises the vectors."""
        for table in self.tables.values():
            nn.init.normal_(table, std=self.std)

    @abstractmethod
    def numbers(self, offsets: Tensor, axis: int) -> Tensor:
        """Numbers the offsets along an axis.

        Args:
            offsets: Key minus query in patches, int64, any shape.
            axis: 0 for rows, 1 for columns.

        Returns:
            Numbers in [0, ``sizes[axis]``), int64, same shape.
        """

    def prepare(self, grid: Grid, device: torch.device) -> Index:
        """Returns `index`. Not a buffer: weight averaging would average and round it."""
        return self.index(grid, device)

    def index(self, grid: Grid, device: torch.device | None = None) -> Index:
        """Returns which vectors each query meets, and how their products are distributed to the keys.

        Returns:
            An index (N, M) of M vectors for each of N queries. And None if these are in the order of the N keys, else a
            0/1 matrix (M, N) that adds, for each key, the products with the vectors of its row and of its column.
        """
        rows, columns = grid
        sides = [torch.arange(side, device=device) for side in grid]
        row, column = (self.numbers(side - side[:, None], axis) for axis, side in enumerate(sides))
        if self.joint:
            pairs = row[:, None, :, None] * self.sizes[1] + column[:, None]
            return pairs.reshape(rows * columns, rows * columns), None
        index = torch.cat([row.repeat_interleave(columns, 0), column.repeat(rows, 1) + self.sizes[0]], dim=1)
        of_row = torch.eye(rows, device=device).repeat_interleave(columns, 1)
        return index, torch.cat([of_row, torch.eye(columns, device=device).repeat(1, rows)])

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Index | None = None) -> Tensor | None:
        """Returns the products of queries and keys with the vectors, (B, heads, N, N); None for ``on="v"``."""
        index = self.index(grid, q.device) if prepared is None else prepared
        terms = [self._products("k", q, index, layer)] if "k" in self.on else []
        if "q" in self.on:
            terms.append(self._products("q", k, index, layer).transpose(-2, -1))
        return sum(terms[1:], terms[0]) if terms else None

    @property
    def uses_attention(self) -> bool:
        """Whether the scheme acts on the values."""
        return "v" in self.on

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Index | None = None) -> Tensor:
        """Returns the attention-weighted means of the vectors, (B, heads, N, head_dim)."""
        index = self.index(grid, attention.device) if prepared is None else prepared
        vectors, spread = self._vectors("v", index, layer, 1.0, attention)
        weights = attention if spread is None else attention @ spread.t()
        return torch.einsum("bhim,imhd->bhid", weights, vectors)

    def _products(self, part: str, x: Tensor, index: Index, layer: int) -> Tensor:
        """Returns ``x_i . r[i, j] / sqrt(d)``, (B, heads, N, N)."""
        vectors, spread = self._vectors(part, index, layer, 1 / math.sqrt(self.geometry.head_dim), x)
        products = torch.einsum("bhid,imhd->bhim", x, vectors)  # (B, heads, N, M)
        return products if spread is None else products @ spread

    def _vectors(
        self, part: str, index: Index, layer: int, factor: float, like: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the scaled vectors of each query, (N, M, heads or 1, head_dim), and the 0/1 matrix or None."""
        numbers, spread = index
        table = self.tables[part][layer] * factor
        # The backward of embedding() is much faster than that of indexing.
        vectors = F.embedding(numbers, table.flatten(1)).view(*numbers.shape, *table.shape[1:])
        return vectors.to(like.dtype), None if spread is None else spread.to(like.dtype)


@register("shaw_2d")
class Shaw2D(Contextual):
    """A learned vector of the row offset plus one of the column offset, multiplied with the query.

    With d = head_dim, query at (y, x) and key at (y', x'), the logits gain
    ``q . (rows[clip(y' - y)] + columns[clip(x' - x)]) / sqrt(d)``; with ``on="kv"`` the output of a head also gains the
    attention-weighted sum of such vectors. Each offset up to `clip` has its own vector; larger offsets, including those
    of a grid larger than the training grid, share the last one.

    Source: Shaw et al. 2018 (Self-Attention with Relative Position Representations), equations 3 and 4 with its
    clipping, once for rows and once for columns, added as in BoTNet (Srinivas et al. 2021, figure 4), which uses
    ``on="k"`` and vectors shared by the heads. Another extension to two dimensions concatenates vectors of half the
    width: the special case of this sum where each vector is zero on the other's channels. Class and register tokens
    have no offset and no vectors.

    Args:
        on: What the vectors are added to: keys (``"k"``, equation 4), values (``"v"``, equation 3), or both (``"kv"``,
            all of Shaw et al.), each with its own vectors.
        per_head: Whether each head has its own vectors. Shaw et al. and BoTNet share them among the heads.
        std: Initial standard deviation of the vectors; None for ``1 / sqrt(head_dim)``, as in BoTNet. 0 starts as the
            identity.
        clip: Largest offset with its own vector, in patches (k of Shaw et al.); None for the largest in the training
            grid.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        on: str = "k",
        per_head: bool = False,
        std: float | None = None,
        clip: int | None = None,
    ) -> None:
        rows, columns = geometry.grid
        far = [rows - 1, columns - 1] if clip is None else [count(self.scheme, "clip", clip)] * 2
        if clip is not None and clip > max(rows, columns) - 1:
            raise VitposError(
                f"position scheme {self.scheme!r}: clip={clip} is beyond the largest offset {max(rows, columns) - 1} "
                f"of the training grid {rows} x {columns}: vectors beyond it would never learn"
            )
        self.far = tuple(far)
        std = geometry.head_dim**-0.5 if std is None else std
        sizes = (2 * far[0] + 1, 2 * far[1] + 1)
        words = ("k", "v", "kv")
        super().__init__(geometry, on=on, words=words, per_head=per_head, std=std, sizes=sizes, joint=False)

    def numbers(self, offsets: Tensor, axis: int) -> Tensor:
        """Returns the clipped offsets, counted from 0."""
        return offsets.clamp(-self.far[axis], self.far[axis]) + self.far[axis]

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Returns the vectors of the offsets of `grid`; with `clip` nothing changes."""
        if self.given.get("clip") is not None:
            return {}
        row, column = (self.numbers(torch.arange(1 - side, side), axis) for axis, side in enumerate(grid))
        index = torch.cat([row, column + self.sizes[0]])
        return {f"tables.{part}": table[:, index.to(table.device)] for part, table in self.tables.items()}


@register("irpe")
class IRPE(Contextual):
    """A learned vector of the bucket of the offset, multiplied with queries, keys or attention weights.

    An offset x falls into the bucket ``g(x) = x`` for ``|x| <= alpha``, and beyond that into
    ``g(x) = sign(x) * min(floor(beta), round(alpha + ln(|x| / alpha) / ln(gamma / alpha) * (beta - alpha)))``: each
    small offset has its own bucket, large ones share. Rows and columns have separate buckets. ``"product"`` has a
    vector for each pair of them, (2 floor(beta) + 1)^2 in all; ``"cross"`` adds one for the row and one for the column.
    The buckets do not depend on the grid, so nothing is resized for other grids.

    Source: Wu et al. 2021 (Rethinking and Improving Relative Position Encoding for Vision Transformer), contextual
    mode, equation 18 with alpha : beta : gamma = 1 : 2 : 8, and its directed methods. Offsets are query minus key, as
    there; the defaults, including zero initialisation, are those of the authors' code. Its undirected methods
    (Euclidean, quantization) and its bias mode are left out. Its bucket of the class token, shared by all pairs with a
    class or register token, is an option; where ``"cross"`` has two of them in the source, this one is their sum.

    Args:
        on: What the vectors are added to: keys (multiplied with queries), queries (multiplied with keys) or values, or
            several letters in the order q, k, v; each has its own vectors.
        method: ``"product"`` or ``"cross"``.
        beta: The last bucket, rounded down; None for the authors' 3.8 (product, 49 vectors) or 40 (cross, 81 per axis;
            offsets up to 20 have buckets of their own).
        per_head: Whether each head has its own vectors.
        std: Initial standard deviation of the vectors; 0 starts as the identity.
        class_bucket: Whether all pairs with a class or register token share one more vector (the authors: True). Has no
            effect without such tokens.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        on: str = "k",
        method: str = "product",
        beta: float | None = None,
        per_head: bool = False,
        std: float = 0.0,
        class_bucket: bool = False,
    ) -> None:
        joint = choice(self.scheme, "method", method, ("product", "cross")) == "product"
        self.beta = (3.8 if joint else 40.0) if beta is None else positive(self.scheme, "beta", beta)
        if self.beta < 1:
            raise VitposError(
                f"position scheme {self.scheme!r}: beta={beta!r} must be at least 1: it is the last bucket"
            )
        words = ("q", "k", "v", "qk", "qv", "kv", "qkv")
        sizes = (2 * int(self.beta) + 1,) * 2
        super().__init__(geometry, on=on, words=words, per_head=per_head, std=std, sizes=sizes, joint=joint)
        self.sees_prefix = flag(self.scheme, "class_bucket", class_bucket)
        shape = (geometry.depth, geometry.num_heads if per_head else 1, geometry.head_dim)
        parts = self.on if class_bucket else ""
        self.prefix = nn.ParameterDict({part: nn.Parameter(torch.randn(shape) * self.std) for part in parts})

    def reset_parameters(self) -> None:
        """Re-initialises the vectors."""
        super().reset_parameters()
        for vectors in getattr(self, "prefix", {}).values():  # not set yet in super().__init__
            nn.init.normal_(vectors, std=self.std)

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Index | None = None) -> Tensor | None:
        """Returns the products of queries and keys with the vectors, prefix tokens first if it sees them."""
        skip = q.shape[2] - grid[0] * grid[1] if self.sees_prefix else 0
        bias = super().bias(q[:, :, skip:], k[:, :, skip:], grid, layer, prepared)
        if bias is None or not skip:
            return bias
        bias, outside = F.pad(bias, (skip, 0, skip, 0)), self._outside(q, skip)
        factor = 1 / math.sqrt(self.geometry.head_dim)
        for part, x in (("k", q), ("q", k)):
            if part in self.on:
                products = (x * (self.prefix[part][layer] * factor)[:, None].to(x.dtype)).sum(-1, keepdim=True)
                bias = bias + outside * (products if part == "k" else products.transpose(-2, -1))
        return bias

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Index | None = None) -> Tensor:
        """Returns the attention-weighted means of the vectors, prefix tokens first if it sees them."""
        skip = attention.shape[2] - grid[0] * grid[1] if self.sees_prefix else 0
        values = super().values(attention[:, :, skip:, skip:], grid, layer, prepared)
        if not skip:
            return values
        share = (attention * self._outside(attention, skip)).sum(-1, keepdim=True)
        outside: Tensor = share * self.prefix["v"][layer][:, None].to(share.dtype)
        return F.pad(values, (0, 0, skip, 0)) + outside

    @staticmethod
    def _outside(like: Tensor, skip: int) -> Tensor:
        """Returns a 0/1 mask of the pairs in which at least one token is a prefix token, (tokens, tokens)."""
        patch = torch.arange(like.shape[2], device=like.device) >= skip
        return (~(patch & patch[:, None])).to(like.dtype)

    def numbers(self, offsets: Tensor, axis: int) -> Tensor:
        """Returns the buckets, counted from 0."""
        alpha, farthest = self.beta / 2, int(self.beta)
        # float64 rounds exactly at the bucket edges; Apple's GPUs do not have it.
        distance = offsets.abs().to(torch.float32 if offsets.device.type == "mps" else torch.float64)
        far = alpha + (distance.clamp(min=alpha) / alpha).log() / math.log(8) * (self.beta - alpha)
        bucket = torch.where(distance <= alpha, distance, far.round().clamp(max=farthest)).long()
        return farthest - offsets.sign() * bucket
