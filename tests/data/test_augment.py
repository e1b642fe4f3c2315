import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vitpos.data.augment import random_crop, random_flip


def batch(n=64, height=6, width=9, dtype=torch.uint8):
    """Images without two equal pixels in reach of each other, none zero."""
    values = torch.randint(1, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(5))
    return values.to(dtype)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def offsets(image, out, padding):
    """All (dy, dx) at which a loop over samples cuts `out` from the padded image."""
    _, height, width = image.shape
    padded = torch.zeros(3, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    return [
        (dy, dx)
        for dy in range(2 * padding + 1)
        for dx in range(2 * padding + 1)
        if torch.equal(padded[:, dy : dy + height, dx : dx + width], out)
    ]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_each_crop_is_one_of_the_padded_image(padding, dtype):
    images = batch(dtype=dtype)
    out = random_crop(images, padding, draws())
    assert out.shape == images.shape
    assert out.dtype == dtype
    for image, cut in zip(images, out, strict=True):
        assert len(offsets(image, cut, padding)) == 1


def test_crop_takes_the_drawn_offsets():
    images = batch()
    dy, dx = torch.randint(0, 9, (2, 64, 1, 1), generator=draws()).flatten(1)
    for i, cut in enumerate(random_crop(images, 4, draws())):
        assert offsets(images[i], cut, 4) == [(dy[i], dx[i])]


def test_crops_are_uniform_and_independent_of_each_other():
    image = batch(1, 4, 4)
    out = random_crop(image.expand(4500, -1, -1, -1), 1, draws())
    table = torch.zeros(3, 3)
    for dy in range(3):
        for dx in range(3):
            padded = torch.nn.functional.pad(image[0], (1, 1, 1, 1))
            table[dy, dx] = (out == padded[:, dy : dy + 4, dx : dx + 4]).all(dim=(1, 2, 3)).sum()
    assert table.sum() == 4500
    chi_square = ((table - 500) ** 2 / 500).sum()
    assert chi_square < 26  # 8 degrees of freedom: 1 in 1,000


def test_each_flip_is_the_image_or_its_mirror():
    images = batch(2000, 2, 5)
    out = random_flip(images, draws())
    kept = (out == images).all(dim=(1, 2, 3))
    mirrored = torch.stack([(o == i.flip(2)).all() for i, o in zip(images, out, strict=True)])
    assert (kept ^ mirrored).all()
    assert abs(int(kept.sum()) - 1000) < 75  # 3.3 deviations


@pytest.mark.parametrize("function", [lambda x, g: random_crop(x, 4, g), random_flip], ids=["crop", "flip"])
def test_repeats_by_seed_and_leaves_its_input_alone(function):
    images = batch()
    before = images.clone()
    first = function(images, draws(3))
    assert torch.equal(first, function(images, draws(3)))
    assert not torch.equal(first, function(images, draws(4)))
    assert torch.equal(images, before)


def test_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    random_flip(random_crop(batch(), 2, draws()), draws())
    assert torch.equal(state, torch.get_rng_state())


def test_view_of_a_larger_batch():
    images = batch(10)
    assert torch.equal(random_crop(images[::2], 2, draws()), random_crop(images[::2].contiguous(), 2, draws()))


def test_stays_on_the_device():
    # without a GPU a generator of its own kind cannot be made; under fake tensors any will do
    with FakeTensorMode():
        images = torch.empty(256, 3, 32, 32, dtype=torch.uint8, device="cuda")
        out = random_flip(random_crop(images, 4, draws()), draws())
    assert out.device.type == "cuda"
    assert out.shape == images.shape
    assert out.dtype == torch.uint8
