"""Schemes with one fault each that shows in a model."""

import torch
from right_schemes import Distance, FewNumbers
from torch import nn

from vitpos.positions import PositionEmbedding


class OneGridOnly(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, self.geometry.grid, layer) + 0 * self.distances(grid, q.device)


class KeepsByTheNumberOfPatches(Distance):
    def bias(self, q, k, grid, layer):
        self.kept = getattr(self, "kept", {})
        distances = self.kept.setdefault(q.shape[2], self.distances(grid, q.device))
        return -self.slopes * distances


class KeepsOfInferenceMode(Distance):
    def bias(self, q, k, grid, layer):
        if grid == (4, 4):
            self.kept = torch.ones(1)
        return super().bias(q, k, grid, layer) * getattr(self, "kept", 1)


class Unused(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.more = nn.Parameter(torch.ones(3))


class ZeroTimesZero(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.more = nn.Parameter(torch.zeros(2))

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (1 + self.more.prod())


class MeanOfTheBatch(Distance):
    def tokens(self, x, grid, layer):
        return x - x.mean(dim=0)


class InModelsOnly(Distance):
    """Fails where queries are a view of the model's, on another grid: a mistake that many checks meet."""

    def bias(self, q, k, grid, layer):
        if grid != self.geometry.grid and not q.is_contiguous():
            raise RuntimeError(f"no grid {grid}")
        return super().bias(q, k, grid, layer)


class Overflows(Distance):
    def tokens(self, x, grid, layer):
        return x + (1e3 * x) ** 2 * 1e-6


class Float32Only(Distance):
    def rotate(self, q, k, grid, layer):
        return q @ torch.eye(q.shape[-1], device=q.device), k


class OutOfTheStateDict(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.register_buffer("drawn", torch.randn(4, 1, 1), persistent=False)

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.drawn


class HoldsAFunction(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.function = lambda grid: grid


class SharedByAll(Distance):
    counts = [0]  # noqa: RUF012

    def bias(self, q, k, grid, layer):
        self.counts[0] += 1
        return super().bias(q, k, grid, layer) * self.counts[0]


class CannotStartAnew(Distance):
    def __init__(self, geometry, *, slope=0.1):
        super().__init__(geometry, slope=slope)
        self.register_buffer("ones", torch.ones(1), persistent=False)

    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.ones


class StartsElsewhere(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(1, geometry.embed_dim))

    def reset_parameters(self):
        nn.init.normal_(self.table, std=0.02)


class TableOnTheCPU(Distance):
    def bias(self, q, k, grid, layer):
        return -self.slopes * self.distances(grid, "cpu")


class AsksForAValue(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * self.slopes.max().item()


class CountsImages(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (2 if q.shape[0] == 3 else 1)


class AsksForASign(Distance):
    def bias(self, q, k, grid, layer):
        return super().bias(q, k, grid, layer) * (2 if self.slopes.sum() > 0 else 1)


class DrawnWider(FewNumbers):
    """Another deviation than that of the constructor."""

    def __init__(self, geometry):
        super().__init__(geometry)
        nn.init.normal_(self.slopes, std=5)


class DrawnElsewhere(FewNumbers):
    """As much of it, but all on one side."""

    def __init__(self, geometry):
        super().__init__(geometry)
        with torch.no_grad():
            self.slopes.abs_()


class DrawnOnce(FewNumbers):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.first = self.slopes.detach().clone()

    def reset_parameters(self):
        if hasattr(self, "first"):
            self.slopes.data.copy_(self.first)
        else:
            super().reset_parameters()


class NeverReset(PositionEmbedding):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.table = nn.Parameter(torch.randn(24, geometry.embed_dim))


class NeverResetWholeNumbers(Distance):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.register_buffer("order", torch.arange(4))


class WholeNumbersInABuffer(Distance):
    def __init__(self, geometry):
        super().__init__(geometry)
        self.register_buffer("steps", torch.arange(20), persistent=False)

    def reset_parameters(self):
        super().reset_parameters()
        if hasattr(self, "steps"):
            self.steps.copy_(torch.arange(20))

    def bias(self, q, k, grid, layer):
        return -self.slopes * self.steps[self.distances(grid, q.device)]
