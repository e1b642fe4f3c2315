"""Schemes from outside of the package: classes in the user's own file, and entry points of installed packages."""

import copy
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import timm
import torch

import vitpos
from vitpos.errors import VitposError
from vitpos.positions import Geometry, available, base, build, find, options, parse, text
from vitpos.study import plan

GEOMETRY = Geometry((2, 3), embed_dim=8, num_heads=2, depth=2)
FILE = """
import vitpos
from vitpos.positions.learned import Learned

class Shift(vitpos.PositionEmbedding):
    def __init__(self, geometry, *, by=1.0):
        super().__init__(geometry)
        self.by = by

    def tokens(self, x, grid, layer):
        return x + self.by if layer == 0 else x

class Wide(Learned):
    pass

class Positional(vitpos.PositionEmbedding):
    def __init__(self, geometry, by=1.0):
        super().__init__(geometry)

class Helper:
    pass

def function():
    pass
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The file mine.py in the current folder, and what loading it changes put back afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base, "_registry", dict(base._registry))
    monkeypatch.setattr(text, "_loaded", {})
    modules = set(sys.modules)
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    yield file
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("written", "parts"),
    [
        ("mine.py:Shift", [("mine.py:Shift", {})]),
        (" a+ ../x-y z/q.py:E ( b=1 ) ", [("a", {}), ("../x-y z/q.py:E", {"b": 1})]),
        ("/a/b.py:C(d='e')+~/f.py:G", [("/a/b.py:C", {"d": "e"}), ("~/f.py:G", {})]),
        (r"""a(b='c+d.py:E', f="\"+g.py:H")""", [("a", {"b": "c+d.py:E", "f": '"+g.py:H'})]),
    ],
)
def test_text_with_files_is_read(written, parts):
    assert parse(written) == parts


@pytest.mark.parametrize("written", ["mine.py", "mine.py:", "mine.py:A.b", "mine.txt:A", "'learned'", "a(b=mine.py:C)"])
def test_other_texts_with_files_are_one_clear_line(written):
    with pytest.raises(VitposError, match=r"cannot read position scheme .* or file\.py:Class in place of a name$"):
        parse(written)


def test_a_class_of_a_file_is_built_like_any_scheme():
    assert options("mine.py:Shift") == {"by": 1.0}
    both = build("mine.py:Shift(by=2)+mine.py:Shift", GEOMETRY)
    assert both.tokens(torch.zeros(1, 6, 8), (2, 3), 0).unique().tolist() == [3]
    model = timm.create_model("vitpos_nano_patch4_32", position="mine.py:Shift(by=5)+learned")
    assert model.pos_embed.parts[0].by == 5
    wide = build("./mine.py:Wide(scale=3)", GEOMETRY)
    assert (wide.scheme, wide.scale, type(both.parts[0]).scheme) == ("Wide", 3, "Shift")


def test_it_is_loaded_once_and_can_be_pickled_and_copied(own):
    first = build("mine.py:Shift", GEOMETRY)
    assert find(f"{own}:Shift") is type(first)
    assert type(pickle.loads(pickle.dumps(first))) is type(first)
    assert type(copy.deepcopy(first)) is type(first)


def test_an_edited_file_is_loaded_anew(own):
    own.write_text(FILE.replace("by=1.0", "by=7.0"))  # of equal length: neither size nor second tell them apart
    build("mine.py:Shift", GEOMETRY)
    own.write_text(FILE.replace("by=1.0", "by=8.0"))
    second = build("mine.py:Shift", GEOMETRY)
    assert second.by == 8
    assert type(pickle.loads(pickle.dumps(second))) is type(second)
    assert not own.with_name("__pycache__").exists()


def test_a_file_may_register_its_class_too(own):
    own.write_text('import vitpos\n@vitpos.register("shift")\nclass A(vitpos.PositionEmbedding): pass\n')
    assert build("mine.py:A", GEOMETRY).scheme == "shift"
    own.write_text(own.read_text() + "\n")
    assert type(build("mine.py:A", GEOMETRY)) is type(build("shift", GEOMETRY))
    own.write_text(own.read_text().replace('"shift"', '"learned"'))
    with pytest.raises(
        VitposError, match=r"mine.py cannot be imported: VitposError: .*'learned' is already registered"
    ):
        build("mine.py:A", GEOMETRY)


def test_another_process_is_given_the_text():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(options, "mine.py:Shift").result() == {"by": 1.0}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("mien.py:Shift", r"no file 'mien.py' of a position scheme; did you mean 'mine.py'\?$"),
        ("none/mine.py:Shift", r"no file 'none/mine.py' of a position scheme$"),
        ("missing.py:Shift", r"no file 'missing.py' of a position scheme$"),
        (
            "mine.py:Shfit",
            r"unknown scheme in mine.py: 'Shfit'; did you mean 'Shift'\? \(known: Positional, Shift, Wide",
        ),
        ("mine.py:Helper", r"'mine.py:Helper': <class '.*Helper'> is not a class of vitpos.PositionEmbedding"),
        ("mine.py:function", r"<function function at .*> is not a class of vitpos.PositionEmbedding"),
        ("mine.py:Positional", r"'mine.py:Positional': option 'by' must be keyword-only with a default"),
        ("mine.py:Shift(bye=1)", r"unknown option of position scheme 'mine.py:Shift': 'bye'; did you mean 'by'\?"),
        ("folder.py:A", r"cannot read folder.py: Is a directory"),
    ],
)
def test_a_mistake_is_one_clear_line(own, written, message):
    own.with_name("folder.py").mkdir()
    with pytest.raises(VitposError, match=message.replace("(known: mine.py", "(known: .*mine.py")) as error:
        build(written, GEOMETRY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def f():\n    raise KeyError('x\\ny')\nf()", r"KeyError: 'x\\ny' \(line 2\)$"),
        ("import torch\ntorch.zeros(2) + torch.zeros(3)", r"RuntimeError: The size of tensor a .* \(line 2\)$"),
        ("x = 1\ndef (", r"SyntaxError: invalid syntax \(line 2\)$"),
        ("import nothing_of_this_name", r"ModuleNotFoundError: No module named 'nothing_of_this_name' \(line 1\)$"),
        ("raise ValueError('a\\nb')", r"ValueError: a b \(line 1\)$"),
        ("import sys\nsys.exit(3)", r"SystemExit: 3 \(line 2\)$"),
        ("assert False", r"AssertionError \(line 1\)$"),
    ],
)
def test_an_exception_while_importing_says_type_message_and_line(own, code, message):
    before = find("mine.py:Shift")
    own.write_text(code)
    with pytest.raises(VitposError, match=f"^mine.py cannot be imported: {message}"):
        build("mine.py:Shift", GEOMETRY)
    assert sys.modules[before.__module__].Shift is before  # what there was still pickles


def test_the_hash_of_a_run_changes_with_the_file(own, study_file):
    def hashes():
        study = plan.load(study_file(axes={"position": ["learned", "mine.py:Shift(by=2)+learned"]}, seeds=[0]))
        return [run.hash for run in study.runs]

    first = hashes()
    assert hashes() == first
    own.write_text(FILE + "\n")
    second = hashes()
    assert second[0] == first[0]
    assert second[1] != first[1]


def test_a_run_keeps_its_hash_where_the_file_is_edited_later(own, study_file):
    (run,) = plan.load(study_file(axes={"position": ["mine.py:Shift"]}, seeds=[0], reference="mine.py:Shift")).runs
    before = run.hash
    own.write_text(FILE + "\n")
    assert pickle.loads(pickle.dumps(run)).hash == before


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Returns a function that installs a package with entry points."""

    def install(name, points, code):
        folder = tmp_path / f"{name}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (folder / "entry_points.txt").write_text(f"[vitpos.positions]\n{points}\n")
        (tmp_path / f"{name}_module.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_an_entry_point_is_a_scheme_by_its_name(package):
    package("plug", "shifted = plug_module:Shift", FILE)
    assert "shifted" in available()
    assert "plug_module" not in sys.modules
    built = build("shifted(by=4)", GEOMETRY)
    assert (built.scheme, built.by, type(built).__module__) == ("shifted", 4, "plug_module")
    assert find("shifted") is type(built)


@pytest.mark.parametrize(
    ("points", "code", "message"),
    [
        ("plugged = plug_module:Nothing", "", r"plug_module:Nothing fails: AttributeError: module .* has no attribute"),
        ("plugged = plug_module:A", "raise OSError('a\\nb')", r"plug_module:A fails: OSError: a b"),
        (
            "plugged = plug_module:Positional",
            FILE,
            r"plug_module:Positional fails: VitposError: .*must be keyword-only",
        ),
    ],
)
def test_a_broken_entry_point_is_an_error_only_where_it_is_named(package, points, code, message):
    package("plug", points, code)
    assert "plugged" in available()
    build("learned", GEOMETRY)
    with pytest.raises(VitposError, match=f"^position scheme 'plugged' is broken: its entry point {message}") as error:
        vitpos.build("plugged", GEOMETRY)
    assert "\n" not in str(error.value)


def test_a_scheme_of_vitpos_keeps_its_name_and_two_packages_cannot_share_one(package):
    package("plug", "learned = plug_module:Shift\ndouble = plug_module:Shift", FILE)
    assert find("learned").__module__ == "vitpos.positions.learned"
    package("other", "double = other_module:Shift", FILE)
    with pytest.raises(VitposError, match=r"'double' comes with several installed packages: \w+_module:Shift, \w+_mod"):
        find("double")
