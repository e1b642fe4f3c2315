import math

import pytest
import torch

import vitpos
from vitpos.checks.common import REGISTERS, images, vit
from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

GEOMETRY = Geometry((4, 6), 24, 2, 3)


def buckets(text, offsets, geometry=GEOMETRY, axis=0):
    """The numbers of offsets, counted from that of no offset."""
    scheme = build(text, geometry)
    return (scheme.numbers(torch.tensor(offsets), axis) - scheme.numbers(torch.tensor(0), axis)).tolist()


def test_far_offsets_are_clipped_to_the_training_grid_or_as_asked():
    offsets = [-9, -6, -5, -4, -3, -1, 0, 2, 4, 7]
    assert buckets("shaw_2d", offsets) == [-3, -3, -3, -3, -3, -1, 0, 2, 3, 3]
    assert buckets("shaw_2d", offsets, axis=1) == [-5, -5, -5, -4, -3, -1, 0, 2, 4, 5]
    assert buckets("shaw_2d(clip=2)", offsets, axis=1) == [-2, -2, -2, -2, -2, -1, 0, 2, 2, 2]


def test_buckets_of_irpe_are_those_of_the_paper():
    # By hand with alpha 1.9, beta 3.8, gamma 15.2: 1.9 + 1.9 * ln(x / 1.9) / ln 8 passes 2.5 at 1.9 * 8^(0.6 / 1.9) =
    # 3.66, and 3.5 at 1.9 * 8^(1.6 / 1.9) = 10.9; the farthest is the whole part of beta.
    near = {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 10: 3, 11: 3, 500: 3}
    assert buckets("irpe", list(near)) == [-number for number in near.values()]  # offsets are query minus key
    assert buckets("irpe", [-x for x in near]) == list(near.values())
    # alpha 20, beta 40: up to 20 one each; 40 at gamma = 160 and farther
    assert buckets("irpe(method='cross')", [-20, -21, -159, -160, -500]) == [20, 20, 40, 40, 40]


@pytest.mark.parametrize(
    ("text", "vectors"),
    [
        ("shaw_2d", 7 + 11),
        ("shaw_2d(clip=2)", 5 + 5),
        ("irpe", 7 * 7),
        ("irpe(beta=2)", 5 * 5),
        ("irpe(method='cross')", 81 + 81),
    ],
)
def test_the_vectors_of_layers_heads_and_parts(text, vectors):
    (table,) = build(text, GEOMETRY).parameters()
    assert table.shape == (3, vectors, 1, 12)
    several = build(f"{text.rstrip(')')}{', ' if '(' in text else '('}per_head=True, on='kv')", GEOMETRY)
    assert [table.shape for table in several.parameters()] == [(3, vectors, 2, 12)] * 2


@pytest.mark.parametrize(("text", "std"), [("shaw_2d", 0.25), ("shaw_2d(std=0.02)", 0.02), ("irpe(std=0.5)", 0.5)])
def test_std_is_the_deviation_at_the_start(text, std):
    torch.manual_seed(0)
    (table,) = build(text, Geometry((8, 8), 16 * 16, 16, 12)).parameters()
    assert table.std().item() == pytest.approx(std, rel=0.05)
    assert table.mean().item() == pytest.approx(0, abs=0.05 * std)


@pytest.mark.parametrize("text", ["shaw_2d(std=0, on='kv')", "irpe(on='qkv')", "irpe(method='cross', per_head=True)"])
def test_a_start_at_zero_leaves_a_model_as_it_was(text):
    plain = vit()
    before = plain(images())
    after = vitpos.attach(plain, text)(images())
    # Fused attention and the one with a bias, or product by product, round differently.
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("text", ["shaw_2d", "irpe(std=1)"])
def test_the_bias_depends_on_the_queries_alone_and_doubles_with_them(text):
    scheme = build(text, GEOMETRY)
    q, k = torch.randn(2, 2, 2, 24, 12)
    bias = scheme.bias(q, k, (4, 6), 1)
    assert torch.equal(scheme.bias(q, 3 * k, (4, 6), 1), bias)
    assert torch.equal(scheme.bias(2 * q, k, (4, 6), 1), 2 * bias)
    assert not torch.equal(scheme.bias(q, k, (4, 6), 2), bias)
    assert not scheme.uses_attention


@pytest.mark.parametrize("text", ["shaw_2d(on='v')", "irpe(on='v', std=1)"])
def test_on_values_alone_there_is_no_bias(text):
    scheme = build(text, GEOMETRY)
    q = torch.randn(2, 2, 24, 12)
    assert scheme.uses_attention
    assert scheme.bias(q, q, (4, 6), 0) is None


@pytest.mark.parametrize("text", ["shaw_2d(on='kv')", "irpe(on='qkv', std=1)"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_products_only(text, dtype):
    torch.manual_seed(0)
    scheme = build(text, GEOMETRY)
    exact, low = build(text, GEOMETRY).double(), build(text, GEOMETRY).to(dtype)
    for one in (exact, low):
        one.load_state_dict(scheme.state_dict())
    for grid in ((4, 6), (9, 3)):
        n = math.prod(grid)
        q, k = torch.randn(2, 2, 2, n, 12, dtype=torch.float64)
        attention = torch.randn(2, 2, n, n, dtype=torch.float64).softmax(dim=-1)
        for found, expected in (
            (low.bias(q.to(dtype), k.to(dtype), grid, 0), exact.bias(q, k, grid, 0)),
            (low.values(attention.to(dtype), grid, 0), exact.values(attention, grid, 0)),
        ):
            error = (found.double() - expected).norm() / expected.norm()
            assert found.dtype == dtype
            assert 0 < error < torch.finfo(dtype).eps  # half of one for each of vectors, queries, products, their sum


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shaw_2d(on='q')", r"unknown on of position scheme 'shaw_2d': 'q' \(known: k, kv, v\)"),
        ("irpe(on='vk')", r"unknown on of position scheme 'irpe': 'vk'.*\(known: k, kv, q, qk, qkv, qv, v\)"),
        ("irpe(method='products')", "unknown method of position scheme 'irpe': 'products'; did you mean 'product'"),
        ("irpe(beta=0.5)", "position scheme 'irpe': beta=0.5 must be at least 1"),
        ("irpe(beta=0)", "position scheme 'irpe': beta=0 must be a finite number above 0"),
        ("irpe(std=-1)", "position scheme 'irpe': std=-1 must be a finite number of at least 0"),
        ("shaw_2d(clip=0)", "position scheme 'shaw_2d': clip=0 must be a whole number of at least 1"),
        ("shaw_2d(clip=99)", "'shaw_2d': clip=99 is beyond the largest offset \\d+ of the training grid"),
        ("shaw_2d(per_head='yes')", "position scheme 'shaw_2d': per_head='yes' must be True or False"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(text, message):
    with pytest.raises(VitposError, match=message):
        build(text, GEOMETRY)


@pytest.mark.parametrize("on", ["k", "qkv"])
def test_a_class_bucket_in_a_sum_is_that_of_the_scheme_alone(on):
    geometry = Geometry((4, 6), 48, 4, 2)
    alone = build(f"irpe(on='{on}', std=1, class_bucket=True)", geometry)
    both = build(f"irpe(on='{on}', std=1, class_bucket=True)+relative_bias+shaw_2d(on='kv')", geometry)
    both.parts[0].load_state_dict(alone.state_dict())
    q, k = torch.randn(2, 2, 4, 26, 12)
    attention = torch.randn(2, 4, 26, 26).softmax(-1)
    patches = [part.bias(q[:, :, 2:], k[:, :, 2:], (4, 6), 0) for part in both.parts[1:]]
    expected = alone.bias(q, k, (4, 6), 0)
    expected[:, :, 2:, 2:] += patches[0] + patches[1]
    torch.testing.assert_close(both.bias(q, k, (4, 6), 0), expected)
    values = both.parts[2].values(attention[:, :, 2:, 2:], (4, 6), 0)
    values = torch.nn.functional.pad(values, (0, 0, 2, 0))
    if "v" in on:
        values = values + alone.values(attention, (4, 6), 0)
    torch.testing.assert_close(both.values(attention, (4, 6), 0), values)


def test_a_class_bucket_changes_what_the_class_token_gets():
    host = vit("irpe(on='kv', class_bucket=True)", **REGISTERS)
    before = host(images())
    with torch.no_grad():
        for vectors in host.pos_embed.prefix.values():
            vectors.zero_()
    without = host(images())
    assert (before - without).abs().max() > 1e-4
    plain = vit("irpe(on='kv')", **REGISTERS)
    plain.pos_embed.tables.load_state_dict(host.pos_embed.tables.state_dict())
    torch.testing.assert_close(plain(images()), without, rtol=0, atol=1e-6)
