import pytest
import torch

import vitpos
from vitpos.checks.common import images, vit
from vitpos.errors import VitposError
from vitpos.positions import Geometry, build


def acts(text, depth):
    """The layers before which a scheme changes the tokens."""
    scheme = build(text, Geometry((4, 6), 8, 2, depth))
    x = torch.randn(2, 24, 8)
    return [layer for layer in range(depth) if scheme.tokens(x, (4, 6), layer) is not x]


def test_it_comes_after_the_first_blocks():
    assert acts("cpe", 4) == [1]
    assert acts("cpe(layers=2)", 4) == [1, 2]
    assert acts("cpe(layers=3)", 4) == [1, 2, 3]
    assert acts("cpe", 1) == [0]


@pytest.mark.parametrize("size", [3, 5])
def test_only_the_border_tells_where_a_patch_is(size):
    torch.manual_seed(0)
    scheme = build(f"cpe(kernel_size={size})", Geometry((9, 9), 4, 2, 2)).double()
    alike = scheme.tokens(torch.ones(1, 81, 4).double(), (9, 9), 1)[0].unflatten(0, (9, 9))
    inner = alike[size // 2 : -(size // 2), size // 2 : -(size // 2)]
    torch.testing.assert_close(inner, inner[:1, :1].expand_as(inner), rtol=0, atol=1e-14)
    assert ((alike - inner[0, 0]).abs().sum(dim=-1) > 1e-6).sum() == 81 - (9 - size + 1) ** 2
    # and the four corners differ
    corners = alike[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (torch.pdist(corners) > 1e-6).all()


def test_a_patch_hears_of_its_neighbours_only():
    scheme = build("cpe", Geometry((4, 6), 4, 2, 2))
    x = torch.randn(1, 24, 4)
    moved = x.clone()
    moved[0, 8, 1] += 1  # row 1, column 2, channel 1
    change = (scheme.tokens(moved, (4, 6), 1) - scheme.tokens(x, (4, 6), 1))[0].unflatten(0, (4, 6))
    assert change.nonzero().tolist() == [[r, c, 1] for r in (0, 1, 2) for c in (1, 2, 3)]


def test_the_start_is_that_of_a_convolution_or_has_the_deviation_asked_for():
    torch.manual_seed(0)
    geometry = Geometry((4, 6), 6000, 2, 2)
    scheme, convolution = build("cpe", geometry), torch.nn.Conv2d(6000, 6000, 3, groups=6000)
    for own, theirs in ((scheme.kernels, convolution.weight), (scheme.biases, convolution.bias)):
        assert own.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=1e-3)  # uniform: up to the bound
        assert own.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
    drawn = build("cpe(std=0.1)", geometry)
    assert drawn.kernels.std().item() == pytest.approx(0.1, rel=0.05)
    assert not drawn.biases.any()


def test_a_start_at_zero_leaves_a_model_as_it_was():
    plain = vit()
    before = plain(images())
    assert torch.equal(vitpos.attach(plain, "cpe(std=0)")(images()), before)


@pytest.mark.parametrize(
    ("text", "depth", "message"),
    [
        ("cpe(layers=4)", 4, "'cpe': layers=4 with 4 blocks; at most 3"),
        ("cpe(layers=2)", 1, "'cpe': layers=2 with 1 blocks; at most 1"),
        ("cpe(layers=0)", 4, "'cpe': layers=0 must be a whole number of at least 1"),
        ("cpe(kernel_size=1)", 4, "'cpe': kernel_size=1 must be a whole number of at least 3"),
        ("cpe(kernel_size=4)", 4, "'cpe': kernel_size=4 must be odd"),
        ("cpe(std=-0.1)", 4, "'cpe': std=-0.1 must be a finite number of at least 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(text, depth, message):
    with pytest.raises(VitposError, match=message):
        build(text, Geometry((4, 6), 8, 2, depth))
