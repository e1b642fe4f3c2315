"""A row is data of anybody's: each field is checked, and what is wrong is said in one line."""

import copy
import json
import math
from pathlib import Path

import pytest

from vitpos.errors import VitposError
from vitpos.rows import check_failure, check_row

ROOT = Path(__file__).parents[1]
COMMITTED = [json.loads(line) for file in ROOT.glob("results/*/*.jsonl") for line in file.read_text().splitlines()]
ROW = next(row for row in COMMITTED if row["position"] and "right" in row)

NESTED = json.loads("[" * 100 + "]" * 100)
HOSTILE = [
    None, True, -1, 3.5, 1e308, math.nan, math.inf, 10**12, 10**400, "", "x", "\x1b[31m", "a\nb", "\u202e", "\ud800",
    "y" * 200_000, [], [1], [[]], {}, {"": 1}, NESTED,
]  # fmt: skip


def places(tree, at=()):
    """All places in a row, of a list the first alone."""
    if at:
        yield at
    for key, value in tree.items() if isinstance(tree, dict) else list(enumerate(tree))[:1]:
        yield from places(value, (*at, key)) if isinstance(value, dict | list) else [(*at, key)]


def put(at, value):
    row = inner = copy.copy(ROW)
    for key in at[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    inner[at[-1]] = value
    return row


def answer(row):
    """What is said against a row; nothing where it passes. Another exception than that of a mistake fails the test."""
    try:
        check_row(row)
    except VitposError as error:
        return str(error)
    return ""


def refusal(row):
    said = answer(row)
    assert said
    return said


def test_all_committed_rows_pass():
    assert len(COMMITTED) > 90
    for row in COMMITTED:
        check_row(row)


def test_whatever_stands_in_a_field_the_answer_is_one_line():
    said = [found for at in places(ROW) for value in HOSTILE if (found := answer(put(at, value)))]
    assert len(said) > 1000
    assert [text for text in said if len(text) > 300 or not text.isprintable()] == []


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (("metrics", "test/accuracy"), 5.0, "metrics.test/accuracy is 5.0; allowed: a number from 0 to 1"),
        (("metrics", "test/accuracy"), -0.2, "from 0 to 1"),
        (("metrics", "test/accuracy"), "0.5", "from 0 to 1"),
        (("metrics", "test/loss"), math.nan, "metrics.test/loss is nan; allowed: a number"),
        (("metrics",), [1], "metrics is [1]; allowed: keys and values"),
        (("seconds",), 10**400, "seconds is 1000"),
        (("seed",), 1.0, "seed is 1.0; allowed: a whole number from 0"),
        (("seed",), 7, "seed is 7; allowed: seed_everything of its config"),
        (("per_class", "count", 0), 10**12, "per_class.count is '1000000000"),
        (("per_class", "correct", 0), 37, "per_class.correct"),
        (("per_class", "names"), ["a"], "per_class is 'lists of several lengths'"),
        (("right",), "AAAA", "right is 'AAAA'; allowed: base64 of a bit for each of the 359 images"),
        (("right",), "=", "right is '='"),
        (("history", 0, "epoch"), 0, "history[0].epoch is 0; allowed: a whole number from 1"),
        (("history", 0, "val/accuracy"), 2, "history[0].val/accuracy is 2"),
        (("position", "grid"), [10**4, 10**4], "position.similarity is 'of"),
        (("position", "similarity", 0), [1], "position.similarity"),
        (("position", "similarity", 0, 0), 7, "position.similarity"),
        (("axes", "position"), "a\x1b]0;x", r"axes.position is 'a\x1b]0;x'; allowed: one line"),
        (("axes",), {}, "axes.position is missing"),
        (("hash",), "../../etc/xx", "12 hex digits"),
        (("environment", "sources"), "abc", "environment.sources is 'abc'; allowed: a list"),
        (("resolved", "position"), [{"name": "x"}], "resolved.position[0].options is missing"),
        (("config", "position"), 3, "config.position is 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_what_is_allowed(at, value, said):
    assert said in refusal(put(at, value))


@pytest.mark.parametrize("key", ["hash", "config", "metrics", "history", "position", "environment", "data"])
def test_what_a_report_needs_must_be_there(key):
    row = copy.deepcopy(ROW)
    del row[key]
    assert refusal(row) == f"{key} is missing"


def test_history_may_tell_of_a_loss_that_was_infinite_for_a_while():
    check_row(put(("history", 0, "train/loss"), math.inf))
    check_row(put(("history", 0, "val/loss"), None))


@pytest.mark.parametrize("row", [None, [], "x", 3, {}])
def test_no_row_at_all(row):
    refusal(row)


def test_failures():
    failure = {"format": 1, "hash": "0" * 12, "axes": {"position": "x"}, "seed": 0, "error": "why"}
    check_failure(failure)
    with pytest.raises(VitposError, match=r"error is '.x1b"):
        check_failure({**failure, "error": "\x1b[2J"})
