"""The scheme registry, building schemes from text, and validators for options."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import TypeGuard, TypeVar

from vitpos.errors import VitposError, unknown
from vitpos.positions import text as texts
from vitpos.positions.scheme import Geometry as Geometry
from vitpos.positions.scheme import Grid as Grid
from vitpos.positions.scheme import PositionEmbedding as PositionEmbedding
from vitpos.positions.scheme import Sum as Sum
from vitpos.positions.scheme import constructor_options
from vitpos.positions.scheme import isolated_init as isolated_init
from vitpos.positions.scheme import parts as parts
from vitpos.positions.text import parse as parse

Scheme = TypeVar("Scheme", bound=type[PositionEmbedding])
_registry: dict[str, type[PositionEmbedding]] = {"none": PositionEmbedding}


def register(name: str) -> Callable[[Scheme], Scheme]:
    """Returns a decorator that registers a `PositionEmbedding` subclass under a name.

    The decorator returns the class unchanged except for its attribute ``scheme``.

    Args:
        name: The name in texts such as ``"name(option=value)"``; a Python identifier.

    Raises:
        VitposError: The name is not an identifier or is taken, the class is not a `PositionEmbedding`, or a constructor
            argument other than `geometry` is not keyword-only with a default.
    """

    def decorate(cls: Scheme) -> Scheme:
        if not name.isidentifier():
            raise VitposError(f"position scheme name {name!r} is not an identifier (letters, digits, _)")
        _validated(name, cls)
        old = _registry.get(name)
        # A class defined again (e.g. a notebook cell run twice) replaces itself.
        if old is not None and (old.__module__, old.__qualname__) != (cls.__module__, cls.__qualname__):
            raise VitposError(f"position scheme {name!r} is already registered by {old.__module__}.{old.__qualname__}")
        cls.scheme = name
        _registry[name] = cls
        return cls

    return decorate


def _is_scheme(value: object) -> TypeGuard[type[PositionEmbedding]]:
    return inspect.isclass(value) and issubclass(value, PositionEmbedding)


def _validated(name: str, cls: object) -> type[PositionEmbedding]:
    """Returns the class, or raises a VitposError if it cannot be built from a text."""
    if not _is_scheme(cls):
        raise VitposError(f"position scheme {name!r}: {cls!r} is not a class of vitpos.PositionEmbedding")
    for option in constructor_options(cls):
        if option.kind is not option.KEYWORD_ONLY or option.default is option.empty:
            raise VitposError(f"position scheme {name!r}: option {option.name!r} must be keyword-only with a default")
    return cls


def available() -> list[str]:
    """Returns the sorted names of all schemes: registered ones and those of installed packages."""
    return sorted({*_registry, *texts.installed().names})


def registered() -> set[str]:
    """Returns the names of schemes that are already imported; unlike `available`, searches no packages."""
    return set(_registry)


def find(name: str) -> type[PositionEmbedding]:
    """Returns the class of a scheme: registered, from a file, or an entry point of an installed package.

    They are tried in this order, so an entry point cannot replace a scheme of vitpos.

    Args:
        name: A name as returned by `parse`.

    Raises:
        VitposError: No such scheme, its file or entry point cannot be imported, or the class cannot be built from a
            text (see `register`).
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
        cls = _validated(name, vars(module)[inside[1]])
        if "scheme" not in vars(cls):  # without a decorator; error messages need a name
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
    """Returns the options of a scheme with their defaults; raises like `find`."""
    return {option.name: option.default for option in constructor_options(find(name))}


def build(scheme: str | PositionEmbedding, geometry: Geometry) -> PositionEmbedding:
    """Builds a scheme from its text.

    Args:
        scheme: ``"name"``, ``"name(option=value, ...)"`` with Python literals as values, or a sum ``"a+b"``.
            ``"file.py:Class"`` in place of a name is a class in that file. An instance is returned unchanged.
        geometry: Sizes of the model.

    Raises:
        VitposError: The text cannot be parsed, a scheme or option is unknown, a value is not allowed, or the instance
            was built for another geometry.
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
    """Parses the text of a scheme like `parse` and checks that its schemes and options exist.

    Raises:
        VitposError: The text cannot be parsed, an option is unknown, or `find` fails.
    """
    parts = parse(text)
    for name, given in parts:
        takes = options(name)
        for option in given:
            if option not in takes:
                raise unknown(f"option of position scheme {name!r}:", option, takes)
    return parts


# Validators: each returns the value or raises a VitposError with the scheme, the option, the value and what is allowed.


def positive(scheme: str, option: str, value: object) -> float:
    """Validates a finite number above 0."""
    if not _finite(value) or value <= 0:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a finite number above 0")
    return float(value)


def not_negative(scheme: str, option: str, value: object) -> float:
    """Validates a finite number of at least 0."""
    if not _finite(value) or value < 0:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a finite number of at least 0")
    return float(value)


def count(scheme: str, option: str, value: object, least: int = 1) -> int:
    """Validates an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be a whole number of at least {least}")
    return value


def flag(scheme: str, option: str, value: object) -> bool:
    """Validates True or False."""
    if not isinstance(value, bool):
        raise VitposError(f"position scheme {scheme!r}: {option}={value!r} must be True or False")
    return value


def choice(scheme: str, option: str, value: object, allowed: Iterable[str]) -> str:
    """Validates one of several words."""
    if not isinstance(value, str) or value not in (allowed := list(allowed)):
        raise unknown(f"{option} of position scheme {scheme!r}:", str(value), allowed)
    return value


def _finite(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
