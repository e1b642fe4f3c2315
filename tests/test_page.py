"""The page: well-formed, self-contained, accessible, and nothing of a user's becomes markup."""

import base64
import re
from html.parser import HTMLParser

import pytest

from vitpos.page import page
from vitpos.text import code, escape, paragraph

EVIL = "</p><script>alert('x')</script> & \"quoted\" <img src=http://x> [y](javascript:z) ![w](http://v) **s** _e_"
VOID = {"meta", "img", "br"}
MARKDOWN = f"""# {escape(EVIL)}

{paragraph("# " + EVIL)}

> **Answer** {escape(EVIL)}

- {escape(EVIL)}

## Part & 1?

![{escape(EVIL)}](figures/p.png)

*{escape(EVIL)}*

| scheme | y | note |
| --- | ---: | --- |
| {code("a|b " + EVIL).replace("|", chr(92) + "|")} | −1.0 | {escape(EVIL)} |
| `b` | 2.0 |  |

````
{EVIL}
```
````

## Appendix

### A fold

- {code(EVIL)}
"""


class Tree(HTMLParser):
    """Elements with their attributes and text; an element that is not closed in order is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs, _ in self.found if name == tag]


@pytest.fixture(scope="module")
def text():
    return page(EVIL, MARKDOWN, {"p": b"<svg xmlns='http://www.w3.org/2000/svg'/>"})


@pytest.fixture(scope="module")
def tree(text):
    return Tree(text)


def test_texts_of_users_stay_text(tree):
    assert tree.all("script") == []
    assert len(tree.all("img")) == 1
    said = "".join(data for tag, data in tree.texts if tag != "style")
    assert (
        said.count("alert('x')") == 10
    )  # title, heading, question, answer, warning, caption, two cells, listing, item
    assert said.count("**s** _e_") == 10
    assert "a|b" in said
    assert said.count("# </p>") == 1


def test_nothing_is_loaded(text, tree):
    (image,) = tree.all("img")
    kind, _, data = image["src"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).startswith(b"<svg")
    assert not tree.all("link")
    assert "url(" not in text
    assert "@import" not in text
    assert all(a["href"].startswith("#") for a in tree.all("a"))
    policy = next(meta["content"] for meta in tree.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_is_accessible(tree):
    assert tree.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in tree.all("meta")
    assert [image["alt"] for image in tree.all("img")] == [EVIL]
    assert [th["scope"] for th in tree.all("th")] == ["col"] * 3 + ["row"] * 2
    assert [tag for tag, _, _ in tree.found if tag in ("h1", "h2", "summary")] == ["h1", "h2", "h2", "summary"]
    assert [a["href"] for a in tree.all("a")] == ["#part_1", "#appendix"]
    assert [h2["id"] for h2 in tree.all("h2")] == ["part_1", "appendix"]
    assert [section["aria-labelledby"] for section in tree.all("section")] == ["part_1", "appendix"]
    assert tree.all("blockquote") == [{"class": "answer"}]
    assert tree.all("ul")[0] == {"class": "warnings"}


def test_what_is_wide_scrolls_in_a_box_of_its_own_that_the_keyboard_reaches(text, tree):
    (inside,) = (path for name, _, path in tree.found if name == "table")
    assert inside[-1] == "div"
    (box,) = tree.all("div")
    assert (box["class"], box["tabindex"], box["role"], box["aria-label"]) == (
        "scroll",
        "0",
        "region",
        "Table: scheme, y, note",
    )
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", text)
    assert tree.all("pre") == [{"tabindex": "0"}]
    assert [path[-2:] for name, _, path in tree.found if name in ("img", "figcaption")] == [("section", "figure")] * 2


def colours(text, dark):
    light_block, dark_block = re.findall(r":root \{([^}]*)\}", text)
    found = dict(re.findall(r"--(\w+): (#\w{6})", light_block))
    return {**found, **dict(re.findall(r"--(\w+): (#\w{6})", dark_block))} if dark else found


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(text, dark):
    found = colours(text, dark)

    def contrast(one, other):
        low, high = sorted(luminance(found[name]) for name in (one, other))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast("text", back) for back in ("back", "card", "warn")) >= 7  # WCAG 2.2, AAA
    assert contrast("muted", "back") >= 5
    assert contrast("link", "back") >= 5
    assert colours(text, True) != colours(text, False)
