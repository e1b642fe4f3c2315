"""Text with code and emphasis, written once and shown as Markdown, HTML, LaTeX or plain text.

The markup is the part of Markdown that a report needs: code between single backticks, strong text between two
asterisks. All other characters stand for themselves, in each of the formats.
"""

import html
import re
from collections.abc import Iterator

from vitpos.errors import visible

_PIECES = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<strong>(?:`[^`]*`|[^`])+?)\*\*|(?P<text>.[^`*]*)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")  # what Markdown would take for HTML
_BREAK = re.compile(r"(?=[(+])|(?<=[,/:])")  # where a long name may go on in the next line
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"},
}  # fmt: skip
_NUMBERS = re.compile(r"(?:<|[-+\d.,\[\] ])*\d(?:[-+\d.,\[\] ])*")


def code(text: object) -> str:
    """Marks text as code; line breaks become spaces, and backticks, which would end it, apostrophes."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39)) or ' '}`"


def strong(text: object) -> str:
    """Marks text as important."""
    return f"**{text}**"


def to_markdown(text: str) -> str:
    """Writes text as Markdown: what looks like an HTML tag stands for itself."""
    return "".join(
        f"`{piece}`" if kind == "code" else f"**{to_markdown(piece)}**" if kind == "strong" else _TAG.sub(r"\\<", piece)
        for kind, piece in _pieces(text)
    )


def to_html(text: str) -> str:
    """Writes text as HTML, escaped."""
    return "".join(
        f"<code>{_BREAK.sub('<wbr>', html.escape(piece))}</code>"
        if kind == "code"
        else f"<strong>{to_html(piece)}</strong>"
        if kind == "strong"
        else html.escape(piece)
        for kind, piece in _pieces(text)
    )


def to_latex(text: str) -> str:
    """Writes text as LaTeX, escaped; numbers and intervals of them in math mode, for a minus that is one."""
    if _NUMBERS.fullmatch(text):
        return f"${re.sub(r'(?<=[0-9]),(?=[0-9])', '{,}', text)}$"
    return "".join(
        f"\\texttt{{{_escape_latex(piece)}}}"
        if kind == "code"
        else f"\\textbf{{{to_latex(piece)}}}"
        if kind == "strong"
        else _escape_latex(piece)
        for kind, piece in _pieces(text)
    )


def to_plain(text: str) -> str:
    """Writes text without any markup."""
    return "".join(to_plain(piece) if kind == "strong" else piece for kind, piece in _pieces(text))


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    for found in _PIECES.finditer(visible(text)):
        yield str(found.lastgroup), found[str(found.lastgroup)]


def _escape_latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
