"""What every registered scheme must do, in a model; a new scheme is tested by being registered."""

import copy
import pickle

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitpos
from vitpos.positions import Geometry, base, build, options

NAMES = vitpos.available()
SHIPPED = {name: cls.__module__ for name, cls in base._registry.items()}


def model(scheme, seed=0, **kwargs):
    """A ViT on a grid of 4 x 6 that takes other sizes, in float64 so that small differences show."""
    torch.manual_seed(seed)
    host = VisionTransformer(
        img_size=(16, 24), patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5, pos_embed="none",
        class_token=False, global_pool="avg", dynamic_img_size=True,
    )  # fmt: skip
    torch.manual_seed(seed + 1)
    return vitpos.attach(host, scheme).double().eval()


def images(*size, seed=2):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
class TestEveryScheme:
    def test_every_parameter_receives_a_gradient(self, name):
        host = model(name).train()
        host(images(16, 24)).pow(2).sum().backward()
        for parameter, value in host.named_parameters():
            assert value.grad is not None, parameter
            assert value.grad.abs().max() > 0, parameter

    def test_a_state_dict_carries_all_that_is_learned(self, name):
        x = images(16, 24)
        one, two = model(name), model(name, seed=5)
        assert not torch.equal(one(x), two(x))
        two.load_state_dict(one.state_dict(), strict=True)
        assert torch.equal(one(x), two(x))

    def test_a_copy_is_equal_and_apart(self, name):
        x = images(16, 24)
        host = model(name)
        before = host(x)
        for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
            assert torch.equal(twin(x), before)
            with torch.no_grad():
                for parameter in twin.parameters():
                    parameter.add_(1)
            assert torch.equal(host(x), before)

    @pytest.mark.parametrize("size", [(24, 16), (16, 16), (32, 40), (4, 4), (8, 48)])
    def test_another_grid_at_test_time(self, name, size):
        host = model(name)
        at_home = host(images(16, 24))
        out = host(images(*size))
        assert out.shape == (2, 5)
        assert out.isfinite().all()
        assert torch.equal(host(images(16, 24)), at_home)  # nothing of the other grid stays behind

    def test_permuting_patches_changes_the_output_of_all_but_none(self, name):
        x = images(16, 24)
        order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
        patches = x.reshape(2, 3, 4, 4, 6, 4).transpose(3, 4).reshape(2, 3, 24, 4, 4)[:, :, order]
        permuted = patches.reshape(2, 3, 4, 6, 4, 4).transpose(3, 4).reshape(2, 3, 16, 24)
        host = model(name)
        difference = (host(x) - host(permuted)).abs().max().item()
        assert difference < 1e-12 if name == "none" else difference > 1e-6

    def test_no_weight_decay_on_any_of_its_parameters(self, name):
        host = model(name)
        own = {n for n, _ in host.named_parameters() if n.startswith("pos_embed.")}
        assert own <= host.no_weight_decay()

    def test_the_hooks_keep_shape_and_dtype(self, name):
        scheme = build(name, Geometry((4, 6), 24, 2, 2))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x, q = torch.randn(2, 24, 24).to(dtype), torch.randn(2, 2, 24, 12).to(dtype)
            for layer in range(2):
                assert (scheme.tokens(x, (4, 6), layer).shape, scheme.tokens(x, (4, 6), layer).dtype) == (
                    x.shape,
                    dtype,
                )
                for turned in scheme.rotate(q, q, (4, 6), layer):
                    assert (turned.shape, turned.dtype) == (q.shape, dtype)
                bias = scheme.bias(q, q, (4, 6), layer)
                assert bias is None or bias.shape[-3:] == (2, 24, 24)

    def test_it_is_documented_with_its_source(self, name):
        if name != "none" and SHIPPED[name].startswith("vitpos."):
            assert "Source:" in base._registry[name].__doc__


@pytest.mark.parametrize("name", [name for name in NAMES if "scale" in options(name)])
def test_scale_is_the_rms_at_the_start(name):
    torch.manual_seed(0)
    scheme = build(f"{name}(scale=0.3)", Geometry((16, 16), 64, 2, 2))
    rms = scheme.tokens(torch.zeros(1, 256, 64), (16, 16), 0).pow(2).mean().sqrt().item()
    assert rms == pytest.approx(0.3, rel=0.05)
