"""Markdown as one self-contained HTML page: no script, font, other file or network."""

import base64
from collections.abc import Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import jinja2
import markdown
from markdown.treeprocessors import Treeprocessor
from markupsafe import Markup

from vitpos.text import slug


def page(title: str, text: str, images: Mapping[str, bytes]) -> str:
    """Converts Markdown to an HTML page.

    What comes before the first section is the lead: a block quote in it is the answer, a list its warnings. Headings of
    the second level start sections, those of the third level parts that fold.

    Args:
        title: Title of the page.
        text: The Markdown; HTML in it is shown, not interpreted.
        images: SVG of each image in the text, by the stem of its file.

    Returns:
        The page. Images are embedded as ``data:`` URLs, and a policy in its head forbids loading anything else.
    """
    converter = markdown.Markdown(extensions=["tables", "fenced_code", "sane_lists"], output_format="html")
    converter.preprocessors.deregister("html_block")
    for name in ("html", "autolink", "automail"):
        converter.inlinePatterns.deregister(name)
    converter.treeprocessors.register(_Page(images), "page", 15)  # after inline code, before indentation
    loader = jinja2.PackageLoader("vitpos")
    environment = jinja2.Environment(loader=loader, autoescape=True, keep_trailing_newline=True)
    css = loader.get_source(environment, "page.css")[0]
    body = converter.convert(text).replace("<pre>", '<pre tabindex="0">')  # a box that scrolls, also by the keyboard
    return environment.get_template("page.html.j2").render(title=title, style=Markup(css), body=Markup(body))


class _Page(Treeprocessor):  # type: ignore[misc]
    """Rearranges elements into figures, scroll boxes, row headers, sections, and parts that fold."""

    def __init__(self, images: Mapping[str, bytes]) -> None:
        super().__init__()
        self.images = images

    def run(self, root: Element) -> None:
        """Rearranges the children of the page."""
        items = list(root)
        for item in items:
            root.remove(item)
        place, section, sections = root, root, list[Element]()
        for item in items:
            if item.tag == "h2":
                sections.append(item)
                item.set("id", slug("".join(item.itertext()).lower()))
                place = section = SubElement(root, "section", {"aria-labelledby": item.get("id", "")})
            elif item.tag == "h3":
                place = SubElement(section, "details")
                item.tag = "summary"
            elif not sections and (name := {"blockquote": "answer", "ul": "warnings"}.get(item.tag)):
                item.set("class", name)
            if item.tag == "p" and len(item) == 1 and item[0].tag == "em" and len(place) and place[-1].tag == "figure":
                item.tag = "figcaption"
                place[-1].append(item)
            else:
                place.append(self.boxed(item))
        nav = Element("nav", {"aria-label": "Sections"})
        listed = SubElement(nav, "ul")
        for heading in sections:
            link = SubElement(SubElement(listed, "li"), "a", {"href": f"#{heading.get('id')}"})
            link.text = "".join(heading.itertext())
        root.insert(next((i for i, item in enumerate(root) if item.tag == "section"), len(root)), nav)

    def boxed(self, item: Element) -> Element:
        """Wraps what may be wider than the page in a box that scrolls by itself, also by the keyboard."""
        if item.tag == "p" and len(item) == 1 and item[0].tag == "img":
            image = item[0]
            data = base64.b64encode(self.images[Path(image.get("src", "")).stem]).decode()
            image.set("src", f"data:image/svg+xml;base64,{data}")
            item.tag = "figure"
            item.set("tabindex", "0")  # scrolls on a phone
        if item.tag == "table":
            head, body = item
            for cell in head.iter("th"):
                cell.set("scope", "col")
            for row in body:
                row[0].tag = "th"
                row[0].set("scope", "row")
            for cell in item.iter("code"):
                cell.text = (cell.text or "").replace("\\|", "|")
            label = ", ".join("".join(cell.itertext()) for cell in list(head.iter("th"))[:3])
            box = Element("div", {"class": "scroll", "role": "region", "tabindex": "0"})
            box.set("aria-label", f"Table: {label}")
            box.append(item)
            return box
        return item
