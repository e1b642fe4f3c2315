"""The conditional scheme against vit-pytorch and timm."""

import torch
from timm.models.twins import PosConv
from vit_pytorch.twins_svt import PEG

from references import Pairs, reference
from vitpos.positions import Geometry, build

GRIDS = [(4, 6), (6, 4), (1, 7), (2, 2), (9, 9)]
WIDTH = 12


@reference("cpe", "vit-pytorch twins_svt.PEG", 1e-14)  # float64
def cpe_of_vit_pytorch() -> Pairs:
    for size in (3, 5):
        scheme = build(f"cpe(layers=3, kernel_size={size})", Geometry((4, 6), WIDTH, 2, 4)).double()
        peg = PEG(WIDTH, size).double()
        for layer in (1, 2, 3):
            with torch.no_grad():
                peg.proj.fn.weight.copy_(scheme.kernels[layer - 1])
                peg.proj.fn.bias.copy_(scheme.biases[layer - 1])
            for grid in GRIDS:
                x = torch.randn(3, grid[0] * grid[1], WIDTH, dtype=torch.float64)
                theirs = peg(x.transpose(1, 2).reshape(3, WIDTH, *grid))
                yield scheme.tokens(x, grid, layer), theirs.flatten(2).transpose(1, 2)


@reference("cpe", "timm Twins' PosConv", 1e-14)  # float64
def cpe_of_timm() -> Pairs:
    scheme = build("cpe", Geometry((4, 6), WIDTH, 2, 2)).double()
    convolution = PosConv(WIDTH, WIDTH).double()
    with torch.no_grad():
        convolution.proj[0].weight.copy_(scheme.kernels[0])
        convolution.proj[0].bias.copy_(scheme.biases[0])
    for grid in GRIDS:
        x = torch.randn(3, grid[0] * grid[1], WIDTH, dtype=torch.float64)
        yield scheme.tokens(x, grid, 1), convolution(x, grid)
