"""One text in four formats: what a user wrote comes out as it is, and never as markup of the format."""

import pytest

from vitpos.analysis.markup import code, strong, to_html, to_latex, to_markdown, to_plain


@pytest.mark.parametrize(
    ("text", "markdown", "html", "latex", "plain"),
    [
        ("a & b", "a & b", "a &amp; b", r"a \& b", "a & b"),
        ("`a<b`", "`a<b`", "<code>a&lt;b</code>", r"\texttt{a\textless{}b}", "a<b"),
        ("**so `x`**", "**so `x`**", "<strong>so <code>x</code></strong>", r"\textbf{so \texttt{x}}", "so x"),
        ("<b> 2 < 3", r"\<b> 2 < 3", "&lt;b&gt; 2 &lt; 3", r"\textless{}b\textgreater{} 2 \textless{} 3", "<b> 2 < 3"),
        ("5 * 6 ` 7", "5 * 6 ` 7", "5 * 6 ` 7", "5 * 6 ` 7", "5 * 6 ` 7"),
        ("a_b 95 %", "a_b 95 %", "a_b 95 %", r"a\_b 95 \%", "a_b 95 %"),
        ("[-1.20, +0.5]", "[-1.20, +0.5]", "[-1.20, +0.5]", "$[-1.20, +0.5]$", "[-1.20, +0.5]"),
        ("<0.001", "<0.001", "&lt;0.001", "$<0.001$", "<0.001"),
        ("683,050", "683,050", "683,050", "$683{,}050$", "683,050"),
        ("-", "-", "-", "-", "-"),
    ],
)
def test_formats(text, markdown, html, latex, plain):
    assert to_markdown(text) == markdown
    assert to_html(text) == html
    assert to_latex(text) == latex
    assert to_plain(text) == plain


def test_marking():
    assert code("a`b\n c") == "`a'b c`"
    assert code("") == "` `"
    assert to_html(code("**no**")) == "<code>**no**</code>"
    assert strong("x") == "**x**"


def test_a_long_name_may_break_between_its_parts_in_html():
    assert to_html(code("a_b(c=1, d=2)+e")) == "<code>a_b<wbr>(c=1,<wbr> d=2)<wbr>+e</code>"
    assert to_html(code("m.py:A")) == "<code>m.py:<wbr>A</code>"


def test_what_is_in_code_is_escaped_before_it_may_break():
    assert to_html(code("'/<")) == "<code>&#x27;/<wbr>&lt;</code>"
