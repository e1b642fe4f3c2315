"""Position schemes, one family per file, all behind the hooks of `vitpos.positions.base`. Depends on torch only."""

import importlib
import pkgutil

from vitpos.positions.base import (
    Geometry,
    PositionEmbedding,
    Sum,
    available,
    build,
    check,
    find,
    options,
    register,
    registered,
)
from vitpos.positions.text import parse

__all__ = [
    "Geometry",
    "PositionEmbedding",
    "Sum",
    "available",
    "build",
    "check",
    "find",
    "options",
    "parse",
    "register",
    "registered",
]

for _module in pkgutil.iter_modules(__path__):  # importing a file registers its schemes
    importlib.import_module(f"{__name__}.{_module.name}")
