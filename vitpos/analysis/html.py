"""A document as one HTML page that needs nothing beside it: no script, no font, no file, no network."""

import base64
import html
import re
from collections.abc import Mapping, Sequence

from vitpos.analysis.document import Block, Document, Items, Listing, Picture, Section
from vitpos.analysis.markup import to_html
from vitpos.analysis.tables import Column, Table
from vitpos.errors import visible

# Text has a contrast of at least 7 to its background, muted text and links of at least 5.
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f23; --muted: #57606a; --back: #ffffff; --card: #f3f5f8; --line: #d0d7de;
  --link: #0b57a4; --warn: #fff4d6; --edge: #b7791f; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e8eb; --muted: #a3adb8; --back: #14181d; --card: #1e242b;
  --line: #3b444e; --link: #8cbcf2; --warn: #3a2f14; --edge: #d9a441; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--text); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: break-word; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 2.6rem 0 .8rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
p, ul, figure { margin: 0 0 1rem; }
p, li { max-width: 46rem; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
a { color: var(--link); }
code, pre { font: .9em/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { background: var(--card); border-radius: .25em; padding: .08em .3em; overflow-wrap: break-word;
  box-decoration-break: clone; -webkit-box-decoration-break: clone; }
pre code { padding: 0; background: none; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; margin: 0 0 1rem;
  overflow-x: auto; }
.question { color: var(--muted); font-size: 1.1rem; }
.answer { max-width: none; background: var(--card); border-left: .35rem solid var(--link); border-radius: .3rem;
  padding: .9rem 1rem; font-size: 1.12rem; }
.answer strong { font-weight: 600; }
.answer code { background: none; padding: 0; }
.lead li { max-width: none; }
.lead ul { background: var(--warn); border-left: .35rem solid var(--edge); border-radius: .3rem; max-width: none;
  padding: .6rem 1rem .6rem 2rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; }
nav li { margin: 0; }
nav a { display: inline-block; padding: .25rem 0; }
.scroll { max-width: 100%; overflow-x: auto; margin: 0 0 1rem; }
.scroll:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem; line-height: 1.4; }
th, td { padding: .4rem .55rem; border-bottom: 1px solid var(--line); vertical-align: top; text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; border-bottom: 2px solid var(--line); min-width: 4.2rem; }
th[scope=row] { position: sticky; left: 0; background: var(--back); font-weight: 400; }
.text { text-align: left; white-space: normal; }
td.long { min-width: 12rem; }
th[scope=row].text, thead th:first-child { min-width: 11rem; max-width: 20rem; }
.picture { background: #ffffff; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem; margin: 0; }
.picture img { display: block; width: 100%; min-width: 38rem; max-width: 54rem; height: auto; margin: 0 auto; }
figcaption { color: var(--muted); font-size: .92rem; max-width: 46rem; margin-top: .5rem; }
@media (max-width: 40rem) { h1 { font-size: 1.45rem; } h2 { font-size: 1.2rem; }
  th[scope=row].text, thead th:first-child { min-width: 7rem; max-width: 42vw; } }
@media print { nav { display: none; } .scroll { overflow: visible; } .picture img { min-width: 0; }
  tr, figure { break-inside: avoid; } h2 { break-after: avoid; } }
"""


def page(document: Document, pictures: Mapping[str, bytes]) -> str:
    """Writes a document as HTML.

    Args:
        document: The document; what users wrote in it is escaped.
        pictures: SVG of each picture, by name.

    Returns:
        The page. Pictures stand in it as ``data:``, and a policy in its head forbids all else to be loaded.
    """
    sections = [section for section in document.sections if section.blocks]
    links = "".join(f'<li><a href="#{_id(s)}">{to_html(s.title)}</a></li>' for s in sections)
    question = f'<p class="question">{to_html(document.question)}</p>' if document.question.strip() else ""
    body = [
        f"<h1>{to_html(document.title)}</h1>",
        question,
        f'<p class="answer"><strong>{to_html(document.answer)}</strong></p>',
        f'<div class="lead">{_blocks(document.lead, pictures)}</div>',
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        *(
            f'<section aria-labelledby="{_id(s)}">\n<h2 id="{_id(s)}">{to_html(s.title)}</h2>\n'
            f"{_blocks(s.blocks, pictures)}\n</section>"
            for s in sections
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{_escape(document.title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(filter(None, body))}\n</main>\n</body>\n</html>\n"
    )


def _escape(text: str) -> str:
    return html.escape(visible(text))


def _blocks(blocks: Sequence[Block], pictures: Mapping[str, bytes]) -> str:
    return "\n".join(filter(None, (_block(block, pictures) for block in blocks)))


def _block(block: Block, pictures: Mapping[str, bytes]) -> str:
    match block:
        case str():
            return f"<p>{to_html(block)}</p>"
        case Items():
            return f"<ul>{''.join(f'<li>{to_html(line)}</li>' for line in block.lines)}</ul>"
        case Listing():  # a box that scrolls must be reached by the keyboard
            return f'<pre tabindex="0"><code>{_escape(block.text.strip())}</code></pre>'
        case Picture():
            data = base64.b64encode(pictures[block.name]).decode()
            image = f'<img src="data:image/svg+xml;base64,{data}" alt="{_escape(block.alt)}">'
            caption = f"<figcaption>{to_html(block.caption)}</figcaption>" if block.caption else ""
            return f"<figure>{_scroll(image, block.alt.split(':')[0], 'scroll picture')}{caption}</figure>"
        case Table():
            return _scroll(_table(block), block.title) if block.shown else ""


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_side(column)}>{to_html(column.head)}</th>' for column in table.columns)
    first, *others = table.columns
    body = "\n".join(
        f'<tr><th scope="row"{_side(first)}>{to_html(name)}</th>'
        + "".join(f"<td{_side(c)}>{to_html(cell)}</td>" for c, cell in zip(others, cells, strict=True))
        + "</tr>"
        for name, *cells in table.cells()
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _scroll(inner: str, label: str, kind: str = "scroll") -> str:
    """Puts what may be wider than the page into a box that scrolls by itself, also by the keyboard."""
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{_escape(label)}">{inner}</div>'


def _side(column: Column) -> str:
    kind = "text long" if column.write is str else "text"
    return f' class="{kind}"' if column.left else ""


def _id(section: Section) -> str:
    return re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-")
