"""A registry of the names of schemes, building one from its text, and checks of options."""

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
from vitpos.positions.scheme import apart as apart
from vitpos.positions.scheme import constructor_options
from vitpos.positions.scheme import parts as parts
from vitpos.positions.text import parse as parse

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
    for option in constructor_options(cls):
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
    return {option.name: option.default for option in constructor_options(find(name))}


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
