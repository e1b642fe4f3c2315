import math

import pytest
import torch
from self_attention_cv.pos_embeddings.pos_encoding_sin import PositionalEncodingSin
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch._subclasses.fake_tensor import FakeTensorMode
from vit_pytorch.cct import sinusoidal_embedding
from vit_pytorch.simple_vit import posemb_sincos_2d

from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

GRIDS = [(8, 8), (4, 6), (6, 4), (1, 5), (14, 14)]


def table(text, grid, width=48, training_grid=None, dtype=torch.float32):
    """What a scheme adds to tokens of zero."""
    scheme = build(text, Geometry(training_grid or grid, width, 2, 2))
    return scheme.tokens(torch.zeros(1, grid[0] * grid[1], width, dtype=dtype), grid, 0)[0]


def frequencies(bands, temperature):
    return [temperature ** (-i / bands) for i in range(bands)]


@pytest.mark.parametrize("grid", GRIDS)
def test_1d_equals_vit_pytorch_and_self_attention_cv(grid):
    tokens = grid[0] * grid[1]
    ours = table("sinusoidal_1d", grid)
    # They compute angles of up to 195 in float32, whose spacing there is 1.5e-5.
    torch.testing.assert_close(ours, sinusoidal_embedding(tokens, 48)[0], rtol=0, atol=1.6e-5)
    theirs = PositionalEncodingSin(48, dropout=0)(torch.zeros(1, tokens, 48))[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)  # their frequencies are float32 as well


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("temperature", [10000.0, 100.0])
def test_2d_equals_timm(grid, temperature):
    ours = table(f"sinusoidal_2d(temperature={temperature})", grid)
    theirs = build_sincos2d_pos_embed(list(grid), 48, temperature=temperature)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-6)  # angles of up to 13 in float32


@pytest.mark.parametrize("grid", GRIDS)
def test_2d_has_the_similarities_of_simple_vit_at_the_temperature_that_gives_its_wavelengths(grid):
    # simple_vit: T'^(-i/(n-1)), n = width/4; ours: T^(-i/n). Equal for T' = T^((n-1)/n). Its channels are in another
    # order, so similarities (Gram matrices) are compared.
    bands = 12
    ours = table("sinusoidal_2d", grid)
    theirs = posemb_sincos_2d(*grid, 48, temperature=10000 ** ((bands - 1) / bands))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, rtol=0, atol=3e-5)
    as_published = posemb_sincos_2d(*grid, 48)
    assert (ours @ ours.T - as_published @ as_published.T).abs().max() > 0.1


def test_values_by_hand():
    # Width 4: frequencies 1 and 1/sqrt(T) = 1/10 in 1-D; the one frequency 1 in 2-D. Grid 1 x 3, patch 2.
    one = table("sinusoidal_1d(temperature=100)", (1, 3), width=4)[2]
    assert one.tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(0.2), math.cos(0.2)], abs=1e-7)
    two = table("sinusoidal_2d", (2, 3), width=4)[5]  # row 1, column 2
    assert two.tolist() == pytest.approx([math.sin(1), math.sin(2), math.cos(1), math.cos(2)], abs=1e-7)


@pytest.mark.parametrize("temperature", [10000, 100])
def test_1d_shifted_by_a_fixed_offset_is_a_linear_map_of_itself(temperature):
    """Vaswani et al. 2017, 3.5: for any fixed offset k, PE(pos + k) is a linear function of PE(pos)."""
    pe = table(f"sinusoidal_1d(temperature={temperature})", (8, 8)).double()
    for k in range(1, 64):
        shift = torch.zeros(48, 48, dtype=torch.float64)
        for i, w in enumerate(frequencies(24, temperature)):
            c, s = math.cos(k * w), math.sin(k * w)
            shift[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, s], [-s, c]])
        torch.testing.assert_close(pe[:-k] @ shift.T, pe[k:], rtol=0, atol=3e-7)


@pytest.mark.parametrize("temperature", [10000, 100])
def test_2d_shifted_by_a_fixed_offset_is_a_linear_map_of_itself(temperature):
    pe = table(f"sinusoidal_2d(temperature={temperature})", (5, 7)).double().reshape(5, 7, 48)
    for rows, columns in [(0, 1), (1, 0), (2, 3), (4, 6), (3, 1)]:
        shift = torch.zeros(48, 48, dtype=torch.float64)
        for offset, first in ((rows, 0), (columns, 12)):  # sines of rows from 0, of columns from 12; cosines 24 later
            for i, w in enumerate(frequencies(12, temperature)):
                c, s = math.cos(offset * w), math.sin(offset * w)
                sine, cosine = first + i, first + i + 24
                shift[sine, sine], shift[sine, cosine], shift[cosine, sine], shift[cosine, cosine] = c, s, -s, c
        torch.testing.assert_close(
            pe[: 5 - rows, : 7 - columns] @ shift.T, pe[rows:, columns:].contiguous(), rtol=0, atol=3e-7
        )


@pytest.mark.parametrize("name", ["sinusoidal_1d", "sinusoidal_2d"])
@pytest.mark.parametrize("grid", GRIDS)
def test_scale_is_the_rms_and_none_is_that_of_the_formula(name, grid):
    plain = table(name, grid)
    assert plain.pow(2).mean().sqrt().item() == pytest.approx(math.sqrt(0.5), rel=1e-5)
    scaled = table(f"{name}(scale=0.02)", grid)
    assert scaled.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)
    torch.testing.assert_close(scaled / plain[0, -1] * plain[0, -1], plain * 0.02 * math.sqrt(2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["sinusoidal_1d", "sinusoidal_2d"])
def test_another_grid_is_computed_and_equals_a_scheme_made_for_it(name):
    for grid in GRIDS:
        away = table(f"{name}(scale=0.3)", grid, training_grid=(7, 3))
        torch.testing.assert_close(away, table(f"{name}(scale=0.3)", grid), rtol=0, atol=0)


def test_two_grids_of_equal_size_are_not_confused():
    scheme = build("sinusoidal_2d", Geometry((4, 6), 48, 2, 2))
    x = torch.zeros(1, 24, 48)
    wide, tall = scheme.tokens(x, (4, 6), 0), scheme.tokens(x, (6, 4), 0)
    assert torch.equal(scheme.tokens(x, (4, 6), 0), wide)
    assert not torch.equal(wide, tall)
    torch.testing.assert_close(  # rows and columns change places
        wide[0].reshape(4, 6, 2, 2, 12).transpose(0, 1).flip(3).reshape(24, 48), tall[0], rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("name", ["sinusoidal_1d", "sinusoidal_2d"])
def test_angles_are_exact_whatever_the_precision_of_the_tokens(name):
    geometry = Geometry((64, 64), 48, 2, 2)
    scheme = build(name, geometry)
    exact = scheme.formula((64, 64))
    assert exact.dtype == torch.float64
    assert (scheme.table.double() - exact).abs().max() < 1e-7  # angles in float32 would be off by 1e-4
    low = scheme.bfloat16().tokens(torch.zeros(1, 4096, 48, dtype=torch.bfloat16), (64, 64), 0)
    assert low.dtype == torch.bfloat16
    assert (low.double() - exact).abs().max() <= 2**-8  # half a step of bfloat16 below 1, and the float32 before it
    # On another grid too, though the module is in bfloat16 now.
    away = scheme.tokens(torch.zeros(1, 64 * 32, 48, dtype=torch.bfloat16), (32, 64), 0)
    assert torch.equal(away, scheme.formula((32, 64)).bfloat16())


@pytest.mark.parametrize("name", ["sinusoidal_1d", "sinusoidal_2d"])
def test_the_table_is_fixed_and_in_no_state_dict(name):
    scheme = build(name, Geometry((4, 6), 48, 2, 2))
    assert list(scheme.parameters()) == []
    assert scheme.state_dict() == {}
    before = scheme.table.clone()
    scheme.table.zero_()
    scheme.reset_parameters()
    assert torch.equal(scheme.table, before)


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("sinusoidal_1d", 9, "'sinusoidal_1d': embed_dim 9 is not divisible by 2; nearest allowed: 8 or 10"),
        ("sinusoidal_2d", 50, "'sinusoidal_2d': embed_dim 50 is not divisible by 4; nearest allowed: 48 or 52"),
        ("sinusoidal_2d", 3, "'sinusoidal_2d': embed_dim 3 is not divisible by 4; nearest allowed: 4$"),
    ],
)
def test_a_width_that_does_not_divide_is_named_with_the_nearest(name, width, message):
    with pytest.raises(VitposError, match=message):
        build(name, Geometry((4, 6), width, 1, 2))


@pytest.mark.parametrize("name", ["sinusoidal_1d", "sinusoidal_2d"])
def test_works_on_a_fake_cuda_device(name):
    with FakeTensorMode():
        scheme = build(f"{name}(scale=0.1)", Geometry((4, 6), 48, 2, 2)).to("cuda")
        for grid in ((4, 6), (3, 5)):
            x = torch.zeros(2, grid[0] * grid[1], 48, device="cuda")
            assert scheme.tokens(x, grid, 0).device.type == "cuda"
