"""vitpos: position embeddings for vision transformers. Importing it registers the small models with timm."""

from importlib.metadata import version

from vitpos import models as models
from vitpos.attach import attach, detach
from vitpos.positions import Geometry, PositionEmbedding, available, build, register

__version__ = version("vitpos")
__all__ = ["Geometry", "PositionEmbedding", "__version__", "attach", "available", "build", "detach", "register"]
