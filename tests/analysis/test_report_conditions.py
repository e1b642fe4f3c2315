"""Tuning, caveats, and what it takes to repeat a study."""

from vitpos.analysis.comparison import Comparison
from vitpos.analysis.document import Items, Listing
from vitpos.analysis.evidence import Background, gather
from vitpos.analysis.report_conditions import caveats, common, mixed, repeat, tuning

PLAN = Comparison("first", "Why?", "learned")


def choice(position, values, scores, edge=(), error=""):
    points = [({"model.lr": lr}, score) for lr, score in zip((0.1, 0.2, 0.3), scores, strict=True)]
    return {"axes": {"position": position}, "values": values, "scores": points, "edge": edge, "error": error}


def test_tuning_shows_grid_choice_and_edge(row):
    choices = [
        choice("learned", {"model.lr": 0.2}, (0.4, 0.512, 0.3)),
        choice("x", {"model.lr": 0.1}, (0.6, None, 0.3), edge=("model.lr",)),
        choice("y", None, (None, None, None), error="no value of model.lr can be chosen"),
        choice("z", None, (None, None, None)),
    ]
    background = Background(tuning=choices, tuning_seeds=[1000, 1001])
    text, table, warning = tuning(gather(PLAN, [row("learned", 0, 0.5)], [], background)).blocks
    assert "each of 3 values of `model.lr`" in text
    assert "on seeds 1000, 1001, which no verdict uses" in text
    assert [column.head for column in table.columns] == [
        "scheme", "model.lr 0.1", "model.lr 0.2", "model.lr 0.3", "chosen",
    ]  # fmt: skip
    assert table.rows == [
        ["learned", "40.00", "**51.20**", "30.00", "model.lr 0.2"],
        ["x", "**60.00**", "no score", "30.00", "model.lr 0.1 (the edge of model.lr)"],
        ["y", "no score", "no score", "no score", "no value of model.lr can be chosen"],
        ["z", "no score", "no score", "no score", "not yet chosen, trials are missing"],
    ]
    assert warning.startswith("At the edge of its grid, so that the best value may lie outside it: `x`.")


def test_without_tuning_there_is_nothing_to_say(row):
    assert tuning(gather(PLAN, [row("learned", 0, 0.5)], [], Background())).blocks == ()


def test_failures_cannot_break_the_page(row):
    failure = {"axes": {"position": "x"}, "seed": 3, "error": "bad `code`\n# and <b>"}
    (items,) = caveats(gather(PLAN, [row("learned", 0, 0.5)], [failure], Background())).blocks
    assert "Failed: `x`, seed 3: `bad 'code' # and <b>`" in items.lines


def test_what_was_read_once_is_said_of_the_test_images_only(row):
    rows = [row("learned", 0, 0.5)]
    for metric, text in (("test/accuracy", "read once"), ("val/accuracy", "about validation accuracy")):
        (items,) = caveats(gather(Comparison("n", "q", "learned", metric), rows, [], Background())).blocks
        assert isinstance(items, Items)
        assert text in items.lines[1]


def test_mixed_runs_are_counted(row):
    rows = [row("learned", s, 0.5, torch="2.13.0" if s else "2.14.1") for s in range(3)]
    assert mixed(rows) == {"torch": {"2.14.1": 1, "2.13.0": 2}}
    rows[0]["format"] = 0
    assert mixed(rows)["format of the rows"] == {"0": 1, "1": 2}


def test_repeating(row):
    rows = [row("learned", s, 0.5) for s in range(2)]
    blocks = repeat(gather(PLAN, rows, [], Background(text="question: x\n"))).blocks
    listings = [block.text for block in blocks if isinstance(block, Listing)]
    assert listings[0] == (
        "pip install torch==2.14.1 timm==1.0.31 lightning==2.6.6\n"
        "vitpos study run configs/studies/first.yaml --results repeated"
    )
    assert listings[1] == "question: x\n"
    assert "abc1234" in blocks[0]


def test_what_is_common_is_nested():
    one, other = {"a": {"b": 1, "c": 2}, "d": 3, "e": {}}, {"a": {"b": 1, "c": 3}, "d": 3, "f": 1}
    assert common([one, other]) == {"a": {"b": 1}, "d": 3}
