import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from vitpos.data.module import ImageData
from vitpos.errors import VitposError

# Lightning 2.6.6 uses what torch 2.14 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


def ready(**options):
    data = ImageData(**{"name": "digits", "batch_size": 64, "crop_padding": 1} | options)
    data.setup("fit")
    return data


def epoch(data, number):
    data.epoch = number
    return list(data.train_dataloader())


def equal(a, b):
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_what_it_tells_before_setup():
    data = ImageData(name="digits")
    assert (data.num_classes, data.in_chans, data.img_size) == (10, 1, (8, 8))
    assert data.classes == tuple("0123456789")
    assert data.sizes == {"train": 1295, "val": 143, "test": 359}
    assert data.fingerprint == data.source.fingerprint


def test_order_follows_from_seed_and_epoch():
    first = epoch(ready(), 3)
    assert equal(first, epoch(ready(), 3))
    assert not equal(first, epoch(ready(), 4))
    assert not equal(first, epoch(ready(seed=1), 3))
    torch.manual_seed(99)
    assert equal(first, epoch(ready(crop_padding=2, flip=False), 3))


def test_an_epoch_has_every_image_once():
    data = ready(batch_size=5)  # 1295 = 5 * 259
    images, labels = map(torch.cat, zip(*epoch(data, 0), strict=True))
    assert torch.equal(data.order().sort().values, torch.arange(1295))
    assert torch.equal(images, data.source.train.images[data.order()])
    assert torch.equal(labels, data.source.train.labels[data.order()])


def test_training_batches_have_one_size():
    loader = ready(batch_size=1000).train_dataloader()
    assert len(loader) == 1
    assert [len(labels) for _, labels in loader] == [1000]


@pytest.mark.parametrize(("size", "number"), [(50, 3), (143, 1), (1000, 1)])
def test_validation_is_whole_and_in_order(size, number):
    data = ready(eval_batch_size=size)
    for loader, part in ((data.val_dataloader(), data.source.val), (data.test_dataloader(), data.source.test)):
        batches = list(loader)
        assert len(batches) == len(loader)
        images, labels = map(torch.cat, zip(*batches, strict=True))
        assert torch.equal(images, part.images)
        assert torch.equal(labels, part.labels)
    assert len(data.val_dataloader()) == number


def test_normalised_to_mean_0_and_deviation_1():
    data = ready()
    images = data.normalise(data.source.train.images)
    assert images.dtype == torch.float32
    assert images.mean().abs() < 1e-5
    assert (images.std() - 1).abs() < 1e-3
    train = data.source.train.images.double() / 255
    expected = (train - train.mean()) / train.std(correction=0)
    torch.testing.assert_close(images.double(), expected, atol=1e-5, rtol=1e-5)


def test_augmentation_follows_from_seed_and_step():
    data = ready()
    images = data.source.train.images[:64]
    first = data.augment(images, 7)
    assert torch.equal(first, ready().augment(images, 7))
    assert not torch.equal(first, data.augment(images, 8))
    assert not torch.equal(first, ready(seed=1).augment(images, 7))
    assert torch.equal(ready(crop_padding=0, flip=False).augment(images, 7), images)


class Watcher(pl.LightningModule):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.seen, self.steps, self.evaluated = [], [], {"val": [], "test": []}

    def training_step(self, batch, batch_idx):
        images, labels = batch
        self.seen.append((images.clone(), labels.clone()))
        self.steps.append(self.global_step)
        return nn.functional.cross_entropy(self.layer(images.flatten(1).float()), labels)

    def validation_step(self, batch, batch_idx):
        self.evaluated["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.evaluated["test"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return pl.Trainer(**quiet | {"max_epochs": 2, "default_root_dir": tmp_path} | options)


def expected(data, epochs, batches):
    for number in range(epochs):
        for i, (images, labels) in enumerate(epoch(data, number)):
            yield data.normalise(data.augment(images, number * batches + i)), labels


@pytest.mark.parametrize("accumulate", [1, 2])
def test_in_a_trainer(tmp_path, accumulate):
    # warnings are errors, so this shows also that Lightning takes the loaders as they are
    model = Watcher()
    data = ImageData(name="digits", batch_size=400, crop_padding=1, eval_batch_size=100)
    lightning = trainer(tmp_path, enable_checkpointing=False, accumulate_grad_batches=accumulate)
    lightning.fit(model, data)
    lightning.test(model, data, verbose=False)
    assert len(model.seen) == 6
    alone = ready(batch_size=400)
    assert equal(model.seen, expected(alone, 2, 3))
    val = torch.cat([images for images, _ in model.evaluated["val"]])
    assert torch.equal(val[-143:], alone.normalise(alone.source.val.images))
    test = torch.cat([images for images, _ in model.evaluated["test"]])
    assert torch.equal(test, alone.normalise(alone.source.test.images))


def test_resumed_run_sees_what_an_uninterrupted_one_sees(tmp_path):
    options = {"name": "digits", "batch_size": 400, "crop_padding": 1}
    first, second = Watcher(), Watcher()
    short = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    short.fit(first, ImageData(**options))
    short.save_checkpoint(tmp_path / "last.ckpt")
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(
        second, ImageData(**options), ckpt_path=tmp_path / "last.ckpt"
    )
    assert equal(first.seen + second.seen, expected(ready(batch_size=400), 2, 3))


def test_half_precision_of_the_model_is_that_of_the_batch(tmp_path):
    model = Watcher()
    data = ImageData(name="digits", batch_size=400)
    model.training_step = lambda batch, batch_idx: (
        model.seen.append(batch[0].dtype) or model.layer(batch[0].flatten(1)).sum()
    )
    trainer(tmp_path, max_steps=1, max_epochs=1, precision="bf16-true", enable_checkpointing=False).fit(model, data)
    assert model.seen == [torch.bfloat16]


@pytest.mark.parametrize("option", ["batch_size", "eval_batch_size", "crop_padding"])
def test_option_out_of_range(option):
    least = 0 if option == "crop_padding" else 1
    with pytest.raises(VitposError, match=rf"^data\.{option} is {least - 1}; it must be at least {least}$"):
        ImageData(**{option: least - 1})


def test_batch_larger_than_the_data():
    with pytest.raises(VitposError, match=r"^data\.batch_size is 1296, but digits has only 1295 training images$"):
        ready(batch_size=1296)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5, float("nan")])
def test_share_out_of_range(fraction):
    with pytest.raises(VitposError, match=rf"^data\.train_fraction is {fraction}; it must be above 0 and at most 1$"):
        ImageData(train_fraction=fraction)


def test_share_that_leaves_a_class_without_images():
    # the digits have 125 to 132 training images a class; 0.004 of 125 is half an image, rounded to none
    message = r"^data\.train_fraction 0\.004 leaves none of the 12\d training images of class '\d' of digits; each"
    with pytest.raises(VitposError, match=message):
        ready(train_fraction=0.004, batch_size=1)


def test_share_smaller_than_a_batch():
    message = r"^data\.batch_size is 256, but digits has only 129 training images at data\.train_fraction 0\.1$"
    with pytest.raises(VitposError, match=message):
        ready(train_fraction=0.1, batch_size=256)


def rows(split):
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def test_shares_are_stratified_nested_and_fixed_by_the_data():
    whole = ready().source
    before, parts = set(), []
    for fraction in (0.05, 0.1, 0.3, 0.99, 1.0):
        part = ready(train_fraction=fraction, batch_size=16).source
        counts, all_counts = part.train.labels.bincount(), whole.train.labels.bincount()
        assert counts.tolist() == [round(fraction * count) for count in all_counts.tolist()]
        assert len(rows(part.train)) == len(part.train)  # the digits have no image twice
        assert before < rows(part.train) <= rows(whole.train)
        before = rows(part.train)
        parts.append(part)
    assert torch.equal(parts[-1].train.images, whole.train.images)
    other = ready(train_fraction=0.3, batch_size=16, seed=7).source
    assert torch.equal(other.train.images, parts[2].train.images)
    assert torch.equal(other.train.labels, parts[2].train.labels)


def test_a_share_changes_training_alone():
    whole, part = ready(), ready(train_fraction=0.3)
    assert part.sizes == {"train": 387, "val": 143, "test": 359}
    assert part.fingerprint == whole.fingerprint
    assert torch.equal(part.source.test.images, whole.source.test.images)
    assert torch.equal(part.source.val.images, whole.source.val.images)
    assert len(whole.source.train) == 1295  # it is shared by all in the process
    images, labels = map(torch.cat, zip(*epoch(part, 0), strict=True))
    assert rows(type(part.source.train)(images, labels)) <= rows(part.source.train)
    normal = part.normalise(part.source.train.images)  # by its own mean and deviation
    assert normal.mean().abs() < 1e-5
    assert not torch.equal(part.normalise(images), whole.normalise(images))


def test_several_devices_are_refused(tmp_path):
    data = ImageData(name="digits")
    data.trainer = type("Several", (), {"world_size": 2})()
    with pytest.raises(VitposError, match=r"^trainer\.devices starts 2 processes; a run takes one device$"):
        data.setup("fit")


def test_missing_data_is_told_at_setup(tmp_path):
    with pytest.raises(VitposError, match="cifar10: not found"):
        ImageData(root=str(tmp_path)).setup("fit")
