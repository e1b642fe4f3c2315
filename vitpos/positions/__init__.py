"""Position schemes: one family a file, all behind the hooks of `vitpos.positions.base`. Needs torch only."""

from vitpos.positions import learned as learned
from vitpos.positions import sinusoidal as sinusoidal
from vitpos.positions.base import Geometry, PositionEmbedding, Sum, available, build, check, options, parse, register

__all__ = ["Geometry", "PositionEmbedding", "Sum", "available", "build", "check", "options", "parse", "register"]
