"""Absolute schemes against timm, vit-pytorch, self-attention-cv, and formulas by hand."""

import math

import torch
from self_attention_cv.pos_embeddings.pos_encoding_sin import PositionalEncodingSin
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from vit_pytorch.cct import sinusoidal_embedding
from vit_pytorch.simple_vit import posemb_sincos_2d

import vitpos
from references import Pairs, reference
from vitpos.positions import Geometry, build

GRIDS = [(8, 8), (4, 6), (6, 4), (1, 5), (14, 14)]
WIDTH = 48


def table(text, grid, width=WIDTH, training_grid=None):
    """What a scheme adds to tokens of zero before block 0."""
    scheme = build(text, Geometry(training_grid or grid, width, 2, 2))
    return scheme.tokens(torch.zeros(1, grid[0] * grid[1], width), grid, 0)[0]


def hosts(**positions) -> Pairs:
    """Images of the training size and of another, through a model with a scheme and through timm's own."""
    args = {"img_size": (16, 24), "patch_size": 4, "embed_dim": WIDTH, "depth": 2, "num_heads": 4, "reg_tokens": 3}
    for more in ({"class_token": True}, {"class_token": False, "global_pool": "avg"}):
        theirs = VisionTransformer(**{**args, **more, **positions}, dynamic_img_size=True, num_classes=5).eval()
        ours = VisionTransformer(**{**args, **more}, pos_embed="none", dynamic_img_size=True, num_classes=5).eval()
        learned = theirs.pos_embed is not None
        vitpos.attach(ours, "learned" if learned else "none")
        named = {"pos_embed.table" if name == "pos_embed" else name: t for name, t in theirs.state_dict().items()}
        ours.load_state_dict(named, strict=True)
        for size in ((16, 24), (24, 16), (32, 32)):
            x = torch.randn(2, 3, *size)
            yield ours(x), theirs(x)


@reference("none", "timm's ViT, pos_embed='none'", 0)
def none_in_timm() -> Pairs:
    yield from hosts(pos_embed="none")


@reference("learned", "timm's ViT, pos_embed='learn'", 0)
def learned_in_timm() -> Pairs:
    yield from hosts(pos_embed="learn", no_embed_class=True)


@reference("learned", "timm resample_abs_pos_embed", 0)
def learned_resized() -> Pairs:
    for dtype in (torch.float32, torch.bfloat16):
        scheme = build("learned(scale=1, inject='every')", Geometry((4, 6), WIDTH, 2, 3)).to(dtype)
        for grid in ((4, 6), (6, 4), (8, 8), (2, 3), (5, 13)):
            x = torch.randn(2, grid[0] * grid[1], WIDTH, dtype=dtype)
            for layer, own in enumerate(scheme.table):
                theirs = resample_abs_pos_embed(own[None], list(grid), [4, 6], num_prefix_tokens=0)
                yield scheme.tokens(x, grid, layer), x + theirs


@reference("learned(init='sinusoidal_2d')", "timm build_sincos2d_pos_embed", 1e-7)  # 3e-6 at its amplitude, see below
def learned_from_sinusoids() -> Pairs:
    for grid in GRIDS:
        for temperature in (10000.0, 100.0):
            ours = table(f"learned(init='sinusoidal_2d', temperature={temperature})", grid)
            yield ours, build_sincos2d_pos_embed(list(grid), WIDTH, temperature=temperature) * 0.02 * math.sqrt(2)


@reference("learned_axial", "its formula by hand", 0)
def learned_axial_by_hand() -> Pairs:
    for grid in GRIDS:
        scheme = build("learned_axial(inject='every')", Geometry(grid, WIDTH, 2, 2))
        for layer in range(2):
            rows, columns = scheme.rows[layer], scheme.columns[layer]
            by_hand = torch.stack([rows[r] + columns[c] for r in range(grid[0]) for c in range(grid[1])])
            yield scheme.tokens(torch.zeros(1, len(by_hand), WIDTH), grid, layer)[0], by_hand


@reference("learned_axial", "timm resample_abs_pos_embed of the sum", 1e-6)  # sums of up to 36 products of size 1
def learned_axial_resized() -> Pairs:
    for home in ((4, 6), (8, 8)):
        scheme = build("learned_axial(scale=1)", Geometry(home, WIDTH, 2, 1))
        at_home = scheme.vectors(home, 0, torch.device("cpu"))
        for grid in ((6, 4), (2, 3), (5, 13)):
            theirs = resample_abs_pos_embed(at_home, list(grid), list(home), num_prefix_tokens=0)
            yield scheme.vectors(grid, 0, torch.device("cpu")), theirs


@reference("sinusoidal_1d", "vit-pytorch cct.sinusoidal_embedding", 1.6e-5)
def sinusoidal_1d_of_vit_pytorch() -> Pairs:
    # Theirs has angles of up to 195 in float32, whose spacing there is 1.5e-5.
    for grid in GRIDS:
        yield table("sinusoidal_1d", grid), sinusoidal_embedding(grid[0] * grid[1], WIDTH)[0]


@reference("sinusoidal_1d", "self-attention-cv PositionalEncodingSin", 5e-5)  # its frequencies are float32 as well
def sinusoidal_1d_of_self_attention_cv() -> Pairs:
    for grid in GRIDS:
        tokens = grid[0] * grid[1]
        yield table("sinusoidal_1d", grid), PositionalEncodingSin(WIDTH, dropout=0)(torch.zeros(1, tokens, WIDTH))[0]


@reference("sinusoidal_2d", "timm build_sincos2d_pos_embed", 3e-6)  # angles of up to 13 in float32
def sinusoidal_2d_of_timm() -> Pairs:
    for grid in GRIDS:
        for temperature in (10000.0, 100.0):
            ours = table(f"sinusoidal_2d(temperature={temperature})", grid)
            yield ours, build_sincos2d_pos_embed(list(grid), WIDTH, temperature=temperature)


@reference("sinusoidal_2d", "vit-pytorch simple_vit, similarities", 3e-5)  # sums of 48 such products
def sinusoidal_2d_of_simple_vit() -> Pairs:
    # simple_vit: T'^(-i/(n-1)), n = width/4; ours: T^(-i/n). Equal for T' = T^((n-1)/n). Its channels are in another
    # order, so similarities (Gram matrices) are compared.
    for grid in GRIDS:
        ours = table("sinusoidal_2d", grid)
        theirs = posemb_sincos_2d(*grid, WIDTH, temperature=10000 ** (11 / 12))
        yield ours @ ours.T, theirs @ theirs.T


@reference("sinusoidal_2d_shuffled", "the rows of sinusoidal_2d, sorted", 0)
def sinusoidal_2d_shuffled_sorted() -> Pairs:
    for grid in GRIDS:
        for seed in (0, 7):
            yield (
                table(f"sinusoidal_2d_shuffled(seed={seed})", grid).unique(dim=0),
                table("sinusoidal_2d", grid).unique(dim=0),
            )


@reference("fourier", "its formula by hand", 1e-12)  # float64
def fourier_by_hand() -> Pairs:
    dim, hidden = 10, 7
    text = f"fourier(fourier_dim={dim}, hidden_dim={hidden}, gamma=0.5, inject='every')"
    scheme = build(text, Geometry((4, 6), 8, 2, 2)).double()
    torch.nn.init.normal_(scheme.bias1)
    torch.nn.init.normal_(scheme.bias2)
    for grid in ((4, 6), (6, 4), (1, 9)):
        for layer in range(2):
            w, w1, b1, w2, b2 = (
                p[layer].tolist()
                for p in (scheme.frequencies, scheme.weight1, scheme.bias1, scheme.weight2, scheme.bias2)
            )
            rows = []
            for position in [(r, c) for r in range(grid[0]) for c in range(grid[1])]:
                angles = [position[0] * u + position[1] * v for u, v in w]
                r = [f(a) / math.sqrt(dim) for f in (math.cos, math.sin) for a in angles]
                inner = [
                    sum(a * b for a, b in zip(row, r, strict=True)) + bias for row, bias in zip(w1, b1, strict=True)
                ]
                gelu = [a * (1 + math.erf(a / math.sqrt(2))) / 2 for a in inner]
                rows.append(
                    [sum(a * b for a, b in zip(row, gelu, strict=True)) + c for row, c in zip(w2, b2, strict=True)]
                )
            ours = scheme.tokens(torch.zeros(1, len(rows), 8, dtype=torch.float64), grid, layer)[0]
            yield ours, torch.tensor(rows, dtype=torch.float64)
