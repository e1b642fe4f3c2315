import math

import pytest
import torch
from references.absolute import GRIDS, table
from vit_pytorch.simple_vit import posemb_sincos_2d

from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

NAMES = ["sinusoidal_1d", "sinusoidal_2d", "sinusoidal_2d_shuffled"]
names = pytest.mark.parametrize("name", NAMES)


def frequencies(bands, temperature):
    return [temperature ** (-i / bands) for i in range(bands)]


def test_the_wavelengths_are_not_those_that_simple_vit_has_at_the_same_temperature():
    ours, theirs = table("sinusoidal_2d", (4, 6)), posemb_sincos_2d(4, 6, 48)  # denominators n and n - 1
    assert (ours @ ours.T - theirs @ theirs.T).abs().max() > 0.1


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


@names
@pytest.mark.parametrize("grid", GRIDS)
def test_scale_is_the_rms_and_none_is_that_of_the_formula(name, grid):
    plain = table(name, grid)
    assert plain.pow(2).mean().sqrt().item() == pytest.approx(math.sqrt(0.5), rel=1e-5)
    scaled = table(f"{name}(scale=0.02)", grid)
    assert scaled.pow(2).mean().sqrt().item() == pytest.approx(0.02, rel=1e-5)
    torch.testing.assert_close(scaled / plain[0, -1] * plain[0, -1], plain * 0.02 * math.sqrt(2), rtol=0, atol=1e-7)


@names
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


@names
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


@names
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


@names
def test_the_same_for_all_blocks_has_one_name(name):
    with pytest.raises(VitposError, match=rf"unknown inject of .*{name!r}: 'shared' \(known: every, stem\)"):
        build(f"{name}(inject='shared')", Geometry((4, 6), 48, 2, 2))


def order(patches, seed):
    return build(f"sinusoidal_2d_shuffled(seed={seed})", Geometry((4, 6), 48, 2, 2)).order(patches).tolist()


@pytest.mark.parametrize("patches", [1, 2, 24, 64, 4096])
def test_the_shuffle_is_a_permutation_that_the_seed_selects(patches):
    orders = [order(patches, seed) for seed in (0, 1, 2**40)]
    assert all(sorted(one) == list(range(patches)) for one in orders)
    if patches > 2:
        assert orders[0] != orders[1] != orders[2] != orders[0]
        assert list(range(patches)) not in orders


def test_the_shuffle_never_changes():
    # A study's control would be another one.
    assert order(8, 0) == [0, 6, 1, 5, 2, 3, 4, 7]
    assert order(8, 3) == [4, 6, 3, 5, 1, 7, 0, 2]


def test_shuffled_neighbours_are_no_more_alike_than_any_two():
    def excess(name):
        vectors = table(name, (14, 14))
        alike = (vectors @ vectors.T).reshape(14, 14, 14, 14)
        neighbours = alike.diagonal(1, 1, 3).diagonal(0, 0, 1)  # each with the one to its right
        others = alike.flatten(2).flatten(0, 1)[~torch.eye(196, dtype=torch.bool)]
        return ((neighbours.mean() - others.mean()) / others.std()).item()

    assert excess("sinusoidal_2d") > 1
    assert abs(excess("sinusoidal_2d_shuffled")) < 4 / math.sqrt(14 * 13)  # four deviations of a mean of that many
