"""A comparison of a scheme with itself, by real runs on digits, finds no difference."""

from pathlib import Path

import pytest
import yaml

from vitpos.analysis.runs import frame
from vitpos.analysis.verdict import verdicts
from vitpos.cli.main import main
from vitpos.study import plan
from vitpos.study.results import Results

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_a_scheme_under_two_names_is_undecided_or_equivalent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT / "configs" / "studies")  # of the file that it names
    study = yaml.safe_load(Path("aa_digits.yaml").read_text())
    study.update(base=str(ROOT / "configs/vit_digits.yaml"), overrides={"trainer.max_epochs": 2}, seeds=list(range(6)))
    file = tmp_path / "aa.yaml"
    file.write_text(yaml.safe_dump(study))
    assert main(["study", "run", str(file), "--results", str(tmp_path)]) == 0
    loaded = plan.load(file)
    rows, failures = Results(tmp_path / "aa").collect(loaded)
    (found,) = verdicts(frame(rows, loaded.comparison.metric), loaded.comparison, failures).itertuples()
    assert found.n == 6
    assert found.sd > 0  # two draws of one scheme, not one run twice
    assert found.verdict in ("undecided", "equivalent")
    assert "again.py:Again" in capsys.readouterr().out
