import shutil
import subprocess

import pytest

from vitpos import provenance


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files that provenance looks at in place of vitpos."""
    folder = tmp_path / "proj" / "vitpos"
    (folder / "train").mkdir(parents=True)
    (folder / "analysis").mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "train" / "task.py").write_text("loss = 1")
    monkeypatch.setattr(provenance, "PACKAGE", folder)
    return folder


def fresh(function):
    return function.__wrapped__()


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_digest_changes_with_any_file_that_trains_and_with_no_other(package):
    before = fresh(provenance.sources)
    (package / "analysis" / "report.py").write_text("words")
    assert fresh(provenance.sources) == before
    (package / "train" / "task.py").write_text("loss = 2")
    edited = fresh(provenance.sources)
    (package / "train" / "task.py").rename(package / "train" / "other.py")
    renamed = fresh(provenance.sources)
    (package / "train" / "new.py").write_text("")  # an untracked scheme, say
    assert len({before, edited, renamed, fresh(provenance.sources)}) == 4


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_is_that_of_vitpos_never_of_the_repository_around_it(package):
    assert fresh(provenance.commit) == "unknown"  # no repository at all
    git(package.parent, "init")
    git(package.parent, "commit", "--allow-empty", "-m", "paper")
    assert fresh(provenance.commit) == "unknown"  # a wheel in the virtual environment of somebody's repository
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "vitpos")
    clean = fresh(provenance.commit)
    assert len(clean) == 10
    (package / "untracked.py").write_text("")
    assert fresh(provenance.commit) == clean + "+"
