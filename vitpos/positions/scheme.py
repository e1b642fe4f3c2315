"""What a position scheme is: a module with identity hooks; and a sum of schemes."""

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
    """What a scheme may know of its host before it sees an image.

    Attributes:
        grid: Rows and columns of patches of the training images.
        embed_dim: Width of a token.
        num_heads: Attention heads of a block.
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
        """Width of one head: ``embed_dim / num_heads``."""
        return self.embed_dim // self.num_heads


class PositionEmbedding(nn.Module):
    """A position scheme. Every hook is the identity here, so the class itself is the scheme ``none``.

    A scheme overrides the hooks that it needs. It sees patch tokens only, in row-major order; the host keeps class and
    register tokens away from it. The grid is an argument of every hook and may differ from the training grid.

    The options of a scheme are the keyword-only arguments of its constructor, each with a default.

    Attributes:
        scheme: Its name, set by `register`.
        precise: Names of parameters that stay in float32 in a model of half precision, which would corrupt what is
            computed of them, such as angles; buffers stay too.
        by_offset: Whether logits and values depend on the offset of two patches only, as `vitpos.checks` makes sure; a
            scheme of which that is not so, by design, sets it to False.
        hooks: Those that the class overrides.
        sees_prefix: Whether `bias` and `values` are about all tokens, class and register tokens first, instead of the
            patch tokens only. How many there are is what the grid leaves over; it may be none.
    """

    scheme = "none"
    by_offset = True
    hooks: frozenset[str] = frozenset()
    sees_prefix = False
    precise: tuple[str, ...] = ()
    given: dict[str, object]

    def __new__(cls, *args: object, **given: object) -> Self:
        """Notes the options."""
        scheme = super().__new__(cls)
        scheme.__dict__["given"] = given
        return scheme

    def __init__(self, geometry: Geometry) -> None:
        """Makes the scheme for a host of this geometry."""
        super().__init__()
        self.geometry = geometry

    @property
    def text(self) -> str:
        """The text that names the scheme, with the options that are not at their defaults, sorted."""
        usual = {option.name: option.default for option in constructor_options(type(self))}
        own = [f"{name}={value!r}" for name, value in sorted(self.given.items()) if value != usual[name]]
        return f"{self.scheme}({', '.join(own)})" if own else self.scheme

    def extra_repr(self) -> str:
        """Gives text and training grid."""
        return f"{self.text!r}, grid={self.geometry.grid}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of a table of all positions, which timm's filter of checkpoints asks ``pos_embed`` for."""
        return 1, self.geometry.grid[0] * self.geometry.grid[1], self.geometry.embed_dim

    def home(self, grid: Grid) -> bool:
        """Whether a grid is that of training; one of sides that are not known yet, in ``torch.export``, never is."""
        return all(type(side) is int for side in grid) and tuple(grid) == self.geometry.grid

    def init_non_persistent_buffers(self) -> None:
        """Computes the buffers anew where they are in no state dict, for timm's ``reinit_non_persistent_buffers``.

        So after ``load_state_dict(assign=True)`` of a model on device ``meta``.
        """
        device = next((p.device for p in self.parameters()), None)
        for name, buffer in [*self._buffers.items()]:
            if buffer is not None:
                with apart():
                    fresh = type(self)(self.geometry, **self.given)._buffers[name]
                here = device if buffer.is_meta else buffer.device
                self._buffers[name] = None if fresh is None else fresh.to("cpu" if here is None else here)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and casts as ``nn.Module``, but for what stays `precise`, and for the 4-D ``channels_last``."""
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
        """Gives the state dict of the same scheme, with this grid as that of training, and the same function there.

        Returns:
            The entries that are others; None where there is no such state dict, or the scheme knows none: then a model
            that loads the state dict on another grid keeps this scheme's training grid.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Here, for torch.compile does not tell apart the functions of two classes.
        names = ("tokens", "rotate", "bias", "weights", "values")
        cls.hooks = frozenset(n for n in names if getattr(cls, n) is not getattr(PositionEmbedding, n))

    def prepare(self, grid: Grid, device: torch.device) -> Any:
        """Computes what the hooks of one forward share, once for all blocks; called before the other hooks.

        Args:
            grid: Rows and columns of this batch.
            device: Where the tokens are.

        Returns:
            None, or what the scheme's other hooks get in this forward as the keyword argument ``prepared``. A scheme
            that overrides this gives its hooks ``prepared: Any = None``, and they compute what they need where it is
            None.
        """
        return None

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Changes the patch tokens as they enter block `layer` (absolute and conditional schemes).

        Args:
            x: Patch tokens, (B, N, C), N = rows * columns.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0. Layer 0 comes before dropout and the norm in front of the blocks.

        Returns:
            The tokens, same shape and dtype; the same object where nothing is done.
        """
        return x

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Changes queries and keys of block `layer`, after their norm if there is one (rotary schemes).

        Args:
            q: Queries of the patch tokens, (B, heads, N, head_dim), not yet scaled.
            k: Keys, as `q`.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0.

        Returns:
            Queries and keys, same shapes and dtypes; the same objects where nothing is done.
        """
        return q, k

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> Tensor | None:
        """Gives what is added to the attention logits of block `layer` (relative and contextual schemes).

        The logits are ``q k^T / sqrt(head_dim)``; the bias is added after that scaling. Queries and keys are those
        before `rotate`, so a contextual bias in a sum with a rotary scheme still depends on offsets only.

        Args:
            q: Queries of the patch tokens, (B, heads, N, head_dim), not yet scaled.
            k: Keys, as `q`.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0.

        Returns:
            None, or (heads, N, N), or (B, heads, N, N).
        """
        return None

    @property
    def uses_attention(self) -> bool:
        """Whether `weights` and `values` are called. It rules out fused attention, which never holds the weights."""
        return False

    def weights(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Changes the attention weights of block `layer` (schemes that act after the softmax).

        Called only where `uses_attention` is true.

        Args:
            attention: Weights of the patch tokens among themselves, (B, heads, N, N), after softmax, before dropout.
                With prefix tokens the rows do not sum to 1: some of a patch's attention goes to them. What the scheme
                returns has to have the same sums.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0.

        Returns:
            The weights, same shape and dtype; the same object where nothing is done.
        """
        return attention

    def values(self, attention: Tensor, grid: Grid, layer: int) -> Tensor | None:
        """Gives what is added to each head's output in block `layer` (contextual schemes that act on the values).

        Called only where `uses_attention` is true.

        Args:
            attention: Weights of the patch tokens among themselves, (B, heads, N, N), after softmax and dropout. With
                prefix tokens the rows do not sum to 1.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0.

        Returns:
            None, or (B, heads, N, head_dim), in the dtype of `attention`.
        """
        return None


def given(scheme: PositionEmbedding, hook: str, prepared: Any) -> dict[str, Any]:
    """Gives the keyword arguments of a hook: what the scheme prepared, if it did and has this hook of its own."""
    return {"prepared": prepared} if prepared is not None and hook in scheme.hooks else {}


def constructor_options(cls: type[PositionEmbedding]) -> list[inspect.Parameter]:
    """Lists the arguments of a constructor besides the geometry."""
    return list(inspect.signature(cls.__init__).parameters.values())[2:]  # of the class it may be that of __new__


class Sum(PositionEmbedding):
    """Several schemes at once: tokens and rotations one after the other, biases added."""

    scheme = "sum"

    def __init__(self, geometry: Geometry, parts: list[PositionEmbedding]) -> None:
        """Joins schemes that were made for this geometry, in their order."""
        super().__init__(geometry)
        self.parts = nn.ModuleList(parts)
        self.sees_prefix = any(part.sees_prefix for part in parts)

    @property
    def text(self) -> str:
        """The texts of the parts."""
        return "+".join(part.text for part, _ in self._each())

    def _each(self, hook: str = "", prepared: Any = None) -> Iterator[tuple[PositionEmbedding, dict[str, Any]]]:
        """Gives each part, and the keyword arguments of a hook of it."""
        for number, part in enumerate(self.parts):
            if isinstance(part, PositionEmbedding):
                yield part, {} if prepared is None else given(part, hook, prepared[number])

    def prepare(self, grid: Grid, device: torch.device) -> list[Any] | None:
        """Lets each part prepare."""
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
        """Adds the parts that have a bias."""
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
        """Counts the prefix tokens that the sum sees and a part does not."""
        return x.shape[2] - grid[0] * grid[1] if self.sees_prefix and not part.sees_prefix else 0

    @property
    def uses_attention(self) -> bool:
        """Whether one of the parts does."""
        return any(part.uses_attention for part, _ in self._each())

    def weights(self, attention: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor:
        """Applies the parts in order."""
        for part, more in self._each("weights", prepared):
            attention = part.weights(attention, grid, layer, **more) if part.uses_attention else attention
        return attention

    def values(self, attention: Tensor, grid: Grid, layer: int, prepared: Any = None) -> Tensor | None:
        """Adds the parts that use the attention."""
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
def apart() -> Iterator[None]:
    """Builds schemes on the CPU, in float32 at least, from a fork of the global random state."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.promote_types(usual, torch.float32))
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(usual)


def parts(scheme: PositionEmbedding) -> list[PositionEmbedding]:
    """Lists the parts of a sum; any other scheme is its only part."""
    return [p for p in scheme.parts if isinstance(p, PositionEmbedding)] if isinstance(scheme, Sum) else [scheme]
