"""vitpos: position embeddings for vision transformers. Importing it registers the small models with timm."""

import importlib
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = version("vitpos")
__all__ = ["Geometry", "PositionEmbedding", "__version__", "attach", "available", "build", "detach", "register"]

if TYPE_CHECKING or Path((sys.argv or [""])[0]).stem != "vitpos":
    from vitpos import models as models
    from vitpos.attach import attach, detach
    from vitpos.positions import Geometry, PositionEmbedding, available, build, register
else:  # in the command `vitpos` torch and timm wait until they are needed, so that its help comes at once

    def __getattr__(name: str) -> Any:
        """Imports what is asked for."""
        if name not in __all__:
            raise AttributeError(f"module 'vitpos' has no attribute {name!r}")
        module = "vitpos.attach" if name in ("attach", "detach") else "vitpos.positions"
        return getattr(importlib.import_module(module), name)
