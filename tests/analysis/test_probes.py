"""What is read off a scheme: its table, similarities, and their picture."""

import pytest
import torch

from vitpos.analysis import probes
from vitpos.positions import Geometry, build

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
