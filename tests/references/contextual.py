"""Contextual schemes against self-attention-cv, and against the papers' equations, pair by pair."""

import math

import torch
from self_attention_cv.pos_embeddings.relative_embeddings_2D import RelPosEmb2D
from timm.models.vision_transformer_sam import get_decomposed_rel_pos_bias

from references import Pairs, reference
from vitpos.positions import Geometry, build

BATCH, HEADS, DIM, DEPTH = 2, 3, 5, 2
HOME = (4, 3)
GRIDS = [HOME, (3, 4), (2, 2), (7, 5)]


def compared(text, vector, grid) -> Pairs:
    """A scheme's bias and values, and the sums over pairs of patches.

    Args:
        text: The scheme.
        vector: Gives the vector of a head for an offset, from a table (vectors, heads or 1, head_dim):
            ``vector(table, head, rows, columns)``, with offsets key minus query.
        grid: Rows and columns.
    """
    scheme = build(text, Geometry(HOME, HEADS * DIM, HEADS, DEPTH)).double()
    for parameter in scheme.parameters():  # some start at zero
        torch.nn.init.normal_(parameter)
    patches = [(r, c) for r in range(grid[0]) for c in range(grid[1])]
    n = len(patches)
    q, k = torch.randn(2, BATCH, HEADS, n, DIM, dtype=torch.float64)
    attention = torch.randn(BATCH, HEADS, n, n, dtype=torch.float64).softmax(dim=-1)
    for layer in range(DEPTH):
        bias, values = torch.zeros(BATCH, HEADS, n, n).double(), torch.zeros(BATCH, HEADS, n, DIM).double()
        tables = {part: table[layer] for part, table in scheme.tables.items()}
        for h in range(HEADS):
            for i, (row, column) in enumerate(patches):
                for j, (other_row, other_column) in enumerate(patches):
                    offset = other_row - row, other_column - column
                    if "k" in tables:
                        bias[:, h, i, j] += q[:, h, i] @ vector(tables["k"], h, *offset) / math.sqrt(DIM)
                    if "q" in tables:  # the key's way to the query
                        back = -offset[0], -offset[1]
                        bias[:, h, i, j] += k[:, h, j] @ vector(tables["q"], h, *back) / math.sqrt(DIM)
                    if "v" in tables:
                        values[:, h, i] += attention[:, h, i, j, None] * vector(tables["v"], h, *offset)
        if {"k", "q"} & set(tables):
            yield scheme.bias(q, k, grid, layer), bias
        if "v" in tables:
            yield scheme.values(attention, grid, layer), values


@reference("shaw_2d", "Shaw et al. eq. 3 and 4, pair by pair", 1e-13)  # float64
def shaw_2d_by_hand() -> Pairs:
    for given, (far_row, far_column) in {
        "on='k'": (3, 2),
        "on='v', per_head=True": (3, 2),
        "on='kv', clip=1": (1, 1),
        "on='kv', per_head=True, clip=3": (3, 3),
    }.items():

        def vector(table, head, rows, columns, far_row=far_row, far_column=far_column):
            head = min(head, table.shape[1] - 1)
            row, column = max(-far_row, min(far_row, rows)), max(-far_column, min(far_column, columns))
            return table[row + far_row, head] + table[2 * far_row + 1 + column + far_column, head]

        for grid in GRIDS:
            yield from compared(f"shaw_2d({given})", vector, grid)


@reference("shaw_2d", "self-attention-cv RelPosEmb2D", 1e-13)  # float64
def shaw_2d_of_self_attention_cv() -> Pairs:
    # Squares and shared heads are all that it has. Its term of rows is for the grid with rows and columns exchanged (it
    # takes the query at (x, y) for the patch at (y, x)), so the two terms are computed apart and that one is exchanged
    # back.
    for side in (2, 4, 7):
        scheme = build("shaw_2d", Geometry((side, side), HEADS * DIM, HEADS, 1)).double()
        q = torch.randn(BATCH, HEADS, side * side, DIM, dtype=torch.float64)
        theirs = []
        for part, other, first in (("emb_h", "emb_w", 0), ("emb_w", "emb_h", 2 * side - 1)):
            module = RelPosEmb2D((side, side), DIM).double()
            with torch.no_grad():
                getattr(module, part).rel_pos_emb.copy_(scheme.tables["k"][0, first : first + 2 * side - 1, 0])
                getattr(module, other).rel_pos_emb.zero_()
            theirs.append(module(q) / math.sqrt(DIM))
        rows = theirs[0].reshape(BATCH, HEADS, side, side, side, side).permute(0, 1, 3, 2, 5, 4)
        yield scheme.bias(q, q, (side, side), 0), rows.reshape(theirs[1].shape) + theirs[1]


@reference("irpe(class_bucket=True)", "the authors' buckets with that of the class token", 1e-13)  # float64
def irpe_with_class_bucket() -> Pairs:
    for given in ("on='qkv'", "on='qkv', per_head=True", "on='k', method='cross', beta=2"):
        scheme = build(f"irpe({given}, class_bucket=True)", Geometry(HOME, HEADS * DIM, HEADS, DEPTH)).double()
        for parameter in scheme.parameters():
            torch.nn.init.normal_(parameter)
        for grid in GRIDS:
            for prefix in (0, 1, 3):
                n = prefix + grid[0] * grid[1]
                q, k = torch.randn(2, BATCH, HEADS, n, DIM, dtype=torch.float64)
                attention = torch.randn(BATCH, HEADS, n, n, dtype=torch.float64).softmax(dim=-1)
                most = scheme.sizes[0] // 2
                row, column = (
                    torch.tensor([[bucket(int(i - j), scheme.beta) + most for j in axis] for i in axis])
                    for axis in torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).T
                )
                for layer in range(DEPTH):
                    vectors = {}
                    for part, table in scheme.tables.items():
                        size = scheme.sizes[1]
                        table = table[layer]
                        of = table[row * size + column] if scheme.joint else table[row] + table[size + column]
                        whole = scheme.prefix[part][layer].expand(n, n, -1, -1).clone()
                        whole[prefix:, prefix:] = of
                        vectors[part] = whole.expand(-1, -1, HEADS, -1)
                    bias = torch.einsum("bhid,ijhd->bhij", q, vectors["k"])
                    if "q" in vectors:
                        bias = bias + torch.einsum("bhjd,jihd->bhij", k, vectors["q"])
                    yield scheme.bias(q, k, grid, layer), bias / math.sqrt(DIM)
                    if "v" in vectors:
                        yield (
                            scheme.values(attention, grid, layer),
                            torch.einsum("bhij,ijhd->bhid", attention, vectors["v"]),
                        )


@reference("shaw_2d", "timm SAM get_decomposed_rel_pos_bias", 1e-5)  # float32, of sums of 5 products of up to 10
def shaw_2d_of_timm() -> Pairs:
    # SAM, ViTDet and MViTv2 do not scale this product. Another grid needs clipping, where they would interpolate.
    for home in [(4, 3), (3, 4), (14, 14), (1, 6)]:
        scheme = build("shaw_2d", Geometry(home, HEADS * DIM, HEADS, DEPTH))
        q = torch.randn(BATCH, HEADS, home[0] * home[1], DIM)
        for layer in range(DEPTH):
            vectors = scheme.tables["k"][layer, :, 0].detach()
            rows, columns = vectors.split([2 * home[0] - 1, 2 * home[1] - 1])
            # Offsets are query minus key there.
            theirs = get_decomposed_rel_pos_bias(q.flatten(0, 1), rows.flip(0), columns.flip(0), home, home)
            yield scheme.bias(q, q, home, layer).detach() * math.sqrt(DIM), theirs.unflatten(0, (BATCH, HEADS))


def bucket(x, beta):
    """Equation 18, alpha : beta : gamma = 1 : 2 : 8; beta is rounded down, as in the authors' code."""
    alpha, gamma = beta / 2, 4 * beta
    if abs(x) <= alpha:
        return x
    share = math.log(abs(x) / alpha) / math.log(gamma / alpha)
    return int(math.copysign(min(int(beta), round(alpha + share * (beta - alpha))), x))


@reference("irpe", "Wu et al. eq. 18, pair by pair", 1e-13)  # float64
def irpe_by_hand() -> Pairs:
    for given, joint, beta in [
        ("on='k'", True, 3.8),
        ("on='qkv', per_head=True", True, 3.8),
        ("on='qk', method='cross'", False, 40),
        ("on='qv', method='cross', beta=3, per_head=True", False, 3),
        ("on='kv', beta=1.5", True, 1.5),
    ]:
        most = int(beta)
        size = 2 * most + 1

        def vector(table, head, rows, columns, joint=joint, beta=beta, most=most, size=size):
            head = min(head, table.shape[1] - 1)
            row, column = bucket(-rows, beta) + most, bucket(-columns, beta) + most  # offsets are query minus key
            return table[row * size + column, head] if joint else table[row, head] + table[size + column, head]

        for grid in [*GRIDS, (1, 23)]:
            yield from compared(f"irpe({given})", vector, grid)
