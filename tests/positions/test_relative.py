import math

import pytest
import torch

import vitpos
from vitpos.checks.common import images, vit
from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

GEOMETRY = Geometry((4, 6), 24, 2, 3)


def bias(scheme, grid, layer=0):
    q = torch.zeros(1, scheme.geometry.num_heads, grid[0] * grid[1], 1)
    return scheme.bias(q, q, grid, layer)


def drawn(text, geometry=GEOMETRY):
    torch.manual_seed(0)
    scheme = build(text, geometry)
    for parameter in scheme.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return scheme


def test_the_number_of_an_offset_is_that_of_swin():
    # By hand for 2 x 2: offsets query minus key, rows first; (0, 0) is the middle one of 3 x 3.
    index = build("relative_bias", Geometry((2, 2), 4, 1, 1)).index((2, 2))
    assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    # 2 x 3: the step of a row is 5
    assert build("relative_bias", GEOMETRY).index((2, 3))[0].tolist() == [7, 6, 5, 2, 1, 0]


@pytest.mark.parametrize(("text", "tables"), [("relative_bias", 3), ("relative_bias(shared=True)", 1)])
def test_layers_have_a_table_each_or_one_for_all(text, tables):
    scheme = drawn(text)
    assert scheme.table.shape == (tables, 7 * 11, 2)
    assert torch.equal(bias(scheme, (4, 6), 0), bias(scheme, (4, 6), 2)) == (tables == 1)
    assert torch.equal(bias(scheme, (5, 5), 0), bias(scheme, (5, 5), 2)) == (tables == 1)


@pytest.mark.parametrize(("text", "std"), [("relative_bias", 0.02), ("relative_bias(std=0.5, shared=True)", 0.5)])
def test_std_is_the_deviation_at_the_start(text, std):
    torch.manual_seed(0)
    table = build(text, Geometry((14, 14), 12, 12, 2)).table
    assert table.std().item() == pytest.approx(std, rel=0.05)
    assert table.mean().item() == pytest.approx(0, abs=0.05 * std)


@pytest.mark.parametrize("text", ["relative_bias(std=0)", "relative_bias(std=0, shared=True)"])
def test_a_start_at_zero_leaves_a_model_as_it_was(text):
    plain = vit()
    before = plain(images())
    after = vitpos.attach(plain, text)(images())
    # Fused attention with and without a bias rounds differently.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(8, 12), (3, 6), (4, 9), (1, 1), (20, 20)])
def test_a_resized_table_keeps_its_middle_and_its_mean(grid):
    scheme = drawn("relative_bias")
    table = scheme.table[0]
    numbers = scheme.numbers(grid, 0, torch.device("cpu"))
    assert numbers.shape == ((2 * grid[0] - 1) * (2 * grid[1] - 1), 2)
    assert torch.equal(numbers[len(numbers) // 2], table[len(table) // 2])
    torch.nn.init.constant_(scheme.table, 2.0)
    # The weights of an offset sum to 1: float32, of 4 numbers
    torch.testing.assert_close(bias(scheme, grid), torch.full((2, *[math.prod(grid)] * 2), 2.0), rtol=0, atol=1e-6)


def test_on_a_larger_grid_near_offsets_stay_and_the_farthest_moves_to_the_edge():
    scheme = build("relative_bias", Geometry((4, 4), 4, 1, 1))
    with torch.no_grad():
        scheme.table.copy_(torch.arange(-3.0, 4)[:, None].expand(7, 7).reshape(1, 49, 1))  # the row's offset
    row = scheme.numbers((6, 4), 0, torch.device("cpu")).view(11, 7)[:, 3]
    # By hand: r is at most 1.5, where 0, 1, 2, 3 come to 0, 1, 2.5, 4.75; in between linear, and 3 holds beyond.
    expected = [0, 1, 1 + 1 / 1.5, 2 + (3 - 2.5) / 2.25, 2 + (4 - 2.5) / 2.25, 3]
    # r is found but for 1e-6, so the places, 1 + r + r^2 at most, but for 4e-6
    torch.testing.assert_close(row[5:], torch.tensor(expected), rtol=0, atol=1e-5)
    assert torch.equal(row[:5], -row.flip(0)[:5])


@pytest.mark.parametrize("text", ["relative_bias", "log_cpb(hidden_dim=8)"])
@pytest.mark.parametrize("grid", [(4, 6), (7, 3)])
def test_autocast_does_not_touch_the_numbers(text, grid):
    scheme = drawn(text)
    exact = bias(scheme, grid, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = bias(scheme, grid, 1)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact)


@pytest.mark.parametrize("text", ["relative_bias", "log_cpb(hidden_dim=8)"])
def test_numbers_of_half_precision_parameters_are_computed_in_float32(text):
    scheme = drawn(text).bfloat16()
    found = bias(scheme, (7, 3), 1)
    assert torch.equal(found, bias(scheme.float(), (7, 3), 1))
    assert found.dtype == torch.float32


@pytest.mark.parametrize("text", ["relative_bias", "log_cpb(hidden_dim=8)"])
def test_the_bias_is_contiguous_and_the_same_for_all_contents(text):
    scheme = drawn(text)
    q, k = torch.randn(2, 5, 2, 24, 12)
    found = scheme.bias(q, k, (4, 6), 1)
    assert found.shape == (2, 24, 24)
    assert found.is_contiguous()
    assert torch.equal(found, scheme.bias(2 * q, -k, (4, 6), 1))


@pytest.mark.parametrize(
    ("text", "sides"), [("log_cpb(hidden_dim=1)", (4, 6)), ("log_cpb(hidden_dim=1, window=8)", (8, 8))]
)
@pytest.mark.parametrize("grid", [(4, 6), (9, 2)])
def test_coordinates_are_logarithms_over_the_window(text, sides, grid):
    scheme = build(text, GEOMETRY)
    rows, columns = grid
    for axis, far in enumerate((rows - 1, columns - 1)):
        with torch.no_grad():  # the bias is 8 tanh(c / 2), for c above 0
            scheme.weight1.zero_()[:, :, axis] = 1
            scheme.weight2.fill_(1.0)
        numbers = scheme.numbers(grid, 2, torch.device("cpu")).view(2 * rows - 1, 2 * columns - 1, 2)
        line = numbers[:, columns - 1, 1] if axis == 0 else numbers[rows - 1, :, 1]
        coordinates = [math.log2(1 + 8 * d / (sides[axis] - 1)) / 3 for d in range(far + 1)]
        expected = [0.0] * far + [8 * math.tanh(c / 2) for c in coordinates]
        torch.testing.assert_close(line, torch.tensor(expected), rtol=0, atol=2e-6)  # float32 numbers up to 4


def test_log_cpb_starts_near_zero_with_swins_weights():
    torch.manual_seed(0)
    scheme = build("log_cpb", Geometry((8, 8), 64, 16, 12))
    assert [tuple(p.shape) for p in scheme.parameters()] == [(12, 512, 2), (12, 512), (12, 16, 512)]
    for weight in (scheme.weight1, scheme.weight2):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not scheme.bias1.any()
    found = bias(scheme, (8, 8))
    assert 0 < found.abs().max() < 0.2
    assert not found.diagonal(dim1=1, dim2=2).any()  # that of no offset, here as ReLU(0) = 0


def test_a_side_of_one_is_served():
    scheme = drawn("log_cpb(hidden_dim=4)", Geometry((1, 5), 24, 2, 1))
    assert bias(scheme, (3, 5)).isfinite().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("relative_bias(std=-1)", "position scheme 'relative_bias': std=-1 must be a finite number of at least 0"),
        ("relative_bias(shared=1)", "position scheme 'relative_bias': shared=1 must be True or False"),
        ("log_cpb(hidden_dim=0)", "position scheme 'log_cpb': hidden_dim=0 must be a whole number of at least 1"),
        ("log_cpb(window=1)", "position scheme 'log_cpb': window=1 must be a whole number of at least 2"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(text, message):
    with pytest.raises(VitposError, match=message):
        build(text, GEOMETRY)
