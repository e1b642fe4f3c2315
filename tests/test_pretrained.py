"""What becomes of positions that a model has already: kept in a sum, or dropped; never lost silently."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitpos
from vitpos.checks.common import WIDTH, images, vit
from vitpos.errors import VitposError

SHAPES = {
    "class token, embedded": {"class_token": True, "global_pool": "token", "no_embed_class": False},
    "class token, not embedded": {"class_token": True, "global_pool": "token", "no_embed_class": True},
    "registers, embedded": {"class_token": True, "reg_tokens": 3, "global_pool": "token"},
    "patches only": {"class_token": False, "global_pool": "avg"},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
# What a scheme has to be given to start as the identity, so that a pretrained model goes on from where it was.
IDENTITIES = [
    *("none", "relative_bias(std=0)", "shaw_2d(std=0)", "irpe", "rope_mixed(init='zero')", "cpe(std=0)"),
    "irpe(on='qkv')+rope_mixed(init='zero')",
]


def pretrained(seed=0, **shape):
    """A model whose table and prefix tokens are far from 0, as after training."""
    model = vit(seed=seed, pos_embed="learn", **shape)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in ("pos_embed", "cls_token", "reg_token"):
                value.normal_()
    # timm keeps the convolution's memory layout where there is no prefix, in which sums round differently.
    model.patch_embed.register_forward_hook(lambda module, inputs, out: out.contiguous())
    return model


def fuse(model, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused


@shapes
@pytest.mark.parametrize("text", IDENTITIES)
def test_a_scheme_that_starts_as_the_identity_leaves_the_logits_as_they_were(text, shape):
    model = pretrained(**shape)
    fuse(model, fused=False)
    sizes = [(16, 24), (24, 16), (32, 40)]  # timm resizes its table on other grids, and so does the scheme
    before = [model(images(*size)) for size in sizes]
    backbone = {n: v.clone() for n, v in model.state_dict().items() if n not in ("pos_embed", "cls_token", "reg_token")}
    vitpos.attach(model, text, existing="keep")
    assert [torch.equal(model(images(*size)), out) for size, out in zip(sizes, before, strict=True)] == [True] * 3
    fuse(model, fused=True)
    for size, out in zip(sizes, before, strict=True):
        torch.testing.assert_close(model(images(*size)), out, rtol=0, atol=2e-6)  # sums in another order
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in backbone.items())
    assert len(after) >= len(backbone) + 1
    loss = model.train()(images()).pow(2).sum()
    loss.backward()
    assert {n for n, p in model.named_parameters() if n.startswith("pos_embed") and not p.grad.abs().max() > 0} == set()


@shapes
def test_a_kept_table_is_the_first_term_and_takes_the_place_of_a_new_one(shape):
    table = pretrained(**shape).pos_embed.detach()[:, -24:]
    model = vitpos.attach(pretrained(**shape), "sinusoidal_2d+learned", existing="keep")
    assert [part.scheme for part in model.pos_embed.parts] == ["learned", "sinusoidal_2d"]
    assert torch.equal(model.pos_embed.parts[0].table, table)
    twin = vitpos.attach(vit(seed=5, **shape), "learned+sinusoidal_2d")
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(images()), model(images()))
    alone = vitpos.attach(pretrained(**shape), "learned", existing="keep")
    assert torch.equal(alone.pos_embed.table, table)


@shapes
def test_a_table_goes_only_on_request_and_prefix_tokens_keep_what_it_had_for_them(shape):
    model = pretrained(**shape)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(VitposError, match=r"already has learned pos_embed \(1, \d+, 48\): pass .*keep.*drop"):
        vitpos.attach(model, "sinusoidal_2d")
    assert type(model) is VisionTransformer
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())

    table, prefix = before["pos_embed"], model.num_prefix_tokens
    embedded = table[:, :prefix] if table.shape[1] == 24 + prefix else torch.zeros(1, prefix, WIDTH)
    tokens = [before[name] for name in ("cls_token", "reg_token") if name in before]
    vitpos.attach(model, "none", existing="drop")
    now = [t for t in (model.cls_token, model.reg_token) if t is not None]
    for token, old, added in zip(now, tokens, embedded.split([t.shape[1] for t in tokens], dim=1), strict=True):
        assert torch.equal(token, old + added)
    assert "pos_embed" not in dict(model.named_parameters())
    grid = images()[:, :, :, :4].repeat(1, 1, 1, 6)  # columns alike: nothing tells them apart
    tall = model.forward_intermediates(grid, intermediates_only=True)[-1]
    torch.testing.assert_close(tall[..., :1].expand_as(tall), tall, rtol=0, atol=1e-5)


def test_a_table_is_resized_for_good_with_the_model():
    model, theirs = pretrained(dynamic_img_size=False), pretrained(dynamic_img_size=False)
    theirs.set_input_size((32, 40))
    vitpos.attach(model, "none", existing="keep").set_input_size((32, 40))
    assert torch.equal(model(images(32, 40)), theirs(images(32, 40)))
    vitpos.attach(theirs, "none", existing="keep")  # after the resize as well
    assert torch.equal(model(images(32, 40)), theirs(images(32, 40)))
