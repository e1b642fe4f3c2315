"""Gated positional attention against timm's ConViT on squares, and against the paper's equation, pair by pair."""

import math

import torch
from timm.models.convit import GPSA

from references import Pairs, reference
from vitpos.positions import Geometry, build

BATCH, DIM, DEPTH = 2, 8, 2


def drawn(text, home, heads):
    """A scheme whose parameters are drawn, in float64."""
    scheme = build(text, Geometry(home, heads * DIM, heads, DEPTH)).double()
    for parameter in scheme.parameters():
        torch.nn.init.normal_(parameter)
    return scheme


@reference("gpsa", "timm convit.GPSA", 1e-14)  # float64
def gpsa_of_timm() -> Pairs:
    for heads, side in ((4, 4), (9, 7), (3, 2), (6, 14)):
        scheme, theirs = drawn("gpsa", (4, 6), heads), GPSA(heads * DIM, heads).double()
        x = torch.randn(BATCH, side * side, heads * DIM, dtype=torch.float64)
        q, k = theirs.qk(x).reshape(BATCH, -1, 2, heads, DIM).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(DIM)).softmax(-1)
        for layer in range(DEPTH):
            with torch.no_grad():
                theirs.pos_proj.weight.copy_(scheme.coefficients[:, layer].T)
                theirs.gating_param.copy_(scheme.gate[layer])
                theirs.rel_indices = theirs.get_rel_indices(side * side)  # timm makes it in float32
                yield scheme.weights(attention, (side, side), layer), theirs.get_attention(x)


@reference("gpsa", "timm convit.GPSA, its start", 1e-6)
def gpsa_start_of_timm() -> Pairs:
    for heads in (1, 4, 9, 16):
        for strength in (1.0, 0.3):
            theirs = GPSA(heads * DIM, heads, locality_strength=strength)
            theirs.local_init()
            scheme = build(f"gpsa(locality_strength={strength})", Geometry((4, 6), heads * DIM, heads, DEPTH))
            for layer in range(DEPTH):
                ours = torch.cat([scheme.coefficients[:, layer].T.flatten(), scheme.gate[layer]])
                yield ours.detach(), torch.cat([theirs.pos_proj.weight.flatten(), theirs.gating_param]).detach()


@reference("gpsa", "d'Ascoli et al. eq. 7, pair by pair", 1e-14)  # float64
def gpsa_by_hand() -> Pairs:
    heads = 3
    for grid in ((4, 6), (6, 4), (2, 5), (1, 3)):
        scheme = drawn("gpsa", (4, 6), heads)
        patches = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
        for prefix in (0, 2):
            attention = torch.randn(BATCH, heads, len(patches), prefix + len(patches), dtype=torch.float64).softmax(-1)
            attention = attention[..., prefix:]
            expected = torch.empty_like(attention)
            for h in range(heads):
                a, b, c = scheme.coefficients[:, 1, h].tolist()
                gate = scheme.gate[1, h].sigmoid().item()
                for i, (row, column) in enumerate(patches):
                    offsets = [(r - row, s - column) for r, s in patches]
                    terms = [math.exp(a * x + b * y + c * (x * x + y * y)) for y, x in offsets]
                    for j, term in enumerate(terms):
                        content = attention[:, h, i, j]
                        position = term / sum(terms) * attention[:, h, i].sum(-1)
                        expected[:, h, i, j] = (1 - gate) * content + gate * position
            yield scheme.weights(attention, grid, 1), expected
