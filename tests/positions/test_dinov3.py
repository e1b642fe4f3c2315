import copy

import pytest
import timm
import torch
from timm.layers import DropPath

from vitpos.checks import export, model
from vitpos.checks.common import GEOMETRY, GRID, images, vit
from vitpos.positions import build
from vitpos.positions.dinov3 import draw

MOVED = "rope_dinov3(shift_coords=0.3, jitter_coords=1.5, rescale_coords=2)"
CPU = torch.device("cpu")


def coordinates(text, times):
    """The angles of the slowest pair of a row and of a column in training, as coordinates: (times, 2, N)."""
    scheme = build(text, GEOMETRY).train()
    found = torch.stack([torch.atan2(*scheme.prepare(GRID, CPU)[::-1]) for _ in range(times)])
    slow = 100 ** (2 / 3) / (2 * torch.pi)  # of 3 bands
    return slow * torch.stack([found[:, :, 2], found[:, :, 5]], 1)


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [("shift_coords=0.3", -0.3, 0.3), ("jitter_coords=1.5", 1 / 1.5, 1.5), ("rescale_coords=2", 0.5, 2)],
)
def test_what_is_drawn_is_uniform_within_the_option(option, low, high):
    torch.manual_seed(0)
    at_home = coordinates("rope_dinov3", 1)
    moved = coordinates(f"rope_dinov3({option})", 400)
    found = (moved - at_home if "shift" in option else moved / at_home)[:, :, 0]
    found, low, high = (
        (found, low, high) if "shift" in option else (found.log(), *torch.tensor([low, high]).log().tolist())
    )
    share = (found - low) / (high - low)
    assert -1e-5 < share.min() < 0.02
    assert 0.98 < share.max() < 1 + 1e-5
    assert share.mean().item() == pytest.approx(0.5, abs=0.05)
    assert share.std().item() == pytest.approx(12**-0.5, abs=0.03)
    apart = torch.corrcoef(share.T)[0, 1].abs().item()
    assert apart > 0.999 if "rescale" in option else apart < 0.15


def test_one_draw_a_forward_for_all_blocks_in_training_only():
    torch.manual_seed(0)
    plain, moved = vit("rope_dinov3"), vit(MOVED)
    assert torch.equal(plain(images()), moved(images()))
    moved.train()
    x = moved(images())
    assert not torch.equal(x, moved(images()))  # nothing is seeded in between, and nothing else is drawn
    seen = []
    inner = moved.pos_embed.rotate
    moved.pos_embed.rotate = lambda *args, prepared: seen.append(prepared) or inner(*args, prepared=prepared)
    moved(images())
    assert seen[0] is seen[1]
    assert len(seen) == 2


def test_seeding_repeats_the_draws_and_nothing_else_is_moved_by_them():
    for before in (0, 3):
        torch.manual_seed(5)
        torch.rand(before)
        once, again = draw(4, CPU), draw(4, CPU)
        others = torch.rand(7), torch.randn(5), torch.randperm(9)
        torch.manual_seed(5)
        torch.rand(before)
        assert torch.equal(draw(4, CPU), once)
        assert not torch.equal(draw(4, CPU), once)
        torch.manual_seed(5)
        torch.rand(before)
        for one, other in zip(others, (torch.rand(7), torch.randn(5), torch.randperm(9)), strict=True):
            assert torch.equal(one, other)
        assert not torch.equal(once, again)
        torch.manual_seed(6)
        torch.rand(before)
        assert not torch.equal(draw(4, CPU), once)


def test_drop_path_is_that_of_the_scheme_that_moves_nothing():
    def masks(text):
        torch.manual_seed(0)
        host = timm.create_model("vitpos_nano_patch4_32", position=text, drop_path_rate=0.5, num_classes=10).train()
        found = []
        for module in host.modules():
            if isinstance(module, DropPath):
                module.register_forward_hook(lambda m, x, out: found.append(out.flatten(1).abs().sum(1) == 0))
        for step in (1, 1, 2):
            if step == 2:
                torch.manual_seed(step)
            host(torch.ones(16, 3, 32, 32))
        return torch.stack(found)

    assert torch.equal(masks("rope_dinov3"), masks(MOVED))


@pytest.mark.parametrize(
    "check", [model.autocast, model.checkpointing, model.copies, export.fake_cuda, export.one_graph]
)
def test_it_passes_the_checks_in_training(check):
    check(MOVED)


@pytest.mark.slow
def test_compiled_by_inductor_it_draws_anew_and_the_same():
    host = vit(MOVED, depth=1).train()
    plain = copy.deepcopy(host)
    with export.fresh_compiler():
        compiled = torch.compile(host, fullgraph=True, dynamic=False)
        torch.manual_seed(0)
        found = [compiled(images()) for _ in range(2)]
        torch.manual_seed(0)
        for one in found:
            torch.testing.assert_close(one, plain(images()), rtol=0, atol=1e-5)
    assert not torch.equal(*found)
