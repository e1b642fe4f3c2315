import pytest
import torch

from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

GEOMETRY = Geometry((4, 6), 24, 2, 3)


@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_scale_is_the_rms_at_the_start(scale):
    torch.manual_seed(0)
    table = build(f"learned(scale={scale})", Geometry((16, 16), 192, 3, 1)).table
    assert table.shape == (1, 256, 192)
    assert table.pow(2).mean().sqrt().item() == pytest.approx(scale, rel=0.02)
    assert table.mean().item() == pytest.approx(0, abs=0.02 * scale)


def test_the_two_terms_of_learned_axial_have_equal_shares_of_the_scale():
    torch.manual_seed(0)
    scheme = build("learned_axial(scale=0.2)", Geometry((64, 64), 192, 3, 1))
    for term in (scheme.rows, scheme.columns):
        assert term.pow(2).mean().item() == pytest.approx(0.2**2 / 2, rel=0.05)


@pytest.mark.parametrize("inject", ["stem", "every"])
def test_a_start_from_sinusoids_has_their_shape_at_the_amplitude_asked_for(inject):
    scheme = build(f"learned(init='sinusoidal_2d', scale=0.3, temperature=50, inject={inject!r})", GEOMETRY)
    fixed = build("sinusoidal_2d(scale=0.3, temperature=50)", GEOMETRY).table
    assert scheme.table.requires_grad
    assert torch.equal(scheme.table, fixed.expand(3 if inject == "every" else 1, -1, -1))
    with torch.no_grad():
        scheme.table.zero_()
    scheme.reset_parameters()
    assert torch.equal(scheme.table[:1], fixed)


@pytest.mark.parametrize("text", ["learned", "learned_axial"])
def test_the_table_learns_through_a_resize(text):
    scheme = build(text, GEOMETRY)
    scheme.tokens(torch.zeros(1, 64, 24), (8, 8), 0).pow(2).sum().backward()
    assert all((parameter.grad != 0).all() for parameter in scheme.parameters())


@pytest.mark.parametrize(
    ("text", "width", "message"),
    [
        ("learned(temperature=100)", 24, "temperature=100 does nothing with init='normal'; .*init='sinusoidal_2d'"),
        ("learned(init='sinusoidal')", 24, r"unknown init of .*'sinusoidal'; did you mean 'sinusoidal_2d'\?"),
        ("learned(init='sinusoidal_2d')", 18, "embed_dim 18 is not divisible by 4; nearest allowed: 16 or 20"),
    ],
)
def test_what_does_not_go_together_is_named(text, width, message):
    with pytest.raises(VitposError, match=message):
        build(text, Geometry((4, 6), width, 2, 3))
