"""Rotary schemes: timm's rotations, whole models of timm's, and complex numbers."""

import math
from functools import partial
from unittest import mock

import torch
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    apply_rot_embed_cat,
)
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from vit_pytorch.vit_nd_rotary import GoldenGateRoPENd

import vitpos
from references import Pairs, reference
from vitpos.positions import Geometry, build

GRIDS = [(8, 8), (4, 6), (6, 4), (1, 5), (14, 14)]
WIDTH, HEADS, DEPTH = 96, 2, 3
# Angles of up to 14 in float32, and products with channels of up to 4.5.
ROUNDING = 2e-6


def queries(grid, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, HEADS, math.prod(grid), WIDTH // HEADS, generator=generator, dtype=dtype)


def against(text, rope_of, half=False):
    """Our queries and keys, and those turned by timm's table, for a scheme trained on each grid and on another one."""
    for grid in GRIDS:
        for trained_on in (grid, (5, 3)):
            scheme = build(text, Geometry(trained_on, WIDTH, HEADS, DEPTH))
            q, k = queries(grid), queries(grid, seed=1)
            for layer in range(DEPTH):
                table = rope_of(scheme, grid, layer)
                for ours, given in zip(scheme.rotate(q, k, grid, layer), (q, k), strict=True):
                    yield ours, apply_rot_embed_cat(given, table, half=half)


@reference("rope_axial", "timm RotaryEmbeddingCat", ROUNDING)
def axial() -> Pairs:
    yield from against(
        "rope_axial",
        lambda scheme, grid, layer: RotaryEmbeddingCat(
            WIDTH // HEADS, in_pixels=False, feat_shape=list(grid), temperature=100.0
        ).get_embed(),
    )


@reference("rope_axial(ref_grid=16)", "timm RotaryEmbeddingCat(ref_feat_shape=)", ROUNDING)
def axial_of_a_reference_grid() -> Pairs:
    for given, shape in ((16, [16, 16]), ((3, 7), [3, 7])):
        yield from against(
            f"rope_axial(ref_grid={given}, temperature=10000)",
            lambda scheme, grid, layer, shape=shape: RotaryEmbeddingCat(
                WIDTH // HEADS, in_pixels=False, feat_shape=list(grid), ref_feat_shape=shape
            ).get_embed(),
        )


@reference("rope_mixed", "timm RotaryEmbeddingMixed", ROUNDING)
def mixed() -> Pairs:
    def table(scheme, grid, layer):
        rope = RotaryEmbeddingMixed(WIDTH, DEPTH, HEADS, feat_shape=list(grid))
        rope.load_state_dict({"freqs": scheme.frequencies})
        return rope.get_embed()[layer].detach()

    for ours, theirs in against("rope_mixed", table):
        yield ours.detach(), theirs


@reference("rope_mixed", "timm RotaryEmbeddingMixed, its start", ROUNDING)
def mixed_start() -> Pairs:
    for seed in range(3):
        torch.manual_seed(seed)
        scheme = build("rope_mixed", Geometry((4, 6), WIDTH, HEADS, DEPTH))
        torch.manual_seed(seed)
        yield scheme.frequencies.detach(), RotaryEmbeddingMixed(WIDTH, DEPTH, HEADS).freqs.detach()


@reference("rope_dinov3", "timm RotaryEmbeddingDinoV3", ROUNDING)
def dinov3() -> Pairs:
    yield from against(
        "rope_dinov3",
        lambda scheme, grid, layer: RotaryEmbeddingDinoV3(WIDTH // HEADS, feat_shape=list(grid)).get_embed(),
        half=True,
    )


@reference("rope_dinov3", "timm RotaryEmbeddingDinoV3(normalize_coords=)", ROUNDING)
def dinov3_of_one_length() -> Pairs:
    for word in ("min", "max"):
        yield from against(
            f"rope_dinov3(normalize_coords='{word}')",
            lambda scheme, grid, layer, word=word: RotaryEmbeddingDinoV3(
                WIDTH // HEADS, feat_shape=list(grid), normalize_coords=word
            ).get_embed(),
            half=True,
        )


@reference(
    "rope_dinov3", "timm RotaryEmbeddingDinoV3(shift_coords=, jitter_coords=, rescale_coords=)", 1e-5
)  # angles of 25
def dinov3_in_training() -> Pairs:
    given = {"shift_coords": 0.3, "jitter_coords": 1.5, "rescale_coords": 2.0}
    text = f"rope_dinov3({', '.join(f'{option}={value}' for option, value in given.items())})"
    for number, grid in enumerate(GRIDS):
        scheme = build(text, Geometry((5, 3), WIDTH, HEADS, DEPTH)).train()
        drawn = torch.rand(5, generator=torch.Generator().manual_seed(number))
        parts = [drawn[:2], drawn[2:4], drawn[4:]]  # in the order of timm's draws
        with (
            mock.patch("vitpos.positions.dinov3.draw", return_value=drawn),
            mock.patch.object(
                torch.Tensor, "uniform_", lambda x, a, b, parts=parts: x.copy_(a + (b - a) * parts.pop(0))
            ),
        ):
            prepared = scheme.prepare(grid, torch.device("cpu"))
            table = RotaryEmbeddingDinoV3(WIDTH // HEADS, feat_shape=list(grid), **given).train().get_embed()
        q, k = queries(grid), queries(grid, seed=1)
        for ours, theirs in zip(scheme.rotate(q, k, grid, 0, prepared=prepared), (q, k), strict=True):
            yield ours, apply_rot_embed_cat(theirs, table, half=True)


@reference("rope_golden", "vit-pytorch GoldenGateRoPENd", 1e-5)  # its angles of 18 are float32
def golden() -> Pairs:
    for heads in (1, HEADS, 6):
        rope = GoldenGateRoPENd(2, heads, WIDTH // heads, rope_min_freq=0.01, rope_max_freq=1.0)
        for grid in GRIDS:
            for trained_on in (grid, (5, 3)):
                scheme = build("rope_golden", Geometry(trained_on, WIDTH, heads, DEPTH))
                rows = torch.arange(grid[0]).repeat_interleave(grid[1])
                places = torch.stack([rows, torch.arange(grid[1]).repeat(grid[0])], dim=-1).expand(3, -1, -1)
                q, k = (queries(grid, seed).reshape(3, heads, -1, WIDTH // heads) for seed in (0, 1))
                for ours, given in zip(scheme.rotate(q, k, grid, 1), (q, k), strict=True):
                    yield ours, rope(given, places)


@reference("rope_1d", "complex numbers", 1e-12)
def one_dimension() -> Pairs:
    for grid in GRIDS:
        scheme = build("rope_1d", Geometry((5, 3), WIDTH, HEADS, DEPTH))
        q, k = queries(grid, dtype=torch.float64), queries(grid, seed=1, dtype=torch.float64)
        for ours, given in zip(scheme.rotate(q, k, grid, 0), (q, k), strict=True):
            theirs = torch.empty_like(given)
            for p in range(math.prod(grid)):
                for i in range(24):
                    pair = torch.complex(given[..., p, 2 * i], given[..., p, 2 * i + 1])
                    pair = pair * complex(math.cos(p / 10000 ** (i / 24)), math.sin(p / 10000 ** (i / 24)))
                    theirs[..., p, 2 * i], theirs[..., p, 2 * i + 1] = pair.real, pair.imag
            yield ours, theirs


@reference("liere(block_size=2)", "rope_mixed of the same frequencies", 1e-12)
def liere_of_pairs() -> Pairs:
    trained = (4, 6)
    for grid in GRIDS:
        geometry = Geometry(trained, WIDTH, HEADS, DEPTH)
        liere, mixed = (build(text, geometry).double() for text in ("liere(block_size=2)", "rope_mixed"))
        # LieRE's coordinates go from 0 to side / trained side; a generator with a above the diagonal turns by -a.
        row, column = ((side / home) / max(side - 1, 1) for side, home in zip(grid, trained, strict=True))
        with torch.no_grad():
            by_row, by_column = liere.generators.squeeze(-1)
            mixed.frequencies.copy_(torch.stack([-column * by_column, -row * by_row]))
            q, k = queries(grid, dtype=torch.float64), queries(grid, seed=1, dtype=torch.float64)
            for layer in range(DEPTH):
                yield from zip(liere.rotate(q, k, grid, layer), mixed.rotate(q, k, grid, layer), strict=True)


def exponential(skew_symmetric):
    """The exponential of a skew-symmetric matrix, by eigenvalues: i times the matrix is Hermitian."""
    values, vectors = torch.linalg.eigh(1j * skew_symmetric)
    return (vectors @ torch.diag((-1j * values).exp()) @ vectors.mH).real


@reference("liere", "matrix exponentials by eigenvalues", 1e-12)
def liere_by_eigenvalues() -> Pairs:
    for text, size in (("liere", 48), ("liere(block_size=8)", 8)):
        scheme = build(text, Geometry((4, 6), WIDTH, HEADS, DEPTH)).double()
        q, k = queries((3, 8), dtype=torch.float64), queries((3, 8), seed=1, dtype=torch.float64)
        with torch.no_grad():
            turned, _ = scheme.rotate(q, k, (3, 8), 1)
        expected = torch.empty_like(q)
        for head in range(HEADS):
            for block in range(48 // size):
                for p in range(24):
                    y, x = (p // 8) / 2 * (3 / 4), (p % 8) / 7 * (8 / 6)
                    upper, entry = torch.zeros(size, size, dtype=torch.float64), 0
                    for i in range(size):
                        for j in range(i + 1, size):
                            row, column = scheme.generators[:, 1, head, block, entry].tolist()
                            upper[i, j], entry = y * row + x * column, entry + 1
                    rotation = exponential(upper - upper.T)
                    part = slice(block * size, block * size + size)
                    expected[:, head, p, part] = q[:, head, p, part] @ rotation.T
        yield turned, expected


def by_pairs_of_patches(given, rotation, grid):
    """Queries and keys of two heads of 12 channels, each patch's multiplied by a matrix."""
    scheme = build(f"comrope({given})", Geometry((4, 6), 24, 2, DEPTH)).double()
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 2, math.prod(grid), 12, generator=generator, dtype=torch.float64)
    for layer in range(DEPTH):
        expected = [torch.empty_like(q), torch.empty_like(k)]
        for p in range(math.prod(grid)):
            y, x = (p // grid[1] + 0.5) / grid[0], (p % grid[1] + 0.5) / grid[1]
            for head in range(2):
                matrix = rotation(scheme, layer, head, y, x)
                for turned, drawn in zip(expected, (q, k), strict=True):
                    turned[:, head, p] = drawn[:, head, p] @ matrix.T
        with torch.no_grad():
            yield from zip(scheme.rotate(q, k, grid, layer), expected, strict=True)


def skew(above, size):
    """A skew-symmetric matrix of its entries above the diagonal, row by row."""
    upper = torch.zeros(size, size, dtype=above.dtype)
    upper[tuple(torch.triu_indices(size, size, 1))] = above.detach()
    return upper - upper.T


# The matrices are those of the released code, Longin-Yu/ComRoPE, model.py.
@reference("comrope", "Yu et al., the authors' angle matrices, patch by patch", 1e-12)
def comrope_by_hand() -> Pairs:
    def rotation(scheme, layer, head, y, x, size, axial):
        blocks = []
        for block in range(12 // size):
            a = skew(scheme.generators[0, layer, head, block], size)
            if axial:
                turn = (y, x)[block % 2] * a
            else:
                of_row, of_column = scheme.factors[:, layer, 0, block, 0].tolist()
                turn = of_row * y * a + of_column * x * a
            blocks.append(exponential(turn))
        return torch.block_diag(*blocks)

    for given, size, axial in (
        ("", 12, False),
        ("block_size=4", 4, False),
        ("commuting='ap'", 6, True),
        ("commuting='ap', block_size=3", 3, True),
    ):
        for grid in ((4, 6), (5, 3), (1, 7)):
            yield from by_pairs_of_patches(given, partial(rotation, size=size, axial=axial), grid)


@reference("liere(shared=True)", "liere with the generators of layer 0 in all layers", 0)
def liere_as_released() -> Pairs:
    for text in ("liere", "liere(block_size=8)"):
        own = build(text, Geometry((4, 6), WIDTH, HEADS, DEPTH))
        shared = build(f"{text.rstrip(')')}{', ' if '(' in text else '('}shared=True)", own.geometry)
        shared.load_state_dict({"generators": own.generators[:, :1]})
        for grid in GRIDS[:3]:
            q, k = queries(grid), queries(grid, seed=1)
            with torch.no_grad():
                first = own.rotate(q, k, grid, 0)
                for layer in range(DEPTH):
                    yield from zip(shared.rotate(q, k, grid, layer), first, strict=True)


MODEL = {"img_size": (56, 40), "patch_size": 4, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
HEAD = {"num_classes": 7, "class_token": True, "global_pool": "token"}


def whole(text, registers, **rope):
    """A ViT with the scheme, and timm's Eva with the same weights."""
    torch.manual_seed(0)
    eva = Eva(
        **MODEL,
        **HEAD,
        num_reg_tokens=registers,
        attn_type="rope",
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        head_init_scale=0,  # leaves the head as drawn
        use_post_transformer_norm=True,
        **rope,
    ).eval()
    ours = vitpos.attach(VisionTransformer(**MODEL, **HEAD, reg_tokens=registers, pos_embed="none"), text).eval()
    weights = eva.state_dict()
    if "rope.freqs" in weights:
        weights["pos_embed.frequencies"] = weights.pop("rope.freqs")
    ours.load_state_dict(weights, strict=True)
    x = torch.randn(2, 3, 56, 40, generator=torch.Generator().manual_seed(1))
    # The eager products of complex numbers may be fused on some processors, and then round once less.
    with mock.patch("torch.compiler.is_compiling", return_value=True), torch.no_grad():
        return ours(x), eva(x)


@reference("rope_axial", "whole model: timm Eva(attn_type='rope')", 0)
def whole_axial() -> Pairs:
    for temperature in (100.0, 10000.0):
        for registers in (0, 2):
            yield whole(f"rope_axial(temperature={temperature})", registers, rope_temperature=temperature)


@reference("rope_mixed", "whole model: timm Eva(attn_type='rope', rope_type='mixed')", 0)
def whole_mixed() -> Pairs:
    yield whole("rope_mixed", 2, rope_type="mixed", rope_temperature=10.0, rope_grid_indexing="xy")


@reference("rope_dinov3", "whole model: timm Eva(attn_type='rope', rope_type='dinov3')", 0)
def whole_dinov3() -> Pairs:
    yield whole("rope_dinov3", 2, rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True)
