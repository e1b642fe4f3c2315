import copy
import io
import pickle

import pytest
import timm
import torch
from timm.models.vision_transformer import (
    Attention,
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from torch._subclasses.fake_tensor import FakeTensorMode

import vitpos
from vitpos.errors import VitposError
from vitpos.hosts import PositionedAttention, PositionedVisionTransformer

SHAPES = {
    "avg": {"class_token": False, "global_pool": "avg"},
    "token": {"class_token": True, "global_pool": "token"},
    "token, avg": {"class_token": True, "global_pool": "avg"},
    "registers": {"class_token": True, "reg_tokens": 3, "global_pool": "token"},
    "registers only": {"class_token": False, "reg_tokens": 2, "global_pool": "avg"},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
SCHEMES = ["none", "learned", "sinusoidal_1d", "sinusoidal_2d(temperature=100)", "learned+sinusoidal_2d"]
schemes = pytest.mark.parametrize("scheme", SCHEMES)


def vit(pos_embed="none", seed=0, **kwargs):
    """A small timm ViT of 3 blocks on a grid of 4 x 6."""
    torch.manual_seed(seed)
    args = {"img_size": (16, 24), "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**args, "global_pool": "token", **kwargs}, pos_embed=pos_embed).eval()


def images(*size, n=2):
    return torch.randn(n, 3, *(size or (16, 24)), generator=torch.Generator().manual_seed(9))


def fuse(model, fused):
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def pair(scheme, **kwargs):
    """timm's own model, and one with the scheme attached and the same weights."""
    theirs = vit("learn" if scheme == "learned" else "none", no_embed_class=True, **kwargs)
    # Without prefix tokens timm's learned path keeps the convolution's memory layout, in which sums round differently.
    theirs.patch_embed.register_forward_hook(lambda module, inputs, out: out.contiguous())
    ours = vitpos.attach(vit(seed=1, **kwargs), scheme)
    state = theirs.state_dict()
    if scheme == "learned":
        state["pos_embed.table"] = state.pop("pos_embed")
    ours.load_state_dict(state, strict=True)
    return theirs, ours


@shapes
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scheme", ["none", "learned"])
def test_equals_timm_bit_for_bit(scheme, fused, shape):
    theirs, ours = (fuse(m, fused) for m in pair(scheme, **shape, init_values=0.1, qk_norm=True))
    assert (theirs(images()) - ours(images())).abs().max().item() == 0.0
    assert ours(images()).std() > 0


@pytest.mark.parametrize("fused", [True, False])
def test_equals_timm_bit_for_bit_in_training_with_all_dropouts(fused):
    rates = dict.fromkeys(["drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"], 0.2)
    theirs, ours = (fuse(m, fused).train() for m in pair("learned", **rates))
    outs, grads = [], []
    for model in (theirs, ours):
        torch.manual_seed(7)
        outs.append(model(images()))
        outs[-1].pow(2).sum().backward()
        grads.append([p.grad for n, p in model.named_parameters() if "pos_embed" not in n])
    assert torch.equal(*outs)
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert torch.equal(theirs.pos_embed.grad, ours.pos_embed.table.grad)


def test_the_layout_of_memory_is_all_that_differs_without_prefix_tokens():
    theirs, ours = pair("learned", class_token=False, global_pool="avg")
    theirs.patch_embed._forward_hooks.clear()
    torch.testing.assert_close(theirs(images()), ours(images()), rtol=0, atol=1e-6)
    assert ours._pos_embed(ours.patch_embed(images())).is_contiguous()


def test_equals_timm_on_another_grid():
    theirs, ours = pair("learned", dynamic_img_size=True, reg_tokens=2)
    for size in ((16, 24), (24, 16), (32, 8)):
        assert torch.equal(theirs(images(*size)), ours(images(*size)))


def test_dropout_of_positions_is_applied_without_positions_too():
    ours = vitpos.attach(vit(pos_drop_rate=0.5, class_token=False, global_pool="avg"), "none").train()
    torch.manual_seed(0)
    dropped = ours._pos_embed(torch.ones(2, 24, 24))
    assert dropped.unique().tolist() == [0, 2]
    assert torch.equal(
        vit(pos_drop_rate=0.5, class_token=False, global_pool="avg").train()._pos_embed(dropped), dropped
    )


@schemes
def test_the_backbone_keeps_its_keys_and_the_state_dict_goes_round(scheme):
    plain, ours = vit(), vitpos.attach(vit(), scheme)
    own = {k for k in ours.state_dict() if k.startswith("pos_embed.")}
    assert set(ours.state_dict()) - own == set(plain.state_dict())
    twin = vitpos.attach(vit(seed=3), scheme)
    buffer = io.BytesIO()
    torch.save(ours.state_dict(), buffer)
    buffer.seek(0)
    twin.load_state_dict(torch.load(buffer), strict=True)
    assert torch.equal(twin(images()), ours(images()))


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_a_copy_uses_its_own_scheme_throughout(duplicate):
    ours = vitpos.attach(vit(), "learned")
    twin = duplicate(ours)
    assert twin.pos_embed is not ours.pos_embed
    assert twin.position_state is not ours.position_state
    assert {part.position_state for block in twin.blocks for part in (block, block.attn)} == {twin.position_state}
    before = ours(images())
    with torch.no_grad():
        twin.pos_embed.table.add_(1)
    assert not torch.equal(twin(images()), before)
    assert torch.equal(ours(images()), before)


@schemes
def test_intermediates_are_those_of_the_forward(scheme):
    ours = vitpos.attach(vit(reg_tokens=2, dynamic_img_size=True), scheme)
    final, maps = ours.forward_intermediates(images(24, 16), norm=True)
    assert [m.shape for m in maps] == [(2, 24, 6, 4)] * 3
    assert torch.equal(final, ours.forward_features(images(24, 16)))
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), final[:, 3:])
    (last,) = ours.get_intermediate_layers(images(), 1)
    assert last.shape == (2, 24, 24)
    early = ours.forward_intermediates(images(), indices=[0], stop_early=True, intermediates_only=True)
    assert early[0].shape == (2, 24, 4, 6)
    ours.prune_intermediate_layers([1])
    assert ours(images()).shape[:1] == (2,)


@schemes
def test_gradient_checkpointing_changes_no_gradient(scheme):
    grads = []
    for checkpointing in (False, True):
        ours = vitpos.attach(vit(), scheme).train()
        ours.set_grad_checkpointing(checkpointing)
        ours(images()).pow(2).sum().backward()
        grads.append([p.grad for p in ours.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@schemes
def test_export(scheme):
    ours = vitpos.attach(vit(reg_tokens=1), scheme)
    exported = torch.export.export(ours, (images(),)).module()
    torch.testing.assert_close(exported(images()), ours(images()))


@pytest.mark.slow
@schemes
def test_compile_in_one_graph(scheme):
    ours = vitpos.attach(vit(reg_tokens=1, dynamic_img_size=True), scheme)
    compiled = torch.compile(ours, fullgraph=True, dynamic=False)
    for size in ((16, 24), (24, 16)):
        torch.testing.assert_close(compiled(images(*size)), ours(images(*size)), rtol=1e-4, atol=1e-5)


@schemes
def test_a_fake_cuda_device(scheme):
    ours = vitpos.attach(vit(dynamic_img_size=True, reg_tokens=2), scheme)
    with FakeTensorMode() as mode:
        tensors = dict([*ours.named_parameters(), *ours.named_buffers()])
        moved = {name: mode.from_tensor(tensor).to("cuda") for name, tensor in tensors.items()}
        for size in ((16, 24), (32, 8)):  # of training, and another
            out = torch.func.functional_call(ours, moved, (torch.zeros(2, 3, *size, device="cuda"),))
            assert (out.shape, out.device.type) == ((2, 5), "cuda")


@schemes
def test_half_precision(scheme):
    low = vitpos.attach(vit().bfloat16(), scheme)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert low(images().bfloat16()).dtype == torch.bfloat16
    full = vitpos.attach(vit(), scheme)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(full(images()).float(), full(images()).float(), rtol=0, atol=0)
        assert full(images()).isfinite().all()


@schemes
def test_attach_leaves_the_random_state_and_draws_from_it(scheme):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = vitpos.attach(vit(), scheme)  # vit() seeds with 0
    torch.manual_seed(0)
    vit()
    assert not torch.equal(before, torch.random.get_rng_state())
    state = torch.random.get_rng_state()
    assert torch.equal(vitpos.attach(vit(), scheme)(images()), one(images()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_attach_again_is_refused_without_a_word_and_detach_restores():
    model = vit()
    plain = model(images())
    assert vitpos.attach(model, "none") is model
    vitpos.attach(model, "learned(scale=1)")  # nothing is lost with none
    first = model(images())
    with pytest.raises(VitposError, match=r"already has position scheme 'learned': pass .*keep.*drop.* to remove it"):
        vitpos.attach(model, "sinusoidal_2d")
    with pytest.raises(VitposError, match=r"existing='new' must be \"keep\" or \"drop\""):
        vitpos.attach(model, "sinusoidal_2d", existing="new")
    with pytest.raises(VitposError, match="did you mean 'learned'"):
        vitpos.attach(model, "lerned", existing="drop")
    assert torch.equal(model(images()), first)  # a failed attach changes nothing

    vitpos.attach(model, "sinusoidal_2d", existing="keep")
    assert [part.scheme for part in model.pos_embed.parts] == ["learned", "sinusoidal_2d"]
    fresh = vitpos.attach(vit(), "learned(scale=1)+sinusoidal_2d")
    assert torch.equal(model(images()), fresh(images()))
    with pytest.raises(VitposError, match=r"already has position scheme 'learned\+sinusoidal_2d'"):
        vitpos.attach(model, "none")
    vitpos.attach(model, "sinusoidal_2d", existing="drop")
    assert torch.equal(model(images()), vitpos.attach(vit(), "sinusoidal_2d")(images()))

    assert vitpos.detach(model) is model
    assert torch.equal(model(images()), plain)
    assert (type(model), {type(b) for b in model.blocks}) == (VisionTransformer, {Block})
    assert {type(b.attn) for b in model.blocks} == {Attention}
    assert model.pos_embed is None
    assert set(vars(model.blocks[0])) == set(vars(vit().blocks[0]))
    assert set(vars(model.blocks[0].attn)) == set(vars(vit().blocks[0].attn))
    assert set(vars(model)) == set(vars(vit()))
    assert set(model.state_dict()) == set(vit().state_dict())
    with pytest.raises(VitposError, match="VisionTransformer has no position scheme of vitpos to detach"):
        vitpos.detach(model)


def test_an_instance_is_used_as_it_is():
    scheme = vitpos.build("learned(scale=1)", vitpos.Geometry((4, 6), 24, 2, 3))
    model = vitpos.attach(vit(), scheme)
    assert model.pos_embed is scheme
    with pytest.raises(VitposError, match=r"made for .*grid=\(4, 6\).*the model has .*grid=\(6, 4\)"):
        vitpos.attach(vit(img_size=(24, 16)), scheme)


def test_classes_and_mode():
    model = vitpos.attach(vit().train(), "learned")
    assert isinstance(model, PositionedVisionTransformer)
    assert all(type(b.attn) is PositionedAttention for b in model.blocks)
    assert model.pos_embed.training
    assert not vitpos.attach(vit(), "learned").pos_embed.training


def test_optimizer_groups():
    model = vitpos.attach(vit(), "learned+learned")
    tables = {id(p) for p in model.pos_embed.parameters()}
    assert len(tables) == 2
    for group in param_groups_weight_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay()):
        assert group["weight_decay"] == 0 or not tables & {id(p) for p in group["params"]}
    groups = param_groups_layer_decay(model, 0.1, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    scale = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    stem = scale[id(model.patch_embed.proj.weight)][0]
    assert stem == min(s for s, _ in scale.values()) < 1
    assert {scale[i] for i in tables} == {(stem, 0.0)}


def test_timm_methods_that_know_pos_embed():
    model = vitpos.attach(vit(), "learned")
    table = model.pos_embed.table
    model.set_input_size((32, 16))
    assert model.pos_embed.table is table
    assert model(images(32, 16)).shape == (2, 5)
    before = table.clone()
    torch.manual_seed(0)
    model.init_weights()
    assert model.pos_embed.table is table
    assert not torch.equal(table, before)
    assert table.std().item() == pytest.approx(0.02, rel=0.2)
    model.reset_classifier(9)
    assert model(images(32, 16)).shape == (2, 9)


def test_wrong_tokens_are_an_error_and_not_silently_wrong():
    model = vitpos.attach(vit(), "sinusoidal_2d")
    model._pos_embed(torch.zeros(2, 24, 24))
    with pytest.raises(VitposError, match="20 tokens are not the 4 x 6 patches and 1 prefix tokens"):
        model.blocks[0].attn(torch.zeros(2, 20, 24))
    with pytest.raises(VitposError, match="25 tokens are not the 4 x 6 patches and 0 prefix tokens"):
        model._pos_embed(torch.zeros(2, 25, 24))


def heads_differ():
    model = vit()
    model.blocks[1].attn.num_heads, model.blocks[1].attn.head_dim = 3, 8
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.nn.Linear(2, 2), "cannot attach to Linear: supported are timm's VisionTransformer and Eva"),
        (
            lambda: timm.create_model("deit_tiny_distilled_patch16_224"),
            "cannot attach to VisionTransformerDistilled: .* a subclass of timm's VisionTransformer, whose",
        ),
        (lambda: vit(patch_drop_rate=0.5), "patch_drop_rate > 0: the remaining patches form no grid"),
        (lambda: vit(block_fn=ParallelScalingBlock), "cannot attach to block ParallelScalingBlock"),
        (lambda: vit(block_fn=ParallelThingsBlock), "cannot attach to block ParallelThingsBlock"),
        (lambda: vit(block_fn=DiffParallelScalingBlock), "cannot attach to block DiffParallelScalingBlock"),
        (lambda: vit(attn_layer="diff"), "cannot attach to attention DiffAttention"),
        (heads_differ, r"heads differ between layers, \(num_heads, head_dim\) are \[\(2, 12\), \(3, 8\)\]"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(make, message):
    model = make()
    with pytest.raises(VitposError, match=message):
        vitpos.attach(model, "none", existing="drop")
    assert not isinstance(model, PositionedVisionTransformer)


def test_post_norm_blocks_are_served():
    theirs, ours = pair("learned", block_fn=ResPostBlock)
    assert torch.equal(theirs(images()), ours(images()))
