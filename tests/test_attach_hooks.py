"""The seam against a brute-force transformer, with schemes of each kind that exist only here."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitpos
from vitpos.positions import Geometry, PositionEmbedding, Sum

GRID, HEADS, WIDTH, DEPTH = (2, 3), 2, 8, 3
GEOMETRY = Geometry(GRID, WIDTH, HEADS, DEPTH)


class Rotary(PositionEmbedding):
    """Turns each pair of channels by the raster index times a frequency of the head, layer and pair."""

    def angle(self, head, n, layer, band):
        return n * (0.3 + head + 0.1 * layer) / (band + 1)

    def rotate(self, q, k, grid, layer):
        n = grid[0] * grid[1]
        angles = torch.tensor(
            [[[self.angle(h, i, layer, b) for b in range(2)] for i in range(n)] for h in range(HEADS)], dtype=q.dtype
        )
        cos, sin = angles.cos(), angles.sin()

        def turn(x):
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)

        return turn(q), turn(k)


class Table(PositionEmbedding):
    """A random bias of each layer, (heads, N, N)."""

    def __init__(self, geometry):
        super().__init__(geometry)
        n = geometry.grid[0] * geometry.grid[1]
        self.table = nn.Parameter(torch.randn(DEPTH, HEADS, n, n))

    def bias(self, q, k, grid, layer):
        return self.table[layer]


class Contextual(Table):
    """A bias that depends on the query and its distance to the key, (B, heads, N, N)."""

    def bias(self, q, k, grid, layer):
        return q.sum(-1, keepdim=True) * self.table[layer] + k.select(-1, 0).unsqueeze(-2)


class Conditional(PositionEmbedding):
    """Mixes each token with its left neighbour, before every block but the first."""

    def tokens(self, x, grid, layer):
        return x + (layer + 1) * x.roll(1, dims=1) if layer else x


KINDS = {"rotary": [Rotary], "table": [Table], "contextual": [Contextual], "conditional": [Conditional]}
KINDS["all"] = [Rotary, Table, Contextual, Conditional]
PREFIXES = {
    "none": {"class_token": False, "global_pool": "avg"},
    "class": {},
    "class and registers": {"reg_tokens": 2},
}


def vit(**kwargs):
    torch.manual_seed(0)
    args = {"img_size": (4, 6), "patch_size": 2, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    more = {"num_classes": 4, "qk_norm": True, "scale_attn_norm": True, "global_pool": "token", "pos_embed": "none"}
    model = VisionTransformer(**{**args, **more, **kwargs}).double().eval()
    for parameter in model.parameters():  # timm starts at .02, where attention is close to a mean
        nn.init.normal_(parameter, std=0.7)
    return model


def images(*size):
    return torch.randn(2, 3, *(size or (4, 6)), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def attention(attn, x, prefix, parts, layer, mask=None, is_causal=False):
    """One attention by loops over images, heads, queries and keys."""
    batch, n, _ = x.shape
    q, k, v = attn.qkv(x).reshape(batch, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
    q, k = attn.q_norm(q), attn.k_norm(k)
    rotary = next((p for p in parts if isinstance(p, Rotary)), None)

    def turned(vector, head, token):
        if rotary is None or token < prefix:
            return vector
        out = vector.clone()
        for band in range(2):
            t = rotary.angle(head, token - prefix, layer, band)
            a, b = vector[2 * band], vector[2 * band + 1]
            out[2 * band], out[2 * band + 1] = a * math.cos(t) - b * math.sin(t), a * math.sin(t) + b * math.cos(t)
        return out

    out = torch.zeros(batch, n, WIDTH, dtype=x.dtype)
    for image in range(batch):
        for head in range(HEADS):
            for i in range(n):
                logits = torch.zeros(n, dtype=x.dtype)
                for j in range(n):
                    qi, kj = q[image, head, i], k[image, head, j]
                    logits[j] = turned(qi, head, i) @ turned(kj, head, j) / math.sqrt(WIDTH // HEADS)
                    for part in parts:
                        if isinstance(part, Table) and i >= prefix and j >= prefix:
                            entry = part.table[layer, head, i - prefix, j - prefix]
                            logits[j] += qi.sum() * entry + kj[0] if isinstance(part, Contextual) else entry
                    if is_causal:
                        logits[j] = logits[j] if j <= i else -math.inf
                    elif mask is not None and mask.dtype == torch.bool:
                        logits[j] = logits[j] if mask[i, j] else -math.inf
                    elif mask is not None:
                        logits[j] += mask[i, j]
                width = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                out[image, i, width] = logits.softmax(0) @ v[image, head]
    return attn.proj(attn.norm(out))


def reference(model, x, prefix, parts, **masks):
    """The whole model by hand, on a model without a scheme."""
    x = model.patch_embed(x)
    front = [t.expand(len(x), -1, -1) for t in (model.cls_token, model.reg_token) if t is not None]
    x = torch.cat([*front, x], dim=1)
    for layer, block in enumerate(model.blocks):
        if layer and any(isinstance(p, Conditional) for p in parts):
            patches = x[:, prefix:]
            shifted = torch.cat([patches[:, -1:], patches[:, :-1]], dim=1)
            x = torch.cat([x[:, :prefix], patches + (layer + 1) * shifted], dim=1)
        x = x + attention(block.attn, block.norm1(x), prefix, parts, layer, **masks)
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))


def scheme_of(kinds):
    torch.manual_seed(3)
    parts = [kind(GEOMETRY).double() for kind in kinds]
    return parts, parts[0] if len(parts) == 1 else Sum(GEOMETRY, parts)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("front", PREFIXES.values(), ids=PREFIXES)
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_equals_brute_force(kinds, front, fused):
    parts, scheme = scheme_of(kinds)
    plain = vit(**front)
    model = vitpos.attach(vit(**front), scheme)
    for block in model.blocks:
        block.attn.fused_attn = fused
    expected = reference(plain, images(), plain.num_prefix_tokens, parts)
    torch.testing.assert_close(model(images()), expected, rtol=1e-9, atol=1e-9)
    assert (model(images()) - plain(images())).abs().max() > 1e-3  # the scheme does something


MASKS = {
    "bool": {"mask": torch.rand(9, 9, generator=torch.Generator().manual_seed(1)) > 0.3},
    "float": {"mask": torch.randn(9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)},
    "causal": {"is_causal": True},
}
MASKS["bool"]["mask"].fill_diagonal_(True)  # every query sees something


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize(
    "kinds", [KINDS["rotary"], KINDS["table"], KINDS["contextual"]], ids=["rotary", "table", "ctx"]
)
@torch.no_grad()
def test_masks_join_the_bias(kinds, masks, fused):
    parts, scheme = scheme_of(kinds)
    plain = vit(reg_tokens=2)
    model = vitpos.attach(vit(reg_tokens=2), scheme)
    for block in model.blocks:
        block.attn.fused_attn = fused
    given = {"attn_mask" if name == "mask" else name: value for name, value in masks.items()}
    expected = reference(plain, images(), 3, parts, **masks)
    torch.testing.assert_close(model(images(), **given), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_every_way_through_the_model_uses_the_scheme(kinds):
    _, scheme = scheme_of(kinds)
    model = vitpos.attach(vit(reg_tokens=2), scheme).train()
    out = model(images())
    final, _ = model.forward_intermediates(images())
    torch.testing.assert_close(model.forward_head(final), out)
    grads = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(checkpointing)
        model(images()).pow(2).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    model.set_grad_checkpointing(False)
    exported = torch.export.export(model.eval(), (images(),)).module()
    torch.testing.assert_close(exported(images()), model(images()))


@torch.no_grad()
def test_a_bias_keeps_its_effect_under_autocast():
    _, scheme = scheme_of(KINDS["contextual"])
    model = vitpos.attach(vit(**PREFIXES["none"]), scheme).float()
    scheme.table.mul_(8)
    x = images().float()
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        low = model(x).float()
    scheme.table.zero_()
    assert (low - exact).abs().max() < 0.2 * (model(x) - exact).abs().max()


def test_detach_takes_every_hook_away():
    plain = vit(reg_tokens=2)
    model = vitpos.attach(vit(reg_tokens=2), scheme_of(KINDS["all"])[1])
    vitpos.attach(model, "none", existing="drop")
    assert torch.equal(model(images()), plain(images()))
    vitpos.attach(model, scheme_of(KINDS["all"])[1])
    vitpos.detach(model)
    assert torch.equal(model(images()), plain(images()))
