import pytest
import torch

from vitpos.positions import Geometry, build

GRID, WIDTH, DEPTH = (4, 6), 16, 3
FAMILY = ["learned", "learned_axial", "sinusoidal_1d", "sinusoidal_2d", "sinusoidal_2d_shuffled", "fourier"]


def added(text, grid=GRID, dtype=torch.float32):
    """What a scheme adds before each block; None where it leaves the tokens alone."""
    scheme = build(text, Geometry(GRID, WIDTH, 2, DEPTH))
    x = torch.randn(2, grid[0] * grid[1], WIDTH, dtype=dtype)
    out = [scheme.tokens(x, grid, layer) for layer in range(DEPTH)]
    return [None if new is x else new - x for new in out]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("grid", [GRID, (5, 3)])
def test_the_stem_is_before_block_0_only(name, grid):
    first, *others = added(name, grid)
    assert first.abs().max() > 0
    assert others == [None, None]


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("grid", [GRID, (5, 3)])
def test_every_block_has_its_own_table_unless_it_is_fixed(name, grid):
    tables = added(f"{name}(inject='every')", grid, torch.float64)
    fixed = name.startswith("sinusoidal")
    for one in range(DEPTH):
        for other in range(one):
            # float64 less the float64 tokens again
            assert ((tables[one] - tables[other]).abs().max() < 1e-12) == fixed


@pytest.mark.parametrize("name", ["learned", "learned_axial", "fourier"])
def test_a_shared_table_is_one_before_every_block(name):
    tables = added(f"{name}(inject='shared')", dtype=torch.float64)
    assert all((table - tables[0]).abs().max() < 1e-12 for table in tables)
    sizes = {
        inject: sum(
            p.numel() for p in build(f"{name}(inject={inject!r})", Geometry(GRID, WIDTH, 2, DEPTH)).parameters()
        )
        for inject in ("stem", "shared", "every")
    }
    assert sizes["every"] == DEPTH * sizes["shared"] == DEPTH * sizes["stem"]


@pytest.mark.parametrize("name", FAMILY)
def test_all_images_get_the_same(name):
    first, *_ = added(name, dtype=torch.float64)
    torch.testing.assert_close(first[0], first[1], rtol=0, atol=1e-12)
