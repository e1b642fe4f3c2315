"""What a position scheme is: a module with identity hooks, a registry of names, and the text that names one."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from vitpos.errors import VitposError, unknown
from vitpos.positions import text as texts
from vitpos.positions.text import parse as parse

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
        by_offset: Whether logits and values depend on the offset of two patches only, as `vitpos.checks` makes sure; a
            scheme of which that is not so, by design, sets it to False.
    """

    scheme = "none"
    by_offset = True

    def __init__(self, geometry: Geometry) -> None:
        """Makes the scheme for a host of this geometry."""
        super().__init__()
        self.geometry = geometry

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
        """Whether `values` is to be called. It rules out fused attention, which never holds the weights."""
        return False

    def values(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Gives what is added to each head's output in block `layer` (contextual schemes that act on the values).

        Called only where `uses_attention` is true.

        Args:
            attention: Weights of the patch tokens among themselves, (B, heads, N, N), after softmax and dropout. With
                prefix tokens the rows do not sum to 1.
            grid: Rows and columns of this batch.
            layer: Index of the block, from 0.

        Returns:
            (B, heads, N, head_dim), in the dtype of `attention`.

        Raises:
            NotImplementedError: The scheme says that it uses the attention, and does not.
        """
        raise NotImplementedError(f"{type(self).__name__}.uses_attention is true, so it has to define values()")


Scheme = TypeVar("Scheme", bound=type[PositionEmbedding])
_registry: dict[str, type[PositionEmbedding]] = {"none": PositionEmbedding}


def register(name: str) -> Callable[[Scheme], Scheme]:
    """Makes the decorator that registers a class of `PositionEmbedding` under a name.

    Args:
        name: The name in texts such as ``"name(option=value)"``: a Python identifier.

    Returns:
        The decorator; it returns the class unchanged but for its attribute ``scheme``.

    Raises:
        VitposError: The name is no identifier or is taken, the class is no `PositionEmbedding`, or an argument of its
            constructor besides `geometry` is not keyword-only with a default.
    """

    def decorate(cls: Scheme) -> Scheme:
        if not name.isidentifier():
            raise VitposError(f"position scheme name {name!r} is not an identifier (letters, digits, _)")
        _serviceable(name, cls)
        old = _registry.get(name)
        # The same class defined again (a notebook cell run twice) replaces itself.
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise VitposError(f"position scheme {name!r} is already registered by {old.__module__}.{old.__qualname__}")
        cls.scheme = name
        _registry[name] = cls
        return cls

    return decorate


def _is_scheme(value: object) -> TypeGuard[type[PositionEmbedding]]:
    return inspect.isclass(value) and issubclass(value, PositionEmbedding)


def _serviceable(name: str, cls: object) -> type[PositionEmbedding]:
    """Raises a VitposError where no text could build the class; else returns it."""
    if not _is_scheme(cls):
        raise VitposError(f"position scheme {name!r}: {cls!r} is not a class of vitpos.PositionEmbedding")
    for option in list(inspect.signature(cls).parameters.values())[1:]:
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise VitposError(f"position scheme {name!r}: option {option.name!r} must be keyword-only with a default")
    return cls


def available() -> list[str]:
    """Lists the names of all schemes, sorted: those registered, and those of installed packages."""
    return sorted({*_registry, *texts.installed().names})


def registered() -> set[str]:
    """Names the schemes that are here already, so that asking for one imports nothing."""
    return set(_registry)


def find(name: str) -> type[PositionEmbedding]:
    """Finds the class of a scheme: one that is registered, in a file, or an entry point of an installed package.

    In that order, so an entry point cannot take the place of a scheme of vitpos.

    Args:
        name: A name as `parse` reads it.

    Raises:
        VitposError: No scheme has this name, the file or the entry point cannot be imported, or the class cannot be
            built from a text: see `register`.
    """
    if name in _registry:
        return _registry[name]
    if inside := texts.split(name):
        module = texts.load(inside[0])
        if inside[1] not in vars(module):
            own = [
                key for key, value in vars(module).items() if _is_scheme(value) and value.__module__ == module.__name__
            ]
            raise unknown(f"scheme in {inside[0]}:", inside[1], own)
        cls = _serviceable(name, vars(module)[inside[1]])
        if "scheme" not in vars(cls):  # what messages call it, where no decorator says so
            cls.scheme = inside[1]
        return cls
    points = list(texts.installed().select(name=name))
    if not points:
        raise unknown("position scheme", name, available())
    if len(points) > 1:
        several = ", ".join(point.value for point in points)
        raise VitposError(f"position scheme {name!r} comes with several installed packages: {several}")
    try:
        found: type[PositionEmbedding] = register(name)(points[0].load())
        return found
    except Exception as error:
        text = " ".join(str(error).split())
        raise VitposError(
            f"position scheme {name!r} is broken: its entry point {points[0].value} fails: {type(error).__name__}: "
            f"{text}"
        ) from error


def options(name: str) -> dict[str, object]:
    """Gives the options of a scheme with their defaults.

    Raises:
        VitposError: As for `find`.
    """
    return {p.name: p.default for p in list(inspect.signature(find(name)).parameters.values())[1:]}


def build(scheme: str | PositionEmbedding, geometry: Geometry) -> PositionEmbedding:
    """Builds a scheme from its text.

    Args:
        scheme: ``"name"``, ``"name(option=value, ...)"``, or a sum of those, ``"a+b"``. Values are Python literals.
            In place of a name, ``"file.py:Class"`` is a class of that file. An instance is returned unchanged.
        geometry: The host's.

    Returns:
        The scheme.

    Raises:
        VitposError: The text cannot be read, a scheme or an option is unknown, a value is not allowed, or the instance
            was made for another geometry.
    """
    if isinstance(scheme, PositionEmbedding):
        if scheme.geometry != geometry:
            raise VitposError(
                f"position scheme {scheme.scheme!r} was made for {scheme.geometry}, the model has {geometry}"
            )
        return scheme
    parts = [find(name)(geometry, **given) for name, given in check(scheme)]
    return parts[0] if len(parts) == 1 else Sum(geometry, parts)


def check(text: str) -> list[tuple[str, dict[str, object]]]:
    """Reads the text of a scheme as `parse` does, and makes sure that its schemes and their options exist.

    Raises:
        VitposError: The text cannot be read, an option is unknown, or as for `find`.
    """
    parts = parse(text)
    for name, given in parts:
        takes = options(name)
        for option in given:
            if option not in takes:
                raise unknown(f"option of position scheme {name!r}:", option, takes)
    return parts


class Sum(PositionEmbedding):
    """Several schemes at once: tokens and rotations one after the other, biases added."""

    scheme = "sum"

    def __init__(self, geometry: Geometry, parts: list[PositionEmbedding]) -> None:
        """Joins schemes that were made for this geometry, in their order."""
        super().__init__(geometry)
        self.parts = nn.ModuleList(parts)

    def _each(self) -> list[PositionEmbedding]:
        return [part for part in self.parts if isinstance(part, PositionEmbedding)]

    def tokens(self, x: Tensor, grid: Grid, layer: int) -> Tensor:
        """Applies the parts in order."""
        for part in self._each():
            x = part.tokens(x, grid, layer)
        return x

    def rotate(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> tuple[Tensor, Tensor]:
        """Applies the parts in order."""
        for part in self._each():
            q, k = part.rotate(q, k, grid, layer)
        return q, k

    def bias(self, q: Tensor, k: Tensor, grid: Grid, layer: int) -> Tensor | None:
        """Adds the parts that have a bias."""
        total: Tensor | None = None
        for part in self._each():
            term = part.bias(q, k, grid, layer)
            if term is not None:
                total = term if total is None else total + term
        return total

    @property
    def uses_attention(self) -> bool:
        """Whether one of the parts does."""
        return any(part.uses_attention for part in self._each())

    def values(self, attention: Tensor, grid: Grid, layer: int) -> Tensor:
        """Adds the parts that use the attention."""
        terms = [part.values(attention, grid, layer) for part in self._each() if part.uses_attention]
        return torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]


def positive(scheme: str, option: str, value: object) -> float:
    """Checks an option that must be a finite number above 0.

    Raises:
        VitposError: It is not.
    """
    if not _finite(value) or value <= 0:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a finite number above 0")
    return float(value)


def not_negative(scheme: str, option: str, value: object) -> float:
    """Checks an option that must be a finite number, 0 or above.

    Raises:
        VitposError: It is not.
    """
    if not _finite(value) or value < 0:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a finite number of at least 0")
    return float(value)


def count(scheme: str, option: str, value: object, least: int = 1) -> int:
    """Checks an option that must be a whole number of at least `least`.

    Raises:
        VitposError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a whole number of at least {least}")
    return value


def flag(scheme: str, option: str, value: object) -> bool:
    """Checks an option that must be True or False.

    Raises:
        VitposError: It is not.
    """
    if not isinstance(value, bool):
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be True or False")
    return value


def choice(scheme: str, option: str, value: object, allowed: Iterable[str]) -> str:
    """Checks an option that must be one of some words.

    Raises:
        VitposError: It is not.
    """
    if not isinstance(value, str) or value not in (allowed := list(allowed)):
        raise unknown(f"{option} of position scheme {scheme!r}:", str(value), allowed)
    return value


def _finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
