"""Parsing scheme texts, and loading schemes from files and installed packages."""

import ast
import difflib
import hashlib
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import EntryPoints, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from vitpos.errors import VitposError

# A string literal, which is left unchanged, or a class in a file in place of a name.
_IN_FILE = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|(?<![^+])\s*([^+()'"\n\0]+\.py:\w+)""")
_place = ContextVar("place", default=Path())
_loaded: dict[Path, tuple[bytes, ModuleType]] = {}


def parse(text: str) -> list[tuple[str, dict[str, object]]]:
    """Parses the text of a scheme into the names and options of its parts, in order.

    A name is an identifier, or ``path/to/file.py:Class``; the path must not contain any of ``+ ( ) ' "``. Only the
    syntax is checked, so schemes that do not exist are parsed too.

    Raises:
        VitposError: The text is not of the form ``name(option=value, ...)+...`` with Python literals as values.
    """
    try:
        return _parts(ast.parse(_IN_FILE.sub(lambda m: m[1] or repr(m[2].strip()), text.strip()), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
        raise VitposError(
            f"cannot read position scheme {text!r}; write name, name(option=value, ...) with plain values, a+b, or "
            "file.py:Class in place of a name"
        ) from None


def _parts(node: ast.expr) -> list[tuple[str, dict[str, object]]]:
    """Walks the syntax tree of a text; raises ValueError for anything unexpected."""
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _parts(left) + _parts(right)
        case ast.Call(func=ast.Name() | ast.Constant() as named, args=[], keywords=keywords):
            given = {k.arg: ast.literal_eval(k.value) for k in keywords if k.arg}
            if len(given) == len(keywords):  # else an option is repeated or unpacked by **
                return [(_parts(named)[0][0], given)]
        case ast.Name(id=name):
            return [(name, {})]
        case ast.Constant(value=str(name)) if _IN_FILE.fullmatch(name):
            return [(name, {})]
    raise ValueError


@contextmanager
def looking_in(folder: Path) -> Iterator[None]:
    """Context in which relative file paths are looked up in a folder (that of a study) before the current one."""
    before = _place.set(folder)
    try:
        yield
    finally:
        _place.reset(before)


def split(name: str) -> tuple[str, str] | None:
    """Splits a name from `parse` into file and class; None if it does not name a file."""
    file, colon, cls = name.rpartition(":")
    return (file, cls) if colon else None


def copy_in(folder: Path, file: str) -> Path:
    """Names the copy of a file of a scheme in a folder, which `looking_in` takes in place of the file itself.

    Whatever path it is named by: on another machine neither it nor the folder it is relative to need exist.
    """
    return folder / f"scheme-{hashlib.sha256(file.encode()).hexdigest()[:12]}.py"


def digests(text: str) -> dict[str, str]:
    """Returns the SHA-256 hex digest of each file that a scheme text names.

    Raises:
        VitposError: The text cannot be parsed, or a file cannot be read.
    """
    files = [found[0] for name, _ in parse(text) if (found := split(name))]
    return {file: hashlib.sha256(_read(file)[1]).hexdigest() for file in files}


def source(file: str) -> bytes:
    """Returns the content of a file of a scheme (errors as `digests`)."""
    return _read(file)[1]


def load(file: str) -> ModuleType:
    """Imports a file as a separate module, once for each version of its contents.

    The module is in ``sys.modules`` under a name derived from its path, so that its classes can be pickled. A file that
    has changed is imported again and replaces the old module. Its folder is not added to the import path.

    Args:
        file: Path; a relative one is looked up as described in `looking_in`.

    Raises:
        VitposError: The file cannot be read, or importing it raises an exception.
    """
    path, source = _read(file)
    if path in _loaded and _loaded[path][0] == source:
        return _loaded[path][1]
    name = f"{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = spec_from_file_location(name, path)
    if spec is None:
        raise VitposError(f"{file} cannot be imported: it is no Python file")
    module, before = module_from_spec(spec), sys.modules.get(name)
    sys.modules[name] = module
    try:
        # Not by the loader: if a file was saved twice in one second, __pycache__ may hold the old version.
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise VitposError(f"{file} cannot be imported: {_one_line(error, path)}") from error
    _loaded[path] = source, module
    return module


def loaded(file: str) -> bool:
    """Returns whether `load` has imported this file before."""
    return Path(file).expanduser().resolve() in _loaded


def _read(file: str) -> tuple[Path, bytes]:
    """Returns a file's resolved path and contents."""
    given = Path(file).expanduser()
    places = (copy_in(_place.get(), file), _place.get() / given)
    given = next((path for path in places if path.exists()), given)
    try:
        return given.resolve(), given.read_bytes()
    except FileNotFoundError:
        others = sorted(path.stem for path in given.parent.glob("*.py"))
        near = difflib.get_close_matches(given.stem, others, n=1, cutoff=0.7)
        hint = f"; did you mean {str(given.with_name(near[0] + '.py'))!r}?" if near else ""
        raise VitposError(f"no file {file!r} of a position scheme{hint}") from None
    except OSError as error:
        raise VitposError(f"cannot read {file}: {error.strerror}") from None


def _one_line(error: BaseException, path: Path) -> str:
    """Formats an exception's type, message and line in the file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, error = [error.lineno], type(error)(error.msg)
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ") + where


def installed() -> EntryPoints:
    """Returns the ``vitpos.positions`` entry points of all installed packages, without loading them."""
    return entry_points(group="vitpos.positions")
