"""Relative positions that the content weighs: vectors of offsets, times queries, keys or attention weights."""

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

Places = tuple[Tensor, Tensor | None]


class Contextual(PositionEmbedding, ABC):
    """Gives every offset between two patches a learned vector of head_dim channels, and lets the content weigh it.

    With d = head_dim, query i, key j, attention a and r of `on`'s parts, each with vectors of its own:

    - ``"k"`` adds ``q_i . r^K[i, j] / sqrt(d)`` to the logits,
    - ``"q"`` adds ``k_j . r^Q[j, i] / sqrt(d)`` to the logits,
    - ``"v"`` adds ``sum_j a[i, j] r^V[i, j]`` to the head's output, which rules out fused attention.

    r[i, j] is the vector of a number that depends on the offset alone: either the sum of one of the row's and one of
    the column's offset, or one of both (`joint`). Every block has its own vectors.

    Vectors are gathered, one for each place that a query can meet, and multiplied with the queries; the products of the
    batch are not, for the backward of that is slower, and on some devices adds in another order every time. Where rows
    and columns are apart, a query meets rows + columns places, and a product with zeros and ones spreads the results
    over the keys; where they are joint, it meets N, and the vectors are (N, N, d).
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
        """Draws the vectors.

        Args:
            geometry: The host's.
            on: One of `words`.
            words: Which parts the scheme may act on: words of the letters q, k, v.
            per_head: Whether each head has vectors of its own.
            std: Deviation of the vectors at the start.
            sizes: How many numbers the offsets of rows, and those of columns, may have.
            joint: Whether each pair of the two numbers has a vector; otherwise each number has one.

        Raises:
            VitposError: `on` is another word, `per_head` no truth value, or `std` no finite number from 0.
        """
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
        """Draws the vectors anew."""
        for table in self.tables.values():
            nn.init.normal_(table, std=self.std)

    @abstractmethod
    def numbers(self, offsets: Tensor, axis: int) -> Tensor:
        """Numbers offsets along an axis, in patches, key minus query.

        Args:
            offsets: Whole numbers of any shape, int64.
            axis: 0 for rows, 1 for columns.

        Returns:
            Numbers from 0 to below ``sizes[axis]``, int64, of the same shape.
        """

    def prepare(self, grid: Grid, device: torch.device) -> Places:
        """Gives `places`. No buffer holds them, for averages of weights round what they find there."""
        return self.places(grid, device)

    def places(self, grid: Grid, device: torch.device | None = None) -> Places:
        """Says which vectors each query takes, and how its products with them spread over the keys.

        Returns:
            The index, (N, M): M vectors for each of the N queries. And None if those are the N keys', else the zeros
            and ones (M, N) that add up, for each key, the products with the vectors of its row and of its column.
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

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Places | None = None) -> Tensor | None:
        """Gives the products of queries and of keys with the vectors, (B, heads, N, N), or None for ``on="v"``."""
        places = self.places(grid, q.device) if prepared is None else prepared
        terms = [self._products("k", q, places, layer)] if "k" in self.on else []
        if "q" in self.on:
            terms.append(self._products("q", k, places, layer).transpose(-2, -1))
        return sum(terms[1:], terms[0]) if terms else None

    @property
    def uses_attention(self) -> bool:
        """Whether the scheme acts on the values."""
        return "v" in self.on

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Places | None = None) -> Tensor:
        """Gives the vectors' means under the attention, (B, heads, N, head_dim)."""
        places = self.places(grid, attention.device) if prepared is None else prepared
        vectors, spread = self._vectors("v", places, layer, 1.0, attention)
        weights = attention if spread is None else attention @ spread.t()
        return torch.einsum("bhim,imhd->bhid", weights, vectors)

    def _products(self, part: str, x: Tensor, places: Places, layer: int) -> Tensor:
        """Gives ``x_i . r[i, j] / sqrt(d)``, (B, heads, N, N)."""
        vectors, spread = self._vectors(part, places, layer, 1 / math.sqrt(self.geometry.head_dim), x)
        products = torch.einsum("bhid,imhd->bhim", x, vectors)
        return products if spread is None else products @ spread

    def _vectors(
        self, part: str, places: Places, layer: int, factor: float, like: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Gives the vectors of each query times a factor, (N, M, heads or 1, head_dim), and how they spread."""
        index, spread = places
        table = self.tables[part][layer] * factor
        # embedding(), for its backward is much faster than that of indexing.
        vectors = F.embedding(index, table.flatten(1)).view(*index.shape, *table.shape[1:])
        return vectors.to(like.dtype), None if spread is None else spread.to(like.dtype)


@register("shaw_2d")
class Shaw2D(Contextual):
    """A learned vector of the row's offset plus one of the column's, times the query.

    With d = head_dim, query at (y, x) and key at (y', x'): the logits gain
    ``q . (rows[clip(y' - y)] + columns[clip(x' - x)]) / sqrt(d)``, and with ``on="kv"`` the output of a head gains the
    sum of such vectors under its attention. Offsets up to `clip` have a vector each; farther ones, also those of a grid
    that is larger than that of training, share the last one's.

    Source: Shaw et al. 2018 (Self-Attention with Relative Position Representations), equations 3 and 4 with its
    clipping, once for rows and once for columns, added as in BoTNet (Srinivas et al. 2021, figure 4), which has
    ``on="k"`` and vectors shared by the heads. Another way to two dimensions is to concatenate vectors of half the
    width: the special case of this sum where each vector is zero on the other's channels. Class and register tokens
    have no offset, and no vectors.
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
        """Draws the vectors.

        Args:
            geometry: The host's.
            on: What the vectors are added to: keys (``"k"``, equation 4), values (``"v"``, equation 3), or both
                (``"kv"``, the whole of Shaw et al.), each with vectors of its own.
            per_head: Whether each head has vectors of its own. Shaw et al. and BoTNet share them among the heads.
            std: Deviation of the vectors at the start; None for ``1 / sqrt(head_dim)``, as BoTNet. 0 begins as if there
                were no scheme.
            clip: The largest offset with a vector of its own, in patches (k of Shaw et al.); None for the largest in
                the training grid.

        Raises:
            VitposError: `on` is another word, `per_head` no truth value, `std` no finite number from 0, or `clip` no
                whole number from 1 to the largest offset of the training grid.
        """
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
        """Clips the offsets and counts them from 0."""
        return offsets.clamp(-self.far[axis], self.far[axis]) + self.far[axis]

    def resized(self, grid: Grid) -> dict[str, Tensor]:
        """Gives the vectors of the offsets of `grid`; with `clip` they are the same ones."""
        if self.given.get("clip") is not None:
            return {}
        row, column = (self.numbers(torch.arange(1 - side, side), axis) for axis, side in enumerate(grid))
        index = torch.cat([row, column + self.sizes[0]])
        return {f"tables.{part}": table[:, index.to(table.device)] for part, table in self.tables.items()}


@register("irpe")
class IRPE(Contextual):
    """A learned vector of the bucket of the offset, times queries, keys or attention weights.

    An offset x falls into the bucket ``g(x) = x`` for ``|x| <= alpha``, and farther off into
    ``g(x) = sign(x) * min(floor(beta), round(alpha + ln(|x| / alpha) / ln(gamma / alpha) * (beta - alpha)))``: near
    offsets have one each, far ones share. Rows and columns have buckets apart. ``"product"`` has a vector for each pair
    of them, (2 floor(beta) + 1)^2 in all; ``"cross"`` adds one of the row's and one of the column's. The buckets do not
    depend on the grid, so another grid needs nothing.

    Source: Wu et al. 2021 (Rethinking and Improving Relative Position Encoding for Vision Transformer), contextual
    mode, equation 18 with alpha : beta : gamma = 1 : 2 : 8, and its directed methods. Offsets are query minus key, as
    there; the defaults are those of the authors' code, and so are vectors that start at zero. Its undirected methods
    (Euclidean, quantization) and its bias mode are left out. Its bucket of the class token, to and from which all pairs
    with a class or register token belong, is an option; where ``"cross"`` has two of them there, this is their sum.
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
        """Draws the vectors.

        Args:
            geometry: The host's.
            on: What the vectors are added to: keys (then queries meet them), queries (keys meet them) or values, or a
                word of several letters in the order q, k, v; each has vectors of its own.
            method: ``"product"`` or ``"cross"``.
            beta: The farthest bucket, rounded down; None for the authors' 3.8 (product, 49 vectors) or 40 (cross, 81 an
                axis; offsets up to 20 are told apart).
            per_head: Whether each head has vectors of its own.
            std: Deviation of the vectors at the start; at 0 the model begins as if there were no scheme.
            class_bucket: Whether pairs with a class or register token have a vector too, one for all of them (the
                authors': True). Without such tokens it has no use.

        Raises:
            VitposError: `on` or `method` is another word, `beta` no finite number from 1, `per_head` or `class_bucket`
                no truth value, or `std` no finite number from 0.
        """
        joint = choice(self.scheme, "method", method, ("product", "cross")) == "product"
        self.beta = (3.8 if joint else 40.0) if beta is None else positive(self.scheme, "beta", beta)
        if self.beta < 1:
            raise VitposError(f"position scheme {self.scheme!r}: beta={beta!r} must be at least 1: it counts buckets")
        words = ("q", "k", "v", "qk", "qv", "kv", "qkv")
        sizes = (2 * int(self.beta) + 1,) * 2
        super().__init__(geometry, on=on, words=words, per_head=per_head, std=std, sizes=sizes, joint=joint)
        self.sees_prefix = flag(self.scheme, "class_bucket", class_bucket)
        shape = (geometry.depth, geometry.num_heads if per_head else 1, geometry.head_dim)
        parts = self.on if class_bucket else ""
        self.prefix = nn.ParameterDict({part: nn.Parameter(torch.randn(shape) * self.std) for part in parts})

    def reset_parameters(self) -> None:
        """Draws the vectors anew."""
        super().reset_parameters()
        for vectors in getattr(self, "prefix", {}).values():  # not there yet when the constructor above calls
            nn.init.normal_(vectors, std=self.std)

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Places | None = None) -> Tensor | None:
        """Gives the products of queries and of keys with the vectors, those of the prefix tokens first."""
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

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Places | None = None) -> Tensor:
        """Gives the vectors' means under the attention, those of the prefix tokens first."""
        skip = attention.shape[2] - grid[0] * grid[1] if self.sees_prefix else 0
        values = super().values(attention[:, :, skip:, skip:], grid, layer, prepared)
        if not skip:
            return values
        share = (attention * self._outside(attention, skip)).sum(-1, keepdim=True)
        outside: Tensor = share * self.prefix["v"][layer][:, None].to(share.dtype)
        return F.pad(values, (0, 0, skip, 0)) + outside

    @staticmethod
    def _outside(like: Tensor, skip: int) -> Tensor:
        """Marks by ones the pairs of tokens of which one is a prefix token."""
        patch = torch.arange(like.shape[2], device=like.device) >= skip
        return (~(patch & patch[:, None])).to(like.dtype)

    def numbers(self, offsets: Tensor, axis: int) -> Tensor:
        """Gives the buckets, counted from 0."""
        alpha, farthest = self.beta / 2, int(self.beta)
        # Exact at the steps of the rounding, but on Apple's GPUs, which have no float64.
        distance = offsets.abs().to(torch.float32 if offsets.device.type == "mps" else torch.float64)
        far = alpha + (distance.clamp(min=alpha) / alpha).log() / math.log(8) * (self.beta - alpha)
        bucket = torch.where(distance <= alpha, distance, far.round().clamp(max=farthest)).long()
        return farthest - offsets.sign() * bucket
