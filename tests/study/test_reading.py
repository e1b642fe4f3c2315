"""Rows that were read once: what the next command takes from the cache, and what it reads again."""

import json
import os

import numpy as np
import pytest
from whole import ROWS

from vitpos.errors import VitposError
from vitpos.study import reading
from vitpos.study.results import Results

LINES = ROWS.read_text().splitlines()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Results as in a clone, in a cache of their own that takes any number of rows, however young."""
    monkeypatch.setenv("VITPOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reading, "MANY", 1)
    monkeypatch.setattr(reading, "YOUNG", -(10**12))
    folder = tmp_path / "study"
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("\n".join(LINES[:3]))
    (folder / "runs" / "a" / "result.json").write_text(LINES[3])
    return folder


def stored(folder, monkeypatch, read):
    """The rows of a new process, and how many of them it parsed: `read`."""
    parsed, parse = [], reading.parse
    monkeypatch.setattr(reading, "parse", lambda text: parsed.append(text) or parse(text))
    results = Results(folder)
    rows = results.stored()
    monkeypatch.setattr(reading, "parse", parse)
    results.reader.keep()
    assert len(parsed) == read
    return [json.loads(reading.whole(row)) for row in rows]


def test_rows_come_from_the_cache_as_they_are_on_disk(folder, monkeypatch):
    expected = [json.loads(line) for line in LINES[:4]]
    assert stored(folder, monkeypatch, read=4) == expected
    assert stored(folder, monkeypatch, read=0) == expected


def test_a_changed_file_is_read_again_but_for_lines_that_stayed(folder, monkeypatch):
    stored(folder, monkeypatch, read=4)
    changed = {**json.loads(LINES[1]), "seconds": 1.0}
    (folder / "rows.jsonl").write_text("\n".join([LINES[0], json.dumps(changed), LINES[4]]))
    rows = stored(folder, monkeypatch, read=2)
    assert rows == [json.loads(LINES[0]), changed, json.loads(LINES[4]), json.loads(LINES[3])]


def test_a_row_that_is_damaged_later_is_named_although_the_cache_knew_it(folder, monkeypatch, capsys):
    stored(folder, monkeypatch, read=4)
    file = folder / "runs" / "a" / "result.json"
    before = file.stat()
    file.write_text(LINES[3].replace('"format": 1', '"format": 9', 1))  # as long as it was
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(stored(folder, monkeypatch, read=1)) == 3
    for _ in range(2):
        assert "format is 9" in capsys.readouterr().err
        stored(folder, monkeypatch, read=1)


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text[:40] + b"x" + text[41:], lambda _: b""])
def test_a_damaged_cache_is_none(folder, monkeypatch, damage):
    expected = stored(folder, monkeypatch, read=4)
    (cache,) = folder.parent.glob("cache/rows/*")
    cache.write_bytes(damage(cache.read_bytes()))
    assert stored(folder, monkeypatch, read=4) == expected


def test_another_version_of_the_code_checks_again(folder, monkeypatch):
    stored(folder, monkeypatch, read=4)
    monkeypatch.setattr(reading, "sources", lambda: "others")
    stored(folder, monkeypatch, read=4)


def test_similarity_is_read_when_it_is_asked_for(folder, monkeypatch):
    results = Results(folder)
    row = next(row for row in results.stored() if row["position"])
    expected = next(json.loads(line) for line in LINES if json.loads(line)["hash"] == row["hash"])
    (folder / "rows.jsonl").unlink()  # or replaced, by a report
    assert np.array_equal(np.array(row["position"]["similarity"]), expected["position"]["similarity"])
    own = Results(folder).stored()[-1]
    (folder / "runs" / "a" / "result.json").write_text(LINES[4])
    with pytest.raises(VitposError, match="changed while it was read"):
        np.array(own["position"]["similarity"])


def test_few_rows_are_not_kept(folder, monkeypatch):
    monkeypatch.setattr(reading, "MANY", 5)
    stored(folder, monkeypatch, read=4)
    assert not (folder.parent / "cache").exists()
