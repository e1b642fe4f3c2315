import math

import pytest
import torch

from vitpos.checks.common import BATCH, GRID, HEADS, REGISTERS, WIDTH, images, vit
from vitpos.errors import VitposError
from vitpos.portraits import probes
from vitpos.positions import Geometry, build

GEOMETRY = Geometry(GRID, WIDTH, HEADS, 2)


def test_heads_look_at_the_places_of_a_kernel_at_the_start():
    scheme = build("gpsa(locality_strength=3)", Geometry((7, 7), 90, 9, 1))
    seen = scheme.weights(torch.full((1, 9, 49, 49), 1 / 49), (7, 7), 0)[0, :, 24]  # from the middle
    places = [divmod(place - 24, 7) if place >= 24 else (-1, place - 17) for place in seen.argmax(-1).tolist()]
    assert [divmod(place, 7) for place in seen.argmax(-1).tolist()] == [
        (3 + y, 3 + x) for x in (-1, 0, 1) for y in (-1, 0, 1)
    ]
    assert len(set(places)) == 9


def test_prefix_tokens_keep_their_share_and_attend_as_before():
    weights = {}
    for text in ("none", "gpsa"):
        host = vit(text, **REGISTERS)
        attention = host.blocks[0].attn
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(lambda module, x, out, text=text: weights.update({text: out.clone()}))
        host(images())
    none, gpsa = weights["none"], weights["gpsa"]
    assert gpsa.shape == (BATCH, HEADS, 28, 28)
    torch.testing.assert_close(gpsa.sum(-1), torch.ones(BATCH, HEADS, 28))
    torch.testing.assert_close(gpsa[:, :, :4], none[:, :, :4], rtol=0, atol=0)
    torch.testing.assert_close(gpsa[:, :, :, :4], none[:, :, :, :4], rtol=0, atol=0)
    assert (gpsa - none)[:, :, 4:, 4:].abs().max() > 0.1


def test_a_closed_gate_leaves_a_model_as_it_was():
    host = vit("gpsa", **REGISTERS)
    host.pos_embed.gate.data.fill_(-math.inf)
    torch.testing.assert_close(host(images()), vit("none", **REGISTERS)(images()), rtol=0, atol=1e-6)


def test_its_portrait_is_that_of_a_weight_by_offset():
    scheme = build("gpsa", GEOMETRY)
    assert probes.kinds(scheme) == {"weights": [0, 1]}
    assert probes.logits(scheme, "weights", 0).sum(-1).allclose(torch.ones(HEADS, 24))


def test_a_value_that_is_not_allowed_is_named():
    with pytest.raises(VitposError, match="'gpsa': locality_strength=-1 must be a finite number of at least 0"):
        build("gpsa(locality_strength=-1)", GEOMETRY)
