import pytest
from rows import make_row as row
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from vitpos.errors import VitposError
from vitpos.study.summary import write_curves


def test_mean_low_and_high_over_seeds(tmp_path):
    rows = [row(p, s, 0.5 + 0.1 * s) for p in ("none", "x(a=1)") for s in range(3)]
    folder = write_curves(rows, tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["none", "x_a=1"]
    assert [p.name for p in (folder / "none").iterdir()] == ["events.out.tfevents.summary"]
    events = EventAccumulator(str(folder / "none")).Reload()
    values = [[h["val/accuracy"] for h in r["history"]] for r in rows[:3]]
    for name, reduce in (("mean", lambda v: sum(v) / 3), ("low", min), ("high", max)):
        found = events.Scalars(f"val/accuracy/{name}")
        assert [e.step for e in found] == list(range(1, 10))
        assert [e.value for e in found] == pytest.approx([reduce(v) for v in zip(*values, strict=True)])
    assert events.Scalars("train/loss/mean")[1].value == pytest.approx(1.15)
    (layout,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0])
    series = [chart.margin.series[0] for chart in layout.category[0].chart]
    assert [(s.value, s.lower, s.upper) for s in series] == [
        (f"{m}/mean", f"{m}/low", f"{m}/high") for m in ("val/accuracy", "train/loss")
    ]


def test_rewriting_replaces_what_was_there(tmp_path):
    write_curves([row("old", 0, 0.5)], tmp_path)
    write_curves([row("a b", 0, 0.5), row("a:b", 0, 0.5)], tmp_path)  # the same slug
    assert [p.name[:4] for p in (tmp_path / "tensorboard").iterdir()] == ["a_b-", "a_b-"]
    assert [p.name for p in tmp_path.iterdir()] == ["tensorboard"]


def test_refusals(tmp_path):
    with pytest.raises(VitposError, match="no finished runs"):
        write_curves([], tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitposError, match=r"cannot write .*tensorboard"):
        write_curves([row("x", 0, 0.5)], tmp_path / "file")


def test_any_label_names_a_folder_of_its_own_inside(tmp_path):
    labels = ["..", ".", "/", "\\", "a" * 300, "a" * 301, "x", "X", "é" * 200, "con", "../../x"]
    write_curves([row(label, 0, 0.5) for label in labels], tmp_path)
    folders = list((tmp_path / "tensorboard").iterdir())
    assert len({folder.name.lower() for folder in folders}) == len(labels)
    assert all((folder / "events.out.tfevents.summary").exists() and folder.name[0] != "." for folder in folders)
    assert [p.name for p in tmp_path.iterdir()] == ["tensorboard"]
