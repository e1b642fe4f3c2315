import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed

from vitpos.positions import Geometry, build


@pytest.mark.parametrize("scale", [0.02, 0.2, 1.0])
def test_scale_is_the_rms_at_the_start(scale):
    torch.manual_seed(0)
    table = build(f"learned(scale={scale})", Geometry((16, 16), 192, 3, 1)).table
    assert table.shape == (1, 256, 192)
    assert table.pow(2).mean().sqrt().item() == pytest.approx(scale, rel=0.02)
    assert table.mean().item() == pytest.approx(0, abs=0.02 * scale)


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (8, 8), (2, 3), (5, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_grid_is_resized_bit_for_bit_as_timm_does(grid, dtype):
    scheme = build("learned(scale=1)", Geometry((4, 6), 24, 2, 1)).to(dtype)
    x = torch.randn(2, grid[0] * grid[1], 24, dtype=dtype)
    resized = resample_abs_pos_embed(scheme.table, list(grid), [4, 6], num_prefix_tokens=0)
    assert torch.equal(scheme.tokens(x, grid, 0), x + resized)
    assert scheme.tokens(x, grid, 1) is x


def test_the_table_learns_through_a_resize():
    scheme = build("learned", Geometry((4, 6), 24, 2, 1))
    scheme.tokens(torch.zeros(1, 64, 24), (8, 8), 0).pow(2).sum().backward()
    assert (scheme.table.grad != 0).all()
