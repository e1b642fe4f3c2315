"""A document as Markdown."""

from matplotlib.figure import Figure

from vitpos.analysis.document import Document, Items, Listing, Picture, Section, picture, to_markdown_page
from vitpos.analysis.tables import Table, names, numbers


def page(*blocks, lead=(), question="Why?"):
    return to_markdown_page(Document("a_b", question, "It `is`.", lead, [Section("Part", blocks), Section("None", ())]))


def test_order_and_empty_sections():
    assert page("text", lead=["lead", Items(["one", "two"])]) == (
        "# a_b\n\nWhy?\n\n**It `is`.**\n\nlead\n\n- one\n- two\n\n## Part\n\ntext\n"
    )
    assert page("text", question="").startswith("# a_b\n\n**It")


def test_pictures_and_tables():
    shown = Table("t", "T", [names("x"), numbers("y")], [["a", 1.0]])
    text = page(Picture("p", Figure(), "what [it] is", "How to read."), shown, Table("h", "H", [], [], shown=False))
    assert (
        "## Part\n\n![what \\[it\\] is](figures/p.png)\n\nHow to read.\n\n| x | y |\n| --- | ---: |\n| `a` | 1.00 |\n"
        in text
    )
    assert text.endswith("| 1.00 |\n")
    assert picture("p", None, "nothing") == []


def test_listings_end_where_they_end():
    assert "\n````\na\n```\nb\n````\n" in page(Listing("a\n```\nb\n"))
    assert "\n```\na\n```\n" in page(Listing("a"))


def test_texts_of_users_make_no_structure():
    text = page(
        "# no\nheading", "1. no list", "> no quotation", Items(["one\n\ntwo"]), question="<script>x</script>\n# y"
    )
    for line in ("\\# no heading", "\\1. no list", "\\> no quotation", "- one two", "\\<script>x\\</script> # y"):
        assert f"\n{line}\n" in text
