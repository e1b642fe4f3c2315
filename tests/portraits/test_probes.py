"""What is read off a scheme: what it does, its table, similarities, logits by offset."""

import math

import pytest
import torch

from vitpos.portraits import probes
from vitpos.positions import Geometry, PositionEmbedding, build

GEOMETRY = Geometry(grid=(2, 3), embed_dim=8, num_heads=2, depth=1)


def test_table_is_what_is_added():
    scheme = build("learned+sinusoidal_2d", GEOMETRY)
    added = scheme.tokens(torch.zeros(1, 6, 8), (2, 3), 0)[0]
    assert torch.equal(probes.table(scheme, (2, 3)), added.detach())
    assert probes.table(build("none", GEOMETRY), (2, 3)) is None


@pytest.mark.parametrize("position", ["learned", "sinusoidal_2d"])
def test_table_is_read_where_the_scheme_lies(position, monkeypatch):
    scheme = build(position, GEOMETRY).to("meta")
    seen = []
    monkeypatch.setattr(scheme, "tokens", lambda x, grid, layer: seen.append(x.device.type) or torch.ones(1, 6, 8))
    probes.table(scheme, (2, 3))
    assert seen == ["meta"]


def test_similarity_is_the_cosine():
    vectors = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    expected = [[1, 1, 0, -1], [1, 1, 0, -1], [0, 0, 1, 0], [-1, -1, 0, 1]]
    assert probes.similarity(vectors).tolist() == expected


def test_mosaic_puts_the_map_of_a_position_at_its_place():
    matrix = torch.rand(6, 6) * 2 - 1
    picture = probes.mosaic(matrix, (2, 3))
    assert picture.shape == (2 * 3 - 1, 3 * 4 - 1)
    position = 1 * 3 + 2  # row 1, column 2
    assert torch.allclose(picture[3:5, 8:11], (matrix[position].reshape(2, 3) + 1) / 2)
    assert picture[2].eq(1).all()


def test_table_of_a_later_block():
    scheme = build("learned(inject='every')", Geometry((2, 3), 8, 2, depth=3))
    assert torch.equal(probes.table(scheme, (2, 3), 2), scheme.table[2])
    assert probes.table(build("learned", GEOMETRY), (2, 3), 1) is None


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("none", {}),
        ("learned", {"absolute": [0]}),
        ("fourier(inject='shared')", {"absolute": [0, 1, 2]}),
        ("cpe(layers=2, std=0)", {"conditional": [1, 2]}),
        ("rope_mixed(init='zero')", {"rotary": [0, 1, 2]}),
        ("relative_bias(std=0)", {"relative": [0, 1, 2]}),
        ("irpe", {"contextual": [0, 1, 2]}),
        ("irpe(on='v')", {"values": [0, 1, 2]}),
        ("shaw_2d(on='kv')+learned", {"absolute": [0], "contextual": [0, 1, 2], "values": [0, 1, 2]}),
    ],
)
def test_kinds_are_what_a_scheme_does_also_where_it_starts_as_the_identity(text, kinds):
    scheme = build(text, Geometry((2, 3), 8, 2, depth=3))
    before = [parameter.clone() for parameter in scheme.parameters()]
    assert probes.kinds(scheme) == kinds
    assert list(probes.kinds(scheme)) == list(kinds)
    assert all(torch.equal(*pair) for pair in zip(before, scheme.parameters(), strict=True))


def test_a_bias_of_every_image_that_does_not_depend_on_it_is_relative():
    class Batched(PositionEmbedding):
        def bias(self, q, k, grid, layer):
            return torch.ones(q.shape[0], 2, 6, 6)

    assert probes.kinds(Batched(GEOMETRY)) == {"relative": [0]}
    assert probes.logits(Batched(GEOMETRY), "relative", 0).shape == (2, 6, 6)


def test_the_mean_by_offset_is_over_all_pairs_with_it():
    pairs = torch.rand(2, 6, 6)
    offsets = probes.by_offset(pairs, (2, 3))
    assert offsets.shape == (2, 3, 5)
    # one row up and one column to the right: from (1, 0) to (0, 1), and from (1, 1) to (0, 2)
    expected = (pairs[:, 3, 1] + pairs[:, 4, 2]) / 2
    torch.testing.assert_close(offsets[:, 0, 3], expected.double())
    torch.testing.assert_close(offsets[:, 1, 2], pairs.diagonal(dim1=1, dim2=2).double().mean(1))
    hidden = pairs.index_fill(2, torch.tensor([5]), -math.inf)
    assert probes.by_offset(hidden, (2, 3))[:, 2, 4].eq(-math.inf).all()


def test_power_is_at_the_frequencies_of_the_table():
    row = torch.arange(4).repeat_interleave(6)
    wave = torch.stack([torch.cos(math.pi * row), torch.full((24,), 3.0)], dim=1)
    power = probes.power(wave, (4, 6))
    assert power.argmax() == 0 * 6 + 3  # two rows a period: row frequency -2, in the middle of the columns
    torch.testing.assert_close(power.max(), torch.tensor(1.0, dtype=torch.float64))
    assert probes.power(torch.ones(24, 2), (4, 6)).sum() == 0


def test_the_mean_logit_of_a_rotation_is_that_of_random_queries():
    scheme = build("liere", Geometry((2, 3), 8, 2, depth=1))
    q = torch.randn(20000, 1, 1, 4, generator=torch.Generator().manual_seed(5)).expand(-1, 2, 6, -1)
    turned, _ = scheme.rotate(q, q, (2, 3), 0)
    mean = torch.einsum("bhid,bhjd->hij", turned, turned) / 2 / len(q)
    # the deviation of q . R q is at most sqrt(2 * 4): over 2 and the root of 20000, 0.01
    torch.testing.assert_close(probes.logits(scheme, "rotary", 0), mean.detach(), rtol=0, atol=0.05)
