"""vitpos: position embeddings for vision transformers. Importing it registers its models with timm."""

import sys as _sys
from importlib import import_module as _import
from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _CHECKING

__version__ = _version("vitpos")
_HOMES = {
    **dict.fromkeys(("attach", "detach"), "vitpos.attach"),
    "create_model": "vitpos.models",
    **dict.fromkeys(("Geometry", "PositionEmbedding", "available", "build", "register"), "vitpos.positions"),
}
__all__ = [
    "Geometry",
    "PositionEmbedding",
    "__version__",
    "attach",
    "available",
    "build",
    "create_model",
    "detach",
    "register",
]

if _CHECKING or _Path((_sys.argv or [""])[0]).stem not in ("vitpos", "-m"):  # -m: python -m vitpos
    from vitpos import models as models
    from vitpos.attach import attach, detach
    from vitpos.models import create_model
    from vitpos.positions import Geometry, PositionEmbedding, available, build, register
else:  # the command `vitpos` imports torch and timm only when needed, so that its help is fast

    def __getattr__(name: str) -> object:
        """Imports a public name on first use."""
        if name not in _HOMES:
            raise AttributeError(f"module 'vitpos' has no attribute {name!r}")
        return getattr(_import(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Returns the public names."""
    return __all__
