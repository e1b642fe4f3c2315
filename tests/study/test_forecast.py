import json
import math

import pytest

from vitpos.analysis.power import deviation_limits, seeds_for
from vitpos.analysis.terms import Terms
from vitpos.cli.main import main
from vitpos.errors import VitposError
from vitpos.study import forecast, plan
from vitpos.study.results import Results


@pytest.fixture
def told(monkeypatch, capsys, tmp_path):
    """Runs ``vitpos study plan`` with a run of 60 seconds, and returns what it prints."""
    monkeypatch.setattr(forecast, "estimate", lambda study, results: (60.0, "as the test says"))

    def run(file, *options):
        assert main(["study", "plan", str(file), "--results", str(tmp_path / "results"), *options]) == 0
        return capsys.readouterr().out

    return run


SCHEMES = {"position": ["none", "learned", "sinusoidal_1d", "sinusoidal_2d"]}


HOLM = {"axes": SCHEMES, "correction": "holm"}


def test_it_says_seeds_power_and_time(told, study_file):
    printed = told(study_file(**HOLM, seeds=list(range(8)), margin=2.0), "--sd", "1.5", "--workers", "2")
    assert "3 comparisons with learned, 8 seeds, margin 2, alpha 0.05, each at 0.017" in printed
    assert "a run takes some 1 min 00 s (as the test says); 4 runs a seed, 2 at a time: 2 min 00 s a seed" in printed
    assert "16 min 00 s in all" in printed
    assert "1.5 points, as stated with --sd" in printed
    for power in (0.8, 0.95):
        seeds = seeds_for(power, 2.0, 1.5, 0.05 / 3)
        assert f"{seeds} ({2 * seeds} min 00 s)" in printed
    assert "cannot" not in printed


def test_it_warns_of_what_is_out_of_reach(told, study_file):
    printed = told(study_file(**HOLM, seeds=[0, 1, 2]), "--sd", "1")
    assert "3 seeds cannot show a difference, however large, since the sign-flip test cannot get below 2/2^3" in printed
    assert "7 seeds can reach 0.017" in printed
    assert "3 seeds cannot show equivalence since" in printed
    assert "6 seeds can reach 0.017" in printed
    printed = told(study_file(axes=SCHEMES, seeds=list(range(8)), margin=0.0), "--sd", "1")
    assert "with a margin of 0 nothing can be shown to be equivalent" in printed
    printed = told(study_file(axes=SCHEMES, seeds=list(range(8)), margin=0.5), "--sd", "3")
    assert "likely to stay undecided" in printed


def test_one_seed_too_few_is_too_few(told, study_file):
    printed = told(study_file(**HOLM, seeds=list(range(6))), "--sd", "1")
    assert "6 seeds cannot show a difference" in printed
    assert "cannot show equivalence" not in printed
    assert "cannot" not in told(study_file(**HOLM, seeds=list(range(7))), "--sd", "1")


def test_eight_comparisons_take_nine_seeds_by_holm_and_six_jointly(told, study_file):
    many = {"position": ["learned", *(f"learned(scale=0.{n})" for n in range(1, 9))]}
    assert "9 seeds can reach 0.0063" in told(study_file(axes=many, seeds=[0], correction="holm"), "--sd", "1")
    printed = told(study_file(axes=many, seeds=[0]), "--sd", "1")
    assert "alpha 0.05, jointly" in printed
    assert "6 seeds can reach 0.05" in printed


def test_comparisons_are_counted_as_the_verdicts_are(told, study_file):
    """A scheme without the option is compared with the reference at each of its values."""
    axes = {"position": ["none", "learned", "sinusoidal_1d", "sinusoidal_2d"], "position.scale": [0.02, 0.7071]}
    assert "6 comparisons with learned" in told(study_file(axes=axes), "--sd", "1")
    axes = {"position": ["none", "learned", "sinusoidal_1d", "cpe"], "position.scale": [0.02, 0.2, 0.7071]}
    assert "9 comparisons with learned" in told(study_file(axes=axes), "--sd", "1")


def test_without_a_deviation_it_gives_examples(told, study_file):
    printed = told(study_file(axes=SCHEMES, margin=2.0))
    assert "not known; state one with --sd, or run two seeds. Three examples:" in printed
    assert printed.count("seeds to show") == 3


def test_deviation_and_time_are_measured_where_there_are_results(done, capsys):
    for path in done.folder.glob("runs/*/result.json"):
        row = json.loads(path.read_text())
        row["metrics"]["test/accuracy"] = 0.5 + (0.04 if row["axes"]["position"] == "none" and row["seed"] else 0)
        path.write_text(json.dumps(row))
    assert main(["study", "plan", str(done.file), "--results", str(done.results)]) == 0
    printed = capsys.readouterr().out
    assert "2.83 points, the largest of 1 comparison, that of none on 2 pairs" in printed  # 4 / sqrt(2)
    for limit in deviation_limits(4 / 2**0.5, 2):
        assert f"if it is {limit:.2g} points" in printed
    assert "measured: mean of 4 finished runs of this study on this hardware" in printed


def test_where_the_study_cannot_run_the_time_is_not_known(study_file, tmp_path, capsys):
    file = study_file(overrides={"data.name": "cifar10", "data.root": str(tmp_path)})
    study = plan.load(file)
    assert forecast.forecast(study, Results(tmp_path / "results"), 1.0, None) == 0
    printed = capsys.readouterr().out
    assert "the time is not known: " in printed
    assert "seeds to show\n" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sd", "0"], "the deviation of paired differences is 0.0; it must be above 0 percentage points"),
        (["--sd", "much"], "--sd: invalid float value: 'much'"),
    ],
)
def test_a_deviation_that_is_none(study_file, capsys, options, message):
    assert main(["study", "plan", str(study_file()), *options]) == 2
    assert message in capsys.readouterr().err


def test_nothing_to_compare(study_file, capsys):
    assert main(["study", "plan", str(study_file(axes={"position": ["learned"]})), "--sd", "1"]) == 2
    assert "nothing to compare: the study has no position but the reference" in capsys.readouterr().err


def test_plan_of_a_study():
    comparison = Terms("first", "", "learned", margin=1.0, correction="holm")
    goals = forecast.plan_seeds(comparison, 8, 5, sd=0.6)
    one, two, equal = goals
    assert one.what == "a difference of the margin (1 points)"
    assert [goal.power for goal in goals] == [0, 0, 0]
    assert one.seeds_80 == seeds_for(0.8, 1.0, 0.6, 0.05 / 8)
    assert two.seeds_95 == seeds_for(0.95, 2.0, 0.6, 0.05 / 8)
    assert equal.seeds_95 == seeds_for(0.95, 0.0, 0.6, 0.05 / 8, margin=1.0)
    assert 9 <= two.seeds_80 <= one.seeds_80 < one.seeds_95
    more = forecast.plan_seeds(comparison, 8, one.seeds_80, sd=0.6)
    assert more[0].power >= 0.8


def test_plan_without_a_margin_has_no_goals_that_can_be_reached():
    goals = forecast.plan_seeds(Terms("first", "", "learned", margin=0.0), 2, 5, sd=0.6)
    assert [(goal.seeds_80, goal.seeds_95, goal.power) for goal in goals] == [(None, None, 0.0)] * 3


@pytest.mark.parametrize(("comparisons", "sd", "message"), [
    (1, 0.0, r"the deviation of paired differences is 0\.0; it must be above 0"), (1, math.nan, "is nan"),
    (0, 1.0, "nothing to compare"),
])  # fmt: skip
def test_plans_that_make_no_sense(comparisons, sd, message):
    with pytest.raises(VitposError, match=message):
        forecast.plan_seeds(Terms("first", "", "learned"), comparisons, 5, sd)
