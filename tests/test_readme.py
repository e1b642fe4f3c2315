"""The README's code runs, its commands are understood, and its numbers are those of the report."""

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from vitpos import positions
from vitpos.cli import main as cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [shlex.split(line) for language, code in BLOCKS if language == "bash" for line in code.splitlines()]


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_runs(code, monkeypatch):
    monkeypatch.setattr(positions.base, "_registry", dict(positions.base._registry))
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_is_understood(words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    match words:
        case ["bash", script]:
            subprocess.run(["bash", "-n", script], check=True)
        case ["python", script]:
            compile(Path(script).read_text(), script, "exec")
        case ["vitpos", "positions" | "show" | "check", *_]:
            assert cli.parser().parse_args(words[1:]).command
        case ["vitpos", "study", _, file, *_]:
            assert cli.parser().parse_args(words[1:]).file == Path(file)
            assert Path(file).exists()
        case ["vitpos", "fit", *options]:
            with pytest.raises(SystemExit) as end:
                cli.main(["fit", *(word for word in options if word != "--print_config"), "--print_config"])
            assert end.value.code == 0
            assert "position:" in capsys.readouterr().out
        case ["tensorboard", "--logdir", folder]:
            assert list(Path(folder).rglob("events.out.tfevents.*"))
        case _:
            pytest.fail(f"no test knows this command: {' '.join(words)}")


def test_every_scheme_is_listed_with_its_options():
    listed = {}
    for name, described in re.findall(r"^\| `(\w+)` \| [^|]+ \|([^|]*)\|$", README.split("## Run a")[0], re.MULTILINE):
        listed[name] = set(re.findall(r"`(\w+)(?:=[^`]*)?`", described))
        for option, default in re.findall(r"`(\w+)=([^`]*)`", described):
            assert positions.options(name).get(option) == ast.literal_eval(default), f"{name}({option}={default})"
    assert set(listed) == set(positions.available())
    assert listed == {name: set(positions.options(name)) for name in listed}


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_table_of_the_first_answer_is_that_of_its_report():
    report = (ROOT / "results/cifar10_first/report.md").read_text()
    section = README.split("## A first answer")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) >= 5
    assert [row for row in rows if row not in report] == []


def test_the_table_of_speed_is_that_of_the_benchmark():
    measured = (ROOT / "results/bench/bench.md").read_text()
    rows = [line for line in README.split("## Speed")[1].split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) == 9
    assert [row for row in rows if row not in measured] == []
