import math

import pytest
import torch

import vitpos
from vitpos.checks import hooks, model
from vitpos.checks.common import images, vit
from vitpos.errors import VitposError
from vitpos.positions import Geometry, build

R2, R5, R8, R10, R13, R18 = (math.sqrt(n) for n in (2, 5, 8, 10, 13, 18))


def bias(text, grid, heads, layer=0, depth=1, home=None):
    scheme = build(text, Geometry(home or grid, heads, heads, depth))
    q = torch.zeros(1, heads, grid[0] * grid[1], 1)
    return scheme.bias(q, q, grid, layer)


def slopes(text, heads, layer=0, depth=1):
    """What each head loses per patch of distance to a neighbour that it sees."""
    near = bias(text, (3, 3), heads, layer, depth)[:, 4, [0, 1, 2, 3, 5, 6, 7, 8]]
    return (-near / torch.tensor([R2, 1, R2, 1, 1, R2, 1, R2])).amin(dim=1).tolist()


def sights(text, heads, layer, depth=4):
    """For each head, whether it sees each of the eight neighbours."""
    finite = bias(text, (3, 3), heads, layer, depth)[:, 4].isfinite()
    return [tuple(row) for row in finite[:, [0, 1, 2, 3, 5, 6, 7, 8]].tolist()]


def test_alibi_2d_on_4_by_4():
    # Two heads have the slopes 2^-4 and 2^-8; distances are those from a corner, and from row 1, column 2.
    found = bias("alibi_2d", (4, 4), 2)
    corner = [0, 1, 2, 3, 1, R2, R5, R10, 2, R5, R8, R13, 3, R10, R13, R18]
    inner = [R5, R2, 1, R2, 2, 1, 0, 1, R5, R2, 1, R2, R8, R5, 2, R5]
    for patch, distances in ((0, corner), (6, inner)):
        for head, slope in enumerate((1 / 16, 1 / 256)):
            expected = -torch.tensor(distances) * slope
            torch.testing.assert_close(found[head, patch], expected, rtol=0, atol=1e-7)  # float32 up to 0.3
    assert torch.equal(bias("alibi_2d", (4, 4), 2, home=(2, 7)), found)
    assert torch.equal(bias("alibi_2d", (4, 4), 2, layer=2, depth=3), found)


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (3, [4, 8, 2]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_of_alibi_by_number_of_heads(heads, exponents):
    expected = [2**-exponent for exponent in exponents]
    assert slopes("alibi_2d", heads) == pytest.approx(expected, rel=1e-6)  # float32
    assert slopes("alibi_2d(slope=3)", heads) == pytest.approx([3 * slope for slope in expected], rel=1e-6)


@pytest.mark.parametrize(
    ("view", "head", "drawn"),
    [
        (180, 0, "##### ##### ##o## ..... ....."),  # up
        (180, 3, "..### ..### ..o## ..### ..###"),  # right
        (180, 4, "##### .#### ..o## ...## ....#"),  # up right
        (90, 0, "###.. ###.. ##o.. ..... ....."),  # up left
        (90, 4, "##### .###. ..o.. ..... ....."),  # up
        (90, 7, "....# ...## ..o## ...## ....#"),  # right
        (45, 0, "###.. .##.. ..o.. ..... ....."),  # left of up
        (45, 3, "....# ...## ..o## ..... ....."),  # above right
        (45, 7, "..... ..... ..o## ...## ....#"),  # below right
        (45, 8, "##### ##### ##o## ##### #####"),  # undirected
    ],
)
def test_fields_of_view(view, head, drawn):
    found = bias(f"lookhere(view={view})", (5, 5), 12)[head, 12].isfinite()
    assert found.tolist() == [mark != "." for mark in drawn.replace(" ", "")]


def test_lookhere_on_4_by_4():
    # The head that looks up left (view 90, head 0) of 12, in the first of two layers: 2 x 1.5 x 1/2 a patch; from
    # row 1, column 2.
    found = bias("lookhere(view=90)", (4, 4), 12, depth=2)
    far = math.inf
    distances = [R5, R2, 1, far, 2, 1, 0, far, far, far, far, far, far, far, far, far]
    expected = -1.5 * torch.tensor(distances)
    torch.testing.assert_close(found[0, 6], expected, rtol=0, atol=1e-6)  # float32 up to 3.4
    # The last undirected head, 1/256, in the last layer: 2 x 0.5 x 1/256.
    corner = [0, 1, 2, 3, 1, R2, R5, R10, 2, R5, R8, R13, 3, R10, R13, R18]
    last = bias("lookhere(view=90)", (4, 4), 12, layer=1, depth=2, home=(3, 3))[11, 0]
    torch.testing.assert_close(last, -torch.tensor(corner) / 256, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("text", "heads", "expected"),
    [
        ("lookhere(slope=1)", 12, [1 / 2] * 8 + [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        ("lookhere(slope=1, view=45)", 6, [1 / 2] * 4 + [1 / 4, 1 / 16]),
        ("lookhere(slope=1)", 3, [1 / 2] * 2 + [1 / 4]),
        ("lookhere(slope=1)", 2, [1 / 2] * 2),
        ("lookhere(slope=1, undirected=4)", 16, [1 / 2] * 8 + [1 / 4] * 4 + [1 / 4, 1 / 16, 1 / 64, 1 / 256]),
        ("lookhere(slope=1, undirected=8)", 8, [1 / 4] * 2 + [1 / 16] * 2 + [1 / 64] * 2 + [1 / 256] * 2),
        ("lookhere(slope=1, undirected=0)", 4, [1 / 2] * 4),
    ],
)
def test_slopes_of_lookhere_by_number_of_heads(text, heads, expected):
    text = text.replace(")", ", layer_slopes=(1, 1))")
    assert slopes(text, heads) == pytest.approx(expected, rel=1e-6)  # float32


def test_slopes_go_linearly_over_the_layers():
    found = [slopes("lookhere(slope=4, layer_slopes=(1.5, 0.5))", 12, layer, depth=5)[0] for layer in range(5)]
    assert found == pytest.approx([3, 2.5, 2, 1.5, 1], rel=1e-6)  # float32
    assert slopes("lookhere(slope=4, layer_slopes=(1.5, 0.5))", 12)[0] == pytest.approx(3, rel=1e-6)  # of one layer


@pytest.mark.parametrize("view", [180, 90, 45])
def test_directions_are_all_used_in_a_layer_or_over_the_layers(view):
    text = f"lookhere(view={view})"
    eight = sights(text, 12, 0)[:8]
    assert len(set(eight)) == 8
    assert all(sum(sight) == {180: 5, 90: 3, 45: 2}[view] for sight in eight)
    assert sights(text, 12, 1) == sights(text, 12, 0)
    assert [sight for layer in range(4) for sight in sights(text, 3, layer)[:2]] == eight
    assert sights(text, 3, 2)[2] == (True,) * 8


def test_without_a_slope_only_the_fields_of_view_are_left():
    found = bias("lookhere(slope=0)", (3, 4), 12)
    assert set(found.unique().tolist()) == {0.0, -math.inf}
    assert not found.diagonal(dim1=1, dim2=2).any()


@pytest.mark.parametrize("view", [90, 45])
@pytest.mark.parametrize("check", [hooks.shapes, hooks.by_offset, hooks.geometries, model.another_grid, model.autocast])
def test_other_views_pass_the_checks(view, check):
    check(f"lookhere(view={view})")


def test_hidden_patches_get_no_attention_and_prefix_tokens_see_all():
    host = vitpos.attach(vit(class_token=True, global_pool="token"), "lookhere(undirected=0)")
    attention = host.blocks[0].attn
    attention.fused_attn = False
    found = []
    attention.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    host(images())
    weights = found[0][:, 0]  # the head that looks up, on 4 x 6 after the class token
    assert (weights[:, 0] > 0).all()
    assert (weights[:, :, 0] > 0).all()
    assert (weights[:, 1:7, 1:7] > 0).all()
    assert not weights[:, 1:7, 7:].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alibi_2d(slope=0)", "position scheme 'alibi_2d': slope=0 must be a finite number above 0"),
        ("lookhere(view=60)", "position scheme 'lookhere': view=60 must be 180, 90 or 45 degrees"),
        ("lookhere(view=90.0)", "position scheme 'lookhere': view=90.0 must be a whole number"),
        ("lookhere(slope=-1)", "position scheme 'lookhere': slope=-1 must be a finite number of at least 0"),
        (
            "lookhere(layer_slopes=1)",
            "'lookhere': layer_slopes=1 must be two numbers, of the first layer and of the last",
        ),
        ("lookhere(layer_slopes=(1, 2, 3))", r"'lookhere': layer_slopes=\(1, 2, 3\) must be two numbers"),
        ("lookhere(layer_slopes=(1, -1))", "'lookhere': layer_slopes=-1 must be a finite number of at least 0"),
        ("lookhere(undirected=4)", "position scheme 'lookhere': undirected=4 of 3 heads; at most all of them"),
        ("lookhere(undirected=-1)", "position scheme 'lookhere': undirected=-1 must be a whole number of at least 0"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(text, message):
    with pytest.raises(VitposError, match=message):
        build(text, Geometry((4, 6), 24, 3, 2))
