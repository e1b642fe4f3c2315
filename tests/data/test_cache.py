import logging
import os
import pickle

import pytest
import torch
from parquet_files import write_parquet

from vitpos.data import cache, cifar, sources
from vitpos.data.sources import load
from vitpos.errors import VitposError


@pytest.fixture
def decoded(monkeypatch):
    """Counts the parquet files that were decoded."""
    files, read = [], cifar._read_table
    monkeypatch.setattr(cifar, "_read_table", lambda file, layout: files.append(file.name) or read(file, layout))
    return files


def fresh(root):
    """Loads as a new process would."""
    sources._memo.clear()
    return load("cifar10", root)


def test_second_load_in_a_process_is_the_first(parquet, decoded):
    assert load("cifar10", parquet) is load("cifar10", str(parquet))
    assert len(decoded) == 3


def test_another_process_does_not_decode(parquet, decoded):
    first = load("cifar10", parquet)
    decoded.clear()
    second = fresh(parquet)
    assert decoded == []
    assert (second.name, second.classes, second.fingerprint) == (first.name, first.classes, first.fingerprint)
    for part in ("train", "val", "test"):
        assert torch.equal(getattr(first, part).images, getattr(second, part).images)
        assert torch.equal(getattr(first, part).labels, getattr(second, part).labels)


def test_changed_file_is_read_again_and_replaces_its_cache(parquet, pixels):
    first = load("cifar10", parquet)
    images, labels = pixels["test"]
    write_parquet(parquet / "cifar10/test-00000-of-00001.parquet", 255 - images, labels)
    second = load("cifar10", parquet)
    assert second.fingerprint != first.fingerprint
    assert fresh(parquet).fingerprint == second.fingerprint
    assert len(list(cache.folder().iterdir())) == 1


def test_changed_time_is_enough(parquet, decoded):
    load("cifar10", parquet)
    decoded.clear()
    os.utime(parquet / "cifar10/test-00000-of-00001.parquet", ns=(1, 1))
    fresh(parquet)
    assert len(decoded) == 3


def test_contents_of_equal_size_and_time_are_read_again(parquet, pixels):
    """As tar with fixed times, rsync -t and cp -p leave them; once written in place, once renamed."""
    file = parquet / "cifar10/test-00000-of-00001.parquet"
    first, old = load("cifar10", parquet), file.stat()
    content = bytearray(file.read_bytes())
    label = content.rindex(bytes(pixels["test"][1][-1:].astype("<i8").tobytes()))
    for way in ("in place", "by a rename"):
        content[label] ^= 1
        target = file if way == "in place" else file.with_name("new")
        target.write_bytes(content)
        os.utime(target, ns=(old.st_atime_ns, old.st_mtime_ns))
        target.rename(file)
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
        assert (load("cifar10", parquet).fingerprint == first.fingerprint) == (way == "by a rename")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "pickle", "empty"])
def test_damaged_cache_is_rewritten(parquet, decoded, caplog, damage):
    first = load("cifar10", parquet)
    (file,) = cache.folder().iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(
        {
            "truncated": bytes(content[:-1000]),
            "flipped": bytes(content),
            "foreign": b"something else",
            "pickle": pickle.dumps({"stamp": "x"}),
            "empty": b"",
        }[damage]
    )
    assert fresh(parquet).fingerprint == first.fingerprint
    assert [r.getMessage() for r in caplog.records if "ignoring the damaged cache" in r.getMessage()]
    decoded.clear()
    caplog.clear()
    assert fresh(parquet).fingerprint == first.fingerprint
    assert decoded == []
    assert not caplog.records


def test_unwritable_cache_is_one_warning(parquet, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITPOS_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert len(load("cifar10", parquet).train) == 180
    (message,) = [record.getMessage() for record in caplog.records if "write" in record.getMessage()]
    assert len(caplog.records) == 1  # nothing is said of a damaged one
    assert message.startswith(f"cannot write the cache {tmp_path}/file/cache/cifar10-")
    assert "\n" not in message


def test_full_disk_leaves_nothing_behind(parquet, monkeypatch, caplog):
    def savez(file, **arrays):
        file.write(b"the first half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "savez", savez)
    load("cifar10", parquet)
    assert "No space left on device" in caplog.text
    assert list(cache.folder().iterdir()) == []


def test_interrupt_leaves_nothing_behind_and_old_remains_are_removed(parquet, monkeypatch):
    def savez(file, **arrays):
        file.write(b"the first half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache.np, "savez", savez)
        with pytest.raises(KeyboardInterrupt):
            load("cifar10", parquet)
    assert list(cache.folder().iterdir()) == []
    killed, busy = (cache.folder() / f".cifar10-0.npz.{name}.tmp" for name in ("killed", "busy"))
    killed.touch()
    os.utime(killed, (0, 0))
    busy.touch()
    load("cifar10", parquet)
    assert busy.exists()
    assert not killed.exists()


def test_bad_data_is_not_cached(parquet):
    file = parquet / "cifar10/train-00000-of-00002.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    with pytest.raises(VitposError, match="truncated"):
        load("cifar10", parquet)
    file.write_bytes(content)
    assert len(load("cifar10", parquet).train) == 180


def test_folder(monkeypatch, tmp_path):
    assert cache.folder() == tmp_path / "cache"
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("VITPOS_CACHE", "~/images")
    assert str(cache.folder()) == "/home/someone/images"
    monkeypatch.delenv("VITPOS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache.folder()) == "/x/vitpos"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache.folder()) == "/home/someone/.cache/vitpos"
