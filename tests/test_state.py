"""The grid of a forward belongs to that call: threads, replicas, recomputations, and loops of the user's own."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm.layers
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

import vitpos
from vitpos.checks.common import GEOMETRY, REGISTERS, images, vit
from vitpos.errors import VitposError
from vitpos.positions import PositionEmbedding

# One that acts through each hook, and a sum of them all.
TEXTS = ["sinusoidal_2d", "cpe", "rope_axial", "relative_bias", "irpe(on='qkv')", "learned+cpe+rope_mixed+log_cpb"]
texts = pytest.mark.parametrize("text", TEXTS)
SIZES = [(24, 16), (16, 24), (8, 48)]  # 24 patches each, so that only the grid tells them apart


class Prepared(PositionEmbedding):
    """Adds what it prepared to the tokens before block 1, and notes how often it prepares."""

    def __init__(self, geometry):
        super().__init__(geometry)
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.times = 0

    def prepare(self, grid, device):
        self.times += 1
        return self.scale.exp() * torch.arange(grid[0], device=device).repeat_interleave(grid[1])[:, None]

    def tokens(self, x, grid, layer, prepared=None):
        return x + prepared if layer == 1 else x


def gradients(model, forward=None):
    """The gradients of one backward pass after forwards over all sizes."""
    model.zero_grad()
    sum((forward or model)(images(*size)).pow(2).sum() for size in SIZES).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@texts
def test_two_threads_on_one_model(text):
    model = vit(text, **REGISTERS)

    def differ(size):
        with torch.inference_mode():
            expected = alone[size]
            return sum(not torch.equal(model(images(*size)), expected) for _ in range(15))

    with torch.inference_mode():
        alone = {size: model(images(*size)) for size in SIZES}
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(differ, SIZES)) == [0, 0, 0]


def replicate(model):
    """What ``torch.nn.parallel.replicate`` does for another GPU: copies of the parameters under the old names."""
    modules = list(model.modules())
    replicas = [module._replicate_for_data_parallel() for module in modules]
    for module, replica in zip(modules, replicas, strict=True):
        for name, child in module._modules.items():
            setattr(replica, name, None if child is None else replicas[modules.index(child)])
        for name, value in module._parameters.items():
            setattr(replica, name, None if value is None else value * 2)
    return replicas[0]


@texts
def test_a_replica_uses_its_own_parameters(text):
    model, twice = vit(text, **REGISTERS), vit(text, **REGISTERS)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
    replica = replicate(model)
    for size in SIZES:
        assert torch.equal(replica(images(*size)), twice(images(*size)))


@texts
def test_recomputed_blocks_have_the_grid_of_their_call(text):
    model = vit(text, **REGISTERS).train()
    expected = gradients(model)
    model.set_grad_checkpointing()
    equal(gradients(model), expected)
    model.set_grad_checkpointing(False)
    for part in ("block", "attention"):
        wrapped = copy.deepcopy(model)
        for layer, block in enumerate(wrapped.blocks):
            if part == "block":
                wrapped.blocks[layer] = checkpoint_wrapper(block)
            else:
                block.attn = checkpoint_wrapper(block.attn)
        found = {name.replace("_checkpoint_wrapped_module.", ""): g for name, g in gradients(wrapped).items()}
        equal(found, expected)


def test_a_recomputation_with_other_tensors_is_refused():
    model = vit("rope_axial").train()
    model.set_grad_checkpointing()
    timm.layers.set_reentrant_ckpt(True)
    try:
        with pytest.raises(VitposError, match=r"runs again .* use_reentrant=False"):
            gradients(model)
    finally:
        timm.layers.set_reentrant_ckpt(False)
    assert len(model.position_state.inputs) == 0


@texts
def test_a_loop_of_the_users_own(text):
    model, other = vit(text, **REGISTERS).train(), vit("learned")

    def loop(x, run):
        x = model._pos_embed(model.patch_embed(x))
        other(images(16, 16))  # other models and calls in between change nothing
        model(images(16, 16))
        for block in model.blocks:
            x = run(block, x)
        return model.forward_head(model.norm(x))

    expected = gradients(model)
    equal(gradients(model, lambda x: loop(x, lambda block, x: block(x))), expected)
    equal(gradients(model, lambda x: loop(x, lambda block, x: checkpoint(block, x, use_reentrant=False))), expected)


def test_a_block_outside_of_a_call_is_refused():
    model = vit("learned")
    model(images())
    with pytest.raises(VitposError, match="outside of its model's forward, so its grid is unknown"):
        model.blocks[0](torch.zeros(1, 24, 48))


def test_blocks_may_be_wrapped_replaced_and_hooked():
    model, seen = vit("rope_axial+cpe"), []
    expected = model(images())
    model.blocks.register_forward_hook(lambda *_: seen.append("blocks"))
    model.blocks[1] = torch.nn.Sequential(model.blocks[1], torch.nn.Identity())
    assert torch.equal(model(images()), expected)
    assert seen == ["blocks"]


def test_a_scheme_prepares_once_a_call_and_alone_in_a_sum():
    scheme = vitpos.positions.base.Sum(GEOMETRY, [vitpos.build("learned", GEOMETRY), Prepared(GEOMETRY)])
    model, prepared = vitpos.attach(vit(), scheme).train(), scheme.parts[1]
    expected = gradients(model)
    assert prepared.times == len(SIZES)
    model.set_grad_checkpointing()
    equal(gradients(model), expected)
    assert prepared.times == 2 * len(SIZES)
    assert model.position_state.thread.last is None


def test_another_scheme_as_pos_embed_takes_effect():
    model, other = vit("rope_axial"), vit("relative_bias")
    model.pos_embed = other.pos_embed
    assert torch.equal(model(images()), other(images()))


def test_another_scheme_as_pos_embed_is_known_to_the_state_dict():
    model, other = vit("rope_axial"), vit("rope_1d")
    model.pos_embed = vitpos.build("rope_1d(temperature=7)", model.pos_embed.geometry)
    with pytest.raises(VitposError, match=r"rope_1d\(temperature=7\).*'rope_1d'"):
        other.load_state_dict(model.state_dict(), strict=False)


def test_compiled_before_anything_else():
    model = vit("rope_axial+cpe", **REGISTERS).train()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=False, backend="eager")
    for size in SIZES:
        torch.testing.assert_close(compiled(images(*size)), model(images(*size)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["cpe", "rope_axial", "irpe(on='qkv')"])
@pytest.mark.slow
def test_compiled_with_gradient_checkpointing_in_one_graph(text):
    model = vit(text, **REGISTERS).train()
    expected = gradients(model)
    model.set_grad_checkpointing()
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    found = gradients(model, lambda x: compiled(x))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
