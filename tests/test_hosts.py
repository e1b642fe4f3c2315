"""Every ViT-family model that timm lists, built small: attached and correct, or refused with the reason.

`python tests/test_hosts.py` prints the README's table of hosts.
"""

import re
import warnings
from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch import nn

import vitpos
from vitpos.errors import VitposError
from vitpos.hosts import MODELS, PositionedEva, PositionedModel
from vitpos.positions import Geometry, PositionEmbedding

FAMILIES = [  # timm's files of plain ViTs
    *("vision_transformer", "deit", "vision_transformer_hybrid", "vitamin", "eva"),
    *("vision_transformer_relpos", "vision_transformer_sam", "beit", "naflexvit", "cait", "convit"),
]
ENTRY_POINTS = [(family, name) for family in FAMILIES for name in timm.list_models(module=family)]
# Small where the entry point allows. At width 96 the hidden widths of SwiGLU come out even.
SMALL = [
    {"embed_dim": 96, "num_heads": 4, "depth": 2, "img_size": 64},
    {"embed_dim": 96, "num_heads": 4, "depth": 2, "img_size": 56},  # patches of 14
    {"embed_dim": 96, "num_heads": 4, "depth": 2, "num_kv_heads": 2},
    {"embed_dim": 96, "num_heads": 4, "depth": 2},
    {"depth": 2, "img_size": 64},  # a convolutional stem fixes the width
    {"depth": 2},
]


def small(name):
    """Builds an entry point with as few weights as it allows."""
    for given in SMALL:
        try:
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=0, **given).eval()
            for value in model.parameters():
                if value.dim() == 1 and 0 < value.abs().max() < 0.1:  # layer scales would hide what a block does
                    value.data.fill_(1)
            if isinstance(model, tuple(MODELS)):
                model(torch.zeros(1, 3, *model.patch_embed.img_size))
            return model
        except (AssertionError, TypeError, RuntimeError) as error:
            reason = error
    raise reason


class Probe(PositionEmbedding):
    """Notes what the hooks are given, and acts through each of them."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.calls = []

    def tokens(self, x, grid, layer):
        self.calls.append(("tokens", layer, grid, tuple(x.shape[1:])))
        return x + torch.arange(x.shape[1])[:, None] if layer == 0 else x

    def rotate(self, q, k, grid, layer):
        self.calls.append(("rotate", layer, grid, tuple(q.shape[1:]), tuple(k.shape[1:])))
        return q.roll(1, dims=2), k

    def bias(self, q, k, grid, layer):
        self.calls.append(("bias", layer, grid, tuple(q.shape[1:]), tuple(k.shape[1:])))
        return torch.arange(q.shape[2], dtype=q.dtype).expand(q.shape[1], q.shape[2], -1)


def shuffled(model, x):
    """The model's output where its patches come in another order."""

    def permute(module, inputs, out):
        flat = out.flatten(1, 2) if out.dim() == 4 else out
        return flat[:, torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))].reshape(out.shape)

    with_hook = model.patch_embed.register_forward_hook(permute)
    try:
        return model(x)
    finally:
        with_hook.remove()


@torch.no_grad()
def verify(name):
    """Makes sure that a small model is served correctly; raises a VitposError where it is refused."""
    plain, host = small(name), vitpos.attach(small(name), "none", existing="keep")
    x = torch.randn(2, 3, *plain.patch_embed.img_size, generator=torch.Generator().manual_seed(1))
    keys, out = set(plain.state_dict()), plain(x)
    assert {key for key in host.state_dict() if not key.startswith("pos_embed")} == keys - {"pos_embed"}
    torch.testing.assert_close(host(x), out, rtol=0, atol=2e-6 * out.abs().max().item())  # memory layout may differ

    host = vitpos.attach(small(name), "none", existing="drop")
    bare = host(x)
    scale = bare.std()
    if plain.pos_embed is not None or getattr(plain, "rope", None) is not None:
        assert (bare - out).abs().max() > 1e-4 * scale
    assert (shuffled(host, x) - bare).abs().max() < 1e-5 * scale
    attention, grid = host.blocks[0].attn, host.patch_embed.grid_size
    probe = Probe(Geometry(grid, host.embed_dim, attention.num_heads, len(host.blocks)))
    vitpos.attach(host, probe)
    out = host(x)
    assert (out - bare).abs().max() > 1e-3 * scale
    assert (shuffled(host, x) - out).abs().max() > 1e-3 * scale
    heads = (attention.num_heads, grid[0] * grid[1], attention.head_dim)
    expected = Counter()
    for layer in range(len(host.blocks)):
        expected["tokens", layer, grid, (grid[0] * grid[1], host.embed_dim)] = 2
        expected["rotate", layer, grid, heads, heads] = expected["bias", layer, grid, heads, heads] = 2
    assert Counter(probe.calls) == expected

    assert torch.equal(vitpos.detach(host)(x), bare)
    assert type(host) is type(plain)
    assert set(host.state_dict()) == {key for key in keys if not key.startswith(("pos_embed", "rope."))}


def survey(name):
    """Returns "" for a model that is served, else the reason why it is refused."""
    model = small(name)
    try:
        if not isinstance(model, tuple(MODELS)):
            vitpos.attach(model, "none")
            raise AssertionError(f"{name} is served: verify it")
        verify(name)
    except VitposError as error:
        return str(error)
    return ""


def table():
    """Makes the rows of the README's table of hosts."""
    rows = []
    for family in FAMILIES:
        reasons = Counter(survey(name) for f, name in ENTRY_POINTS if f == family)
        served = reasons.pop("", 0)
        what = {reason: reason.removeprefix("cannot attach to ").split(":")[0] for reason in reasons}
        refused = ", ".join(f"{n} {what[reason]}" for reason, n in sorted(reasons.items()))
        rows.append(f"| `{family}` | {served + reasons.total()} | {served} | {refused} |")
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), ENTRY_POINTS, ids=lambda value: value)
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_every_vit_of_timm_is_served_correctly_or_refused_with_the_reason(family, name):
    reason = survey(name)
    if reason:
        assert re.match(r"cannot attach (to|with|:)", reason)
        assert "\n" not in reason


EVA = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 5}
KINDS = {
    "eva": {"attn_type": "eva"},
    "eva, apart": {"attn_type": "eva", "qkv_fused": False},
    "inner norm": {"attn_type": "eva", "scale_attn_inner": True},
    "post norm": {"attn_type": "eva", "use_post_norm": True},
    "rope": {"attn_type": "rope", "qkv_fused": False, "num_reg_tokens": 2},
    "own rotation": {"attn_type": "rope", "use_rot_pos_emb": True, "rope_rotate_half": True},
    "own mixed rotation": {"attn_type": "rope", "use_rot_pos_emb": True, "rope_type": "mixed"},
    "own rotation and table": {"attn_type": "eva", "use_rot_pos_emb": True, "no_embed_class": True},
    "any size": {"attn_type": "rope", "use_rot_pos_emb": True, "dynamic_img_size": True},
}


def eva(seed=0, **kwargs):
    torch.manual_seed(seed)
    return Eva(**{**EVA, **kwargs}).eval()


def images(*size):
    return torch.randn(2, 3, *(size or (16, 24)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kwargs", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("fused", [True, False])
def test_eva_with_what_it_has_is_timms_bit_for_bit(kwargs, fused):
    plain, host = eva(**kwargs), vitpos.attach(eva(**kwargs), "none", existing="keep")
    assert type(host) is PositionedEva
    for model in (plain, host):
        for block in model.blocks:
            block.attn.fused_attn = fused
    sizes = [(16, 24), (24, 16)] if kwargs.get("dynamic_img_size") else [(16, 24)]
    for size in sizes:
        assert torch.equal(host(images(*size)), plain(images(*size)))
    final, maps = host.forward_intermediates(images())
    assert torch.equal(final, plain.forward_features(images()))
    assert maps[0].shape == (2, 48, 4, 6)


@pytest.mark.parametrize("kwargs", KINDS.values(), ids=KINDS)
def test_eva_trains_with_a_scheme(kwargs):
    host = vitpos.attach(eva(**kwargs), "learned+sinusoidal_2d", existing="drop").train()
    host.set_grad_checkpointing()
    host(images()).pow(2).sum().backward()
    assert {n for n, p in host.named_parameters() if p.grad is None} == set()
    assert "pos_embed.parts.0.table" in host.no_weight_decay()
    before = host.pos_embed.parts[0].table.clone()
    host.init_weights()
    assert not torch.equal(host.pos_embed.parts[0].table, before)
    host.eval().set_input_size((32, 16))
    assert host(images(32, 16)).shape == (2, 5)


def test_what_eva_cannot_have_is_refused():
    grouped = eva(attn_type="rope", qkv_fused=False, num_kv_heads=2)
    with pytest.raises(VitposError, match="grouped-query attention: 2 queries share a key"):
        vitpos.attach(grouped, "none", existing="drop")
    with pytest.raises(VitposError, match="patch_drop_rate > 0"):
        vitpos.attach(eva(patch_drop_rate=0.5), "none", existing="drop")
    with pytest.raises(VitposError, match=r"already has rotary positions \(RotaryEmbeddingCat\): pass"):
        vitpos.attach(eva(use_abs_pos_emb=False, use_rot_pos_emb=True), "none")


def test_a_model_that_is_no_vit_is_refused():
    for model, name in ((nn.Linear(2, 2), "Linear"), (timm.create_model("resnet18"), "ResNet")):
        with pytest.raises(
            VitposError, match=f"cannot attach to {name}: supported are timm's VisionTransformer and Eva"
        ):
            vitpos.attach(model, "none")
        assert not isinstance(model, PositionedModel)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:timm")
def test_the_readme_has_the_table_of_hosts():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    written = re.search(r"Supported timm ([\d.]+\d) models", readme)[1]
    if timm.__version__ != written:
        pytest.skip(f"the table is that of timm {written}, this is {timm.__version__}")
    assert [row for row in table() if row not in readme] == []


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print("\n".join(table()))
