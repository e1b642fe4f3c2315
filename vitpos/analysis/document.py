"""What a report is made of, apart from how it is shown, and how it is shown as Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from vitpos.analysis.markup import strong, to_markdown
from vitpos.analysis.tables import Table, markdown
from vitpos.errors import visible


@dataclass(frozen=True)
class Items:
    """A list of sentences, each with markup."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Listing:
    """Lines that are shown as they stand: a command, a file."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        name: Stem of its files, such as ``forest``.
        figure: What is drawn.
        alt: What it shows, for those who do not see it; without markup.
        caption: How to read it, with markup; may be empty.
    """

    name: str
    figure: Figure
    alt: str
    caption: str = ""


def picture(name: str, figure: Figure | None, alt: str, caption: str = "") -> "list[Block]":
    """Makes a list of a `Picture`, or of nothing where there was nothing to draw."""
    return [] if figure is None else [Picture(name, figure, alt, caption)]


Block = str | Items | Listing | Picture | Table
"""A text is a paragraph, with markup (see `vitpos.analysis.markup`)."""


@dataclass(frozen=True)
class Section:
    """A part of a report under a heading; one without blocks is left out."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: Its name.
        question: What it answers; may be empty.
        answer: The answer in one sentence, with markup.
        lead: What a reader must know at once.
        sections: All else.
    """

    title: str
    question: str
    answer: str
    lead: Sequence[Block]
    sections: Sequence[Section]

    @property
    def blocks(self) -> list[Block]:
        """All blocks, those of the sections after those of the lead."""
        return [*self.lead, *(block for section in self.sections for block in section.blocks)]


def to_markdown_page(document: Document) -> str:
    """Writes a document as Markdown; pictures are ``figures/<name>.png`` beside it."""
    parts = [f"# {_line(document.title)}", _paragraph(document.question), _paragraph(strong(document.answer))]
    parts += map(_block, document.lead)
    for section in document.sections:
        if section.blocks:
            parts += [f"## {_line(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _block(block: Block) -> str:
    match block:
        case str():
            return _paragraph(block)
        case Items():
            return "\n".join(f"- {_line(line)}" for line in block.lines)
        case Listing():
            fence = "`" * max(3, *(1 + len(run) for run in re.findall("`+", block.text)), 3)
            return f"{fence}\n{visible(block.text.strip())}\n{fence}"
        case Picture():
            alt = re.sub(r"([\[\]\\])", r"\\\1", _line(block.alt))
            return "\n\n".join(filter(None, (f"![{alt}](figures/{block.name}.png)", _paragraph(block.caption))))
        case Table():
            return markdown(block) if block.shown else ""


def _paragraph(text: str) -> str:
    # what begins a heading, a quotation, a list or a rule there, in text of a user's
    return re.sub(r"^([#>+=-]|\d+(?=[.)]))", r"\\\1", _line(text))


def _line(text: str) -> str:
    return " ".join(to_markdown(text).split())
