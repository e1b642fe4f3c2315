"""The base class of all position schemes, whose hooks are identities, and sums of schemes."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitpos.errors import VitposError

Grid = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The sizes of the model that a scheme is built for.

    Attributes:
        grid: Rows and columns of patches in the training images.
        embed_dim: Token width.
        num_heads: Attention heads per block.
        depth: Number of blocks.
    """

    grid: Grid
    embed_dim: int
    num_heads: int
    depth: int

    def __post_init__(self) -> None:
        if len(self.grid) != 2 or min(*self.grid, self.embed_dim, self.num_heads, self.depth) < 1:
            raise VitposError(f"{self} needs two grid sides, and every number to be at least 1")
        if self.embed_dim % self.num_heads:
            raise VitposError(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")

    @property
    def head_dim(self) -> int:
        """Width of one head, ``embed_dim / num_heads``."""
        return self.embed_dim // self.num_heads


class PositionEmbedding(nn.Module):
    """Base class of position schemes. Every hook is the identity, so the class itself is the scheme ``none``.

    A subclass overrides the hooks it needs. Hooks see patch tokens only, in row-major order; the model keeps class and
    register tokens away from them. The grid is an argument of every hook and may differ from the training grid.

    The options of a scheme are the keyword-only arguments of its constructor, each with a default, documented in the
    class docstring. A constructor raises `VitposError` for a value that is not allowed.

    Args:
        geometry: Sizes of the model; not an option.

    Attributes:
        scheme: The registered name, set by `register`.
        precise: Names of parameters that stay in float32 when the model is cast to half precision, because what is
            computed from them (e.g. angles) would be wrong. Buffers always stay in float32.
        by_offset: Whether logits and values depend only on the offset between two patches. `vitpos.checks` verifies
            this; schemes for which it does not hold by design set it to False.
        hooks: Names of the hooks that the class overrides.
        sees_prefix: If true, `bias` and `values` cover all tokens, class and register tokens first, instead of patch
            tokens only. The number of prefix tokens (possibly 0) is the token count minus rows * columns.
    """

    scheme = "none"
    by_offset = True
    hooks: frozenset[str] = frozenset()
    sees_prefix = False
    precise: tuple[str, ...] = ()
    given: dict[str, object]

    def __new__(cls, *args: object, **given: object) -> Self:
        """Records the options, for `text`."""
        scheme = super().__new__(cls)
        scheme.__dict__["given"] = given
        return scheme

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @property
    def text(self) -> str:
        """The text that rebuilds the scheme: its name and the options that differ from their defaults, sorted."""
        usual = {option.name: option.default for option in constructor_options(type(self))}
        own = [f"{name}={value!r}" for name, value in sorted(self.given.items()) if value != usual[name]]
        return f"{self.scheme}({', '.join(own)})" if own else self.scheme

    def extra_repr(self) -> str:
        """Returns the text and the training grid."""
        return f"{self.text!r}, grid={self.geometry.grid}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a table of all positions; timm's checkpoint filter reads ``pos_embed.shape``."""
        return 1, self.geometry.grid[0] * self.geometry.grid[1], self.geometry.embed_dim

    def is_training_grid(self, grid: Grid) -> bool:
        """Returns whether `grid` is the training grid; false for symbolic sizes in ``torch.export``."""
        return all(type(side) is int for side in grid) and tuple(grid) == self.geometry.grid

    def init_non_persistent_buffers(self) -> None:
        """Recomputes buffers that are not in the state dict, for timm's ``reinit_non_persistent_buffers``.

        Needed after ``load_state_dict(assign=True)`` into a model on device ``meta``.
        """
        device = next((p.device for p in self.parameters()), None)
        for name, buffer in [*self._buffers.items()]:
            if buffer is not None:
                with isolated_init():
                    fresh = type(self)(self.geometry, **self.given)._buffers[name]
                here = device if buffer.is_meta else buffer.device
                self._buffers[name] = None if fresh is None else fresh.to("cpu" if here is None else here)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts like ``nn.Module``, but keeps `precise` parameters and buffers in float32.

        5-D parameters are flattened to 4-D for the call, because ``channels_last`` accepts 4-D tensors only.
        """
        kept = [self._parameters.get(name) for name in self.precise]
        keep = {id(t) for p in kept if p is not None for t in (p, p.grad)} | {id(b) for b in self._buffers.values()}

        def moved(tensor: Tensor) -> Tensor:
            flat = tensor.flatten(1) if tensor.dim() == 5 else tensor
            new = fn(flat)
            if id(tensor) in keep and new.is_floating_point() and new.dtype.itemsize < min(4, flat.dtype.itemsize):
                new = flat.to(new.device, torch.float32)
            return new.view(tensor.shape) if flat is not tensor else new

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call,no-any-return]

    def resized(self, grid: Grid) -> dict[str, Tensor] | None:
        """Returns state dict entries that make the scheme the same function with `grid` as its training grid.

        Returns:
            The entries that change, or None if the scheme cannot be converted. A model that loads the state dict on
            another grid then keeps the training grid of the state dict for this scheme.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Computed per class, because torch.compile cannot compare the functions of two classes.
        names = ("tokens", "rotate", "bias", "weights", "values")
        cls.hooks = frozenset(n for n in names if getattr(cls, n) is not getattr(PositionEmbedding, n))

    def prepare(self, grid: Grid, device: torch.device) -> Any:
        """Computes what all blocks share in one forward pass; called once, before the other hooks.

        Args:
            grid: Rows and columns of this batch.
            device: Device of the tokens.

        Returns:
            None, or a value that the scheme's other hooks receive as the keyword argument ``prepared``. A scheme that
            overrides this method declares ``prepared: Any = None`` in its hooks and computes the value itself if None.
        """
        return None

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Changes the patch tokens at the input of block `layer` (absolute and conditional schemes).

        Args:
            x: Patch tokens, (B, N, C), N = rows * columns.
            grid: Rows and columns of this batch.
            layer: Block index, from 0. Layer 0 comes before the dropout and norm in front of the blocks.

        Returns:
            The tokens, same shape and dtype; `x` itself if nothing changes.
        """
        return x

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Changes the queries and keys of block `layer`, after their norm if there is one (rotary schemes).

        Args:
            q: Queries of the patch tokens, (B, heads, N, head_dim), before scaling.
            k: Keys, same shape.
            grid: Rows and columns of this batch.
            layer: Block index, from 0.

        Returns:
            Queries and keys, same shapes and dtypes; `q` and `k` themselves if nothing changes.
        """
        return q, k

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> Tensor | None:
        """Returns the attention bias of block `layer` (relative and contextual schemes).

        The logits become ``q k^T / sqrt(head_dim) + bias``. Queries and keys are those before `rotate`, so a contextual
        bias in a sum with a rotary scheme still depends on offsets only.

        Args:
            q: Queries of the patch tokens, (B, heads, N, head_dim), before scaling.
            k: Keys, same shape.
            grid: Rows and columns of this batch.
            layer: Block index, from 0.

        Returns:
            None, (heads, N, N) or (B, heads, N, N).
        """
        return None

    @property
    def uses_attention(self) -> bool:
        """Whether `weights` and `values` are called. Disables fused attention, which does not expose the weights."""
        return False

    def weights(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Changes the attention weights of block `layer`, after the softmax; called only if `uses_attention`.

        Args:
            attention: Weights among the patch tokens, (B, heads, N, N), before dropout. With prefix tokens the rows sum
                to less than 1, because patches also attend to those. The result must have the same row sums.
            grid: Rows and columns of this batch.
            layer: Block index, from 0.

        Returns:
            The weights, same shape and dtype; `attention` itself if nothing changes.
        """
        return attention

    def values(self, attention: Tensor, grid: Grid, layer: int) -> Tensor | None:
        """Returns a term added to each head's output in block `layer`; called only if `uses_attention`.

        Args:
            attention: Weights among the patch tokens, (B, heads, N, N), after dropout. With prefix tokens the rows sum
                to less than 1.
            grid: Rows and columns of this batch.
            layer: Block index, from 0.

        Returns:
            None, or (B, heads, N, head_dim) in the dtype of `attention`.
        """
        return None


def hook_kwargs(scheme: PositionEmbedding, hook: str, prepared: Any) -> dict[str, Any]:
    """Returns ``{"prepared": prepared}`` if the scheme prepared something and overrides this hook, else ``{}``."""
    return {"prepared": prepared} if prepared is not None and hook in scheme.hooks else {}


def constructor_options(cls: type[PositionEmbedding]) -> list[inspect.Parameter]:
    """Returns the constructor's parameters other than self and geometry."""
    return list(inspect.signature(cls.__init__).parameters.values())[2:]  # signature(cls) could be that of __new__


class Sum(PositionEmbedding):
    """Several schemes at once: tokens and rotations are applied in order, biases and values are added.

    Args:
        parts: Schemes built for the same geometry.
    """

    scheme = "sum"

    def __init__(self, geometry: Geometry, parts: list[PositionEmbedding]) -> None:
        super().__init__(geometry)
        self.parts = nn.ModuleList(parts)
        self.sees_prefix = any(part.sees_prefix for part in parts)

    @property
    def text(self) -> str:
        """The texts of the parts, joined by ``+``."""
        return "+".join(part.text for part, _ in self._each())

    def _each(self, hook: str = "", prepared: Any = None) -> Iterator[tuple[PositionEmbedding, dict[str, Any]]]:
        """Yields each part with the keyword arguments for one of its hooks."""
        for number, part in enumerate(self.parts):
            if isinstance(part, PositionEmbedding):
                yield part, {} if prepared is None else hook_kwargs(part, hook, prepared[number])

    def prepare(self, grid: Grid, device: torch.device) -> list[Any] | None:
        """Prepares each part; None if no part prepares anything."""
        prepared = [part.prepare(grid, device) for part, _ in self._each()]
        return None if all(own is None for own in prepared) else prepared

    def tokens(self, x: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor:
        """Applies the parts in order."""
        for part, more in self._each("tokens", prepared):
            x = part.tokens(x, grid, layer, **more)
        return x

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Any = None) -> tuple[Tensor, Tensor]:
        """Applies the parts in order."""
        for part, more in self._each("rotate", prepared):
            q, k = part.rotate(q, k, grid, layer, **more)
        return q, k

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor | None:
        """Adds the biases of the parts, zero-padded for parts that do not see the prefix tokens."""
        total: Tensor | None = None
        for part, more in self._each("bias", prepared):
            skip = self._skipped(part, q, grid)
            seen = (q[:, :, skip:], k[:, :, skip:]) if skip else (q, k)
            term = part.bias(*seen, grid, layer, **more)
            if term is not None:
                term = F.pad(term, (skip, 0, skip, 0)) if skip else term
                total = term if total is None else total + term
        return total

    def _skipped(self, part: PositionEmbedding, x: Tensor, grid: Grid) -> int:
        """Returns the number of prefix tokens that the sum sees and a part does not."""
        return x.shape[2] - grid[0] * grid[1] if self.sees_prefix and not part.sees_prefix else 0

    @property
    def uses_attention(self) -> bool:
        """Whether any part does."""
        return any(part.uses_attention for part, _ in self._each())

    def weights(self, attention: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor:
        """Applies the parts in order."""
        for part, more in self._each("weights", prepared):
            attention = part.weights(attention, grid, layer, **more) if part.uses_attention else attention
        return attention

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor | None:
        """Adds the values of the parts that use the attention."""
        total: Tensor | None = None
        for part, more in self._each("values", prepared):
            skip = self._skipped(part, attention, grid)
            seen = attention[:, :, skip:, skip:] if skip else attention
            term = part.values(seen, grid, layer, **more) if part.uses_attention else None
            if term is not None:
                term = F.pad(term, (0, 0, skip, 0)) if skip else term
                total = term if total is None else total + term
        return total


@contextmanager
def isolated_init() -> Iterator[None]:
    """Context for building schemes: on the CPU, in at least float32, with a fork of the global random state."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(usual, torch.float32))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(usual)


def parts(scheme: PositionEmbedding) -> list[PositionEmbedding]:
    """Returns the parts of a sum, or the scheme itself as its only part."""
    return [p for p in scheme.parts if isinstance(p, PositionEmbedding)] if isinstance(scheme, Sum) else [scheme]
