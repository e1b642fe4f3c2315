import math
from unittest import mock

import pytest
import torch

from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

GEOMETRY = Geometry((4, 6), 48, 4, 2)
NAMES = ["rope_1d", "rope_axial", "rope_mixed", "rope_golden", "rope_dinov3", "liere", "liere(block_size=4)", "comrope"]
every = pytest.mark.parametrize("text", NAMES)


def queries(geometry=GEOMETRY, grid=(4, 6), seed=0, dtype=torch.float64):
    shape = (2, geometry.num_heads, grid[0] * grid[1], geometry.head_dim)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@every
def test_lengths_stay_and_equal_positions_see_each_other_unturned(text):
    scheme, q, k = build(text, GEOMETRY).double(), queries(), queries(seed=1)
    for layer in range(2):
        new_q, new_k = scheme.rotate(q, k, (4, 6), layer)
        torch.testing.assert_close(new_q.norm(dim=-1), q.norm(dim=-1), rtol=0, atol=2e-6)  # tables in float32
        torch.testing.assert_close((new_q * new_k).sum(-1), (q * k).sum(-1), rtol=0, atol=5e-6)
        assert (new_q - q).abs().max() > 0.1


LAYOUTS = {
    "channels strided": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
    "heads inside": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "odd offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "odd rows": lambda x: torch.cat([x, x[..., :1]], dim=-1)[..., :-1],
    "every other channel": lambda x: torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2],
}


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_in_memory_changes_rounding_only(text, dtype, layout):
    scheme, q, k = build(text, GEOMETRY), queries(dtype=dtype), queries(seed=1, dtype=dtype)
    found = scheme.rotate(LAYOUTS[layout](q), LAYOUTS[layout](k), (4, 6), 1)
    eps = torch.finfo(dtype).eps  # of channels of up to 4.5, which may round to the other side
    torch.testing.assert_close(found, scheme.rotate(q, k, (4, 6), 1), rtol=0, atol=4 * eps)


@every
def test_a_batch_of_no_images_stays_one(text):
    q = queries()[:0].float()
    assert [x.shape for x in build(text, GEOMETRY).rotate(q, q, (4, 6), 0)] == [q.shape, q.shape]


@pytest.mark.parametrize(
    "text", ["rope_axial", "rope_mixed", "rope_golden", "rope_dinov3", "liere", "comrope(commuting='ap')"]
)
def test_rows_and_columns_are_told_apart(text):
    scheme = build(text, Geometry((5, 5), 48, 4, 2)).double()
    q = queries(grid=(1, 1)).expand(-1, -1, 25, -1)
    turned = scheme.rotate(q, q, (5, 5), 0)[0].unflatten(2, (5, 5))
    assert (turned - turned.transpose(2, 3)).abs().max() > 0.1


def test_the_raster_order_of_one_dimension():
    scheme = build("rope_1d", GEOMETRY).double()
    q = queries(grid=(1, 1)).expand(-1, -1, 24, -1)
    wide, tall = (scheme.rotate(q, q, grid, 0)[0] for grid in ((4, 6), (6, 4)))
    torch.testing.assert_close(wide, tall, rtol=0, atol=1e-6)  # the one is a table in float32


@pytest.mark.parametrize("text", ["rope_1d", "rope_axial", "rope_mixed", "rope_golden", "rope_dinov3"])
@pytest.mark.parametrize(("width", "heads"), [(48, 4), (96, 2), (192, 3), (32, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compilers_see_real_numbers_that_give_the_same(text, width, heads, dtype):
    geometry = Geometry((4, 6), width, heads, 2)
    scheme, q = build(text, geometry), queries(geometry, dtype=dtype)
    eager = scheme.rotate(q, q, (4, 6), 1)[0]
    with mock.patch("torch.compiler.is_compiling", return_value=True):
        traced = scheme.rotate(q, q, (4, 6), 1)[0]
    eps = torch.finfo(dtype).eps  # of channels of up to 4.5, which may round to the other side
    torch.testing.assert_close(eager, traced, rtol=0, atol=4 * eps)


def test_half_of_the_pairs_hardly_turns_at_temperature_10000():
    for temperature, slow in ((100, 0), (10000, 4)):
        angles = build(f"rope_axial(temperature={temperature})", Geometry((8, 8), 64, 2, 1)).angles((8, 8))
        assert (angles.max(dim=0).values < 0.1).sum() == 2 * slow


@pytest.mark.parametrize("name", ["rope_axial", "rope_mixed", "rope_golden"])
def test_a_reference_grid_is_the_square_that_every_grid_samples(name):
    torch.manual_seed(0)
    plain = build(name, Geometry((6, 6), 48, 4, 2)).double()
    scheme = build(f"{name}(ref_grid=(6, 3))", GEOMETRY).double()
    scheme.load_state_dict(plain.state_dict())
    q = queries(grid=(1, 1)).expand(-1, -1, 36, -1)
    expected = plain.rotate(q, q, (6, 6), 1)[0].unflatten(2, (6, 6))
    found = scheme.rotate(q, q, (6, 6), 1)[0].unflatten(2, (6, 6))
    torch.testing.assert_close(found[:, :, :, ::2], expected[:, :, :, :3], rtol=0, atol=1e-5)
    twice = scheme.rotate(q[:, :, :12], q[:, :, :12], (12, 1), 1)[0]  # half a row apart
    torch.testing.assert_close(twice[:, :, ::2], found[:, :, :, 0], rtol=0, atol=1e-5)
    square, sides = (build(f"{name}(ref_grid={grid})", GEOMETRY) for grid in ("3", "(3, 3)"))
    sides.load_state_dict(square.state_dict())
    assert torch.equal(square.rotate(q, q, (6, 6), 1)[0], sides.rotate(q, q, (6, 6), 1)[0])


def test_golden_directions_spread_evenly():
    directions = torch.tensor(build("rope_golden", Geometry((4, 6), 512, 8, 1)).directions).remainder(math.pi)
    share = directions.histc(8, 0, math.pi) / len(directions)
    assert (share - 1 / 8).abs().max() < 0.02


def test_dinov3_sees_the_same_square_on_every_grid():
    scheme = build("rope_dinov3", GEOMETRY)
    coarse, fine = scheme.angles((2, 2)).unflatten(0, (2, 2)), scheme.angles((6, 6)).unflatten(0, (6, 6))
    torch.testing.assert_close(fine[1::3, 1::3], coarse, rtol=0, atol=1e-6)
    torch.testing.assert_close(coarse.flip(0, 1), -coarse, rtol=0, atol=0)


@pytest.mark.parametrize("text", ["rope_mixed(init='zero')", "liere(init='zero')"])
def test_a_start_of_zero_turns_nothing_and_learns(text):
    scheme, q, k = build(text, GEOMETRY), queries(dtype=torch.float32), queries(seed=1, dtype=torch.float32)
    new_q, new_k = scheme.rotate(q, k, (4, 6), 0)
    assert torch.equal(new_q, q)
    assert torch.equal(new_k, k)
    (new_q @ new_k.transpose(-2, -1)).softmax(-1).pow(2).sum().backward()
    (parameter,) = scheme.parameters()
    assert (parameter.grad[:, 0] != 0).all()


def test_liere_depends_on_the_offset_alone_where_generators_commute():
    scheme = build("liere", Geometry((4, 6), 8, 1, 1)).double()
    q, k = (queries(scheme.geometry, (1, 1), seed).expand(-1, -1, 24, -1) for seed in (0, 1))

    def spread():
        new_q, new_k = scheme.rotate(q, k, (4, 6), 0)
        logits = (new_q @ new_k.transpose(-2, -1)).unflatten(-1, (4, 6)).unflatten(-3, (4, 6))
        return (logits[:, :, 0, 0, 1, 2] - logits[:, :, 2, 3, 3, 5]).abs().max().item()

    assert spread() > 1e-3
    with torch.no_grad():
        scheme.generators[1] = 0.3 * scheme.generators[0]
    assert spread() < 1e-12


@pytest.mark.parametrize(
    ("text", "width", "message"),
    [
        ("rope_1d", 9, "'rope_1d': head_dim 9 is not divisible by 2; nearest allowed: 8 or 10"),
        ("rope_axial", 10, "'rope_axial': head_dim 10 is not divisible by 4; nearest allowed: 8 or 12"),
        ("rope_mixed", 10, "'rope_mixed': head_dim 10 is not divisible by 4"),
        ("rope_dinov3", 10, "'rope_dinov3': head_dim 10 is not divisible by 4"),
        ("liere(block_size=8)", 12, "'liere': head_dim 12 is not divisible by 8; nearest allowed: 8 or 16"),
        ("liere(block_size=1)", 12, "'liere': block_size=1 must be a whole number of at least 2"),
        ("comrope(commuting='ap', block_size=4)", 12, "'comrope': head_dim 12 is not divisible by 8"),
        ("comrope(commuting='pa')", 12, "commuting of position scheme 'comrope': 'pa'; did you mean 'ap'"),
        ("liere(shared=1)", 12, "'liere': shared=1 must be True or False"),
        ("liere", 1, "'liere': head_dim 1 is not divisible by 2; nearest allowed: 2"),
        ("rope_golden", 9, "'rope_golden': head_dim 9 is not divisible by 2"),
        ("rope_axial(ref_grid=0)", 12, "'rope_axial': ref_grid=0 must be a whole number of at least 1"),
        ("rope_mixed(ref_grid=(3, 4, 5))", 12, r"ref_grid=\(3, 4, 5\) must be one whole number, or two"),
        ("rope_golden(ref_grid=(3, 4.0))", 12, "'rope_golden': ref_grid=4.0 must be a whole number of at least 1"),
        ("rope_dinov3(jitter_coords=0.5)", 12, "'rope_dinov3': jitter_coords=0.5 must be at least 1"),
        ("rope_dinov3(shift_coords=-1)", 12, "'rope_dinov3': shift_coords=-1 must be a finite number of at least 0"),
        (
            "rope_dinov3(normalize_coords='mix')",
            12,
            "normalize_coords of position scheme 'rope_dinov3': 'mix'; did you",
        ),
        ("rope_mixed(init='zeros')", 12, "init of position scheme 'rope_mixed': 'zeros'; did you mean 'zero'"),
    ],
)
def test_what_does_not_divide_is_named_with_the_nearest(text, width, message):
    with pytest.raises(VitposError, match=message):
        build(text, Geometry((4, 6), width, 1, 1))
