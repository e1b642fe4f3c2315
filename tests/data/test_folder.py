import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_sources import PARTS, pairs

from vitpos.data.sources import load
from vitpos.errors import VitposError


@pytest.fixture
def classes(tmp_path):
    """A root with two classes of 20 images of 6x5."""
    rng = np.random.default_rng(0)
    root = tmp_path / "own"
    for name in ("cat", "ant"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)).save(root / name / f"{i}.png")
    (root / "notes.txt").write_text("not a class")
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def test_folder(classes):
    data = load("folder", classes)
    assert data.classes == ("ant", "cat")
    assert [len(getattr(data, part)) for part in PARTS] == [28, 4, 8]
    pixels = np.asarray(Image.open(classes / "cat" / "3.png")).transpose(2, 0, 1)
    assert (pixels.tobytes(), 1) in set.union(*(pairs(getattr(data, part)) for part in PARTS))
    assert data.train.images.shape[1:] == (3, 5, 6)
    moved = shutil.copytree(classes, classes.parent / "moved")
    (moved / "cat" / "0.png").rename(moved / "cat" / "z.png")
    assert load("folder", moved).fingerprint == data.fingerprint


def test_folder_of_two_sizes(classes):
    Image.new("RGB", (7, 5)).save(classes / "cat" / "0.png")
    with pytest.raises(VitposError, match=r"^\S+cat/0\.png: 7x5, but \S+ant/0\.png is 6x5; all must have one size$"):
        load("folder", classes)


def test_folder_with_a_damaged_image(classes):
    file = classes / "ant" / "7.png"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(VitposError, match=r"^\S+ant/7\.png: does not decode \("):
        load("folder", classes)


def test_folder_with_a_small_class(classes):
    for i in range(11):
        (classes / "ant" / f"{i}.png").unlink()
    with pytest.raises(VitposError, match=r"class \S+ant has 9 images; each class needs at least 10$"):
        load("folder", classes)


def test_folder_without_classes(tmp_path):
    with pytest.raises(VitposError, match=r"no class folders in \S+/nowhere; it needs one folder of images for each"):
        load("folder", tmp_path / "nowhere")
    with pytest.raises(VitposError, match=r"^folder: needs --data\.root"):
        load("folder")


def refused(root, words):
    with pytest.raises(VitposError, match=words) as caught:
        load("folder", root)
    assert "\n" not in str(caught.value)


def test_one_class_is_refused(classes):
    shutil.rmtree(classes / "ant")
    refused(classes, r"own has the one class 'cat'; at least 2 are needed$")


def test_images_of_one_colour_are_refused(classes):
    for file in classes.glob("*/*.png"):
        Image.new("RGB", (6, 5), (1, 2, 3)).save(file)
    refused(classes, "all training images are the same single colour")


def test_what_a_mac_leaves_behind_is_no_image(classes):
    expected = load("folder", classes).fingerprint
    for place in (classes / "cat", classes / "__MACOSX" / "cat", classes / "cat" / ".ipynb_checkpoints"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "._0.png").write_bytes(b"\0\5\x16\7")
    (classes / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png").write_bytes(b"?")
    assert load("folder", classes).fingerprint == expected


def test_other_files_are_counted(classes, caplog):
    (classes / "ant" / "1.HEIC").touch()
    (classes / "ant" / "2.heic").touch()
    (classes / "0.png").touch()
    os.mkfifo(classes / "cat" / "pipe.png")
    for _ in range(2):
        load("folder", classes)
    (line,) = caplog.messages
    assert line == f"folder: left out in {classes}: 1 .HEIC, 1 .heic, 1 .png, 1 .png outside of classes, 1 .txt"


def test_every_suffix_counts(classes):
    for number, suffix in enumerate((".jfif", ".JPE", ".jp2", ".avif", ".tga", ".pgm", ".qoi")):
        image = Image.effect_noise((6, 5), 50).convert("L" if suffix == ".pgm" else "RGB")
        image.save(classes / "cat" / f"more{number}{suffix}")
    assert sum(len(getattr(load("folder", classes), part)) for part in PARTS) == 47


@pytest.mark.parametrize("place", ["cat/9.png", "cat/9", "dog"])
@pytest.mark.parametrize("target", ["nowhere", None])
def test_a_link_that_leads_nowhere_is_refused(classes, place, target):
    link = classes / place
    link.unlink(missing_ok=True)
    link.symlink_to(target or link)
    refused(classes, f"{place} is a broken link$")


def test_a_renamed_link_to_a_class_renames_the_class(classes):
    (classes / "cat").rename(classes.parent / "cats")
    (classes / "cat").symlink_to(classes.parent / "cats")
    first = load("folder", classes)
    (classes / "cat").rename(classes / "aardvark")
    second = load("folder", classes)
    assert (first.classes, second.classes) == (("ant", "cat"), ("aardvark", "ant"))
    assert first.fingerprint != second.fingerprint


def test_images_deeper_down_are_refused(classes):
    (classes / "cat" / "more" / "night").mkdir(parents=True)
    (classes / "cat" / "more" / "notes.txt").touch()
    load("folder", classes)
    (classes / "cat" / "3.png").rename(classes / "cat" / "more" / "night" / "3.png")
    refused(classes, r"class \S+/cat has images in a subfolder, such as \S+/night/3\.png; move them")


def test_copies_over_the_parts_are_said(classes, caplog):
    assert load("folder", classes).repeated == (0, 0)
    assert "left out" in caplog.text
    caplog.clear()
    for i in range(9):
        shutil.copy(classes / "ant" / "10.png", classes / "ant" / f"{i}.png")
        shutil.copy(classes / "ant" / "10.png", classes / "cat" / f"{i}.png")
    found = load("folder", classes)
    expected = {part: [image.numpy().tobytes() for image in getattr(found, part).images] for part in PARTS}
    assert found.repeated == (
        sum(image in expected["train"] for image in expected["val"]),
        sum(image in expected["train"] + expected["val"] for image in expected["test"]),
    )
    assert found.repeated[1] > 0
    (line,) = caplog.messages
    assert f"and {found.repeated[1]} of 8 test images are also training or validation images" in line


def test_several_frames_and_few_levels_are_said(classes, caplog):
    shades = np.random.default_rng(1).integers(0, 4096, (20, 5, 6), dtype=np.uint16)
    for name in ("ant", "cat"):
        for i in range(20):
            Image.fromarray(shades[i]).save(classes / name / f"{i}.png")
    one, two = Image.fromarray(shades[0]), Image.fromarray(shades[1])
    one.save(classes / "cat" / "0.tif", save_all=True, append_images=[two])
    data = load("folder", classes)
    assert data.train.images.max() == 16
    assert "1 files hold several frames, such as " in caplog.text
    assert "the 16-bit images use only the lowest 17 of 256 levels" in caplog.text


def test_a_home_folder_as_root(classes, monkeypatch):
    monkeypatch.setenv("HOME", str(classes.parent))
    assert load("folder", "~/own").classes == ("ant", "cat")


@pytest.fixture
def parted(classes):
    """Moves the images into train, val and test."""
    (classes / "train").mkdir()
    for name in ("ant", "cat"):
        (classes / name).rename(classes / "train" / name)
        for part, numbers in (("val", range(3)), ("test", range(3, 8))):
            (classes / part / name).mkdir(parents=True)
            for i in numbers:
                (classes / "train" / name / f"{i}.png").rename(classes / part / name / f"{i}.png")
    return classes


def test_given_parts_stay_as_they_are(parted):
    data = load("folder", parted)
    assert data.classes == ("ant", "cat")
    for part in PARTS:
        files = {
            (np.asarray(Image.open(f)).transpose(2, 0, 1).tobytes(), f.parent.name)
            for f in parted.glob(f"{part}/*/*.png")
        }
        assert {(image, data.classes[label]) for image, label in pairs(getattr(data, part))} == files
    moved = shutil.copytree(parted, parted.parent / "moved")
    (moved / "val" / "cat" / "0.png").rename(moved / "val" / "cat" / "z.png")
    (moved / "val").rename(moved / "Validation")
    (moved / "train").rename(moved / "training")
    assert load("folder", moved).fingerprint == data.fingerprint
    (moved / "Validation" / "cat" / "z.png").rename(moved / "training" / "cat" / "z.png")
    assert load("folder", moved).fingerprint != data.fingerprint


@pytest.mark.parametrize(("gone", "sizes"), [("val", [22, 2, 10]), ("test", [20, 6, 4]), ("both", [18, 2, 4])])
def test_a_part_that_is_not_given_is_split_off(parted, gone, sizes):
    for part in ("val", "test") if gone == "both" else (gone,):
        shutil.rmtree(parted / part)
    assert [len(getattr(load("folder", parted), part)) for part in PARTS] == sizes


def test_a_class_called_train(classes):
    (classes / "cat").rename(classes / "train")
    shutil.copytree(classes / "ant", classes / "test")
    assert load("folder", classes).classes == ("ant", "test", "train")


def test_parts_with_other_classes_are_refused(parted):
    (parted / "test" / "cat").rename(parted / "test" / "dog")
    refused(parted, r"class 'cat' is in \S+/train, but not in \S+/test; both need the same classes$")
    shutil.copytree(parted / "test" / "dog", parted / "test" / "cat")
    refused(parted, r"class 'dog' is in \S+/test, but not in \S+/train; both")


def test_two_folders_for_one_part_are_refused(parted):
    shutil.copytree(parted / "val", parted / "validation")
    refused(parted, r"both \S+/val and \S+/validation could be the val part; keep one$")


def test_parts_without_train_are_refused(parted):
    shutil.rmtree(parted / "train")
    refused(parted, r"class \S+/test has images in a subfolder, .*parts of a data set are called train, val")


def test_folders_beside_the_parts_are_said(parted, caplog):
    (parted / "dev").mkdir()
    load("folder", parted)
    assert "1 folder dev/" in caplog.text


def test_all_parts_have_one_size(parted):
    Image.new("RGB", (7, 5)).save(parted / "test" / "cat" / "3.png")
    refused(parted, r"test/cat/3\.png: 7x5, but \S+train/ant/\d+\.png is 6x5")


def test_names_that_are_no_utf8_or_steer_a_terminal(classes, caplog):
    (classes / "ant").rename(classes / "ant\udcff")
    (classes / "cat" / "x.\x1b[31m").touch()
    assert load("folder", classes).classes == ("ant\udcff", "cat")
    assert load("folder", classes).classes == ("ant\udcff", "cat")
    assert r"1 .\x1b[31m" in caplog.text


def test_parts_without_class_folders_are_refused(classes):
    (classes / "ant").rename(classes / "train")
    (classes / "cat").rename(classes / "test")
    refused(classes, "train is a part, but has no class folders")
