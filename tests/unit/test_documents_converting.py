"""Pages and books as they really are become texts that are whole, in order, and said once."""

from __future__ import annotations

import io
import zipfile

import pytest

from llmtasks.documents import converting

PACKAGE = """<package><manifest><item id="a" href="a.xhtml#one" media-type="application/xhtml+xml"/>
<item id="b" href="a.xhtml#two" media-type="application/xhtml+xml"/>
<item id="c" href="c.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="c"/></spine></package>"""


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<ul><li>One<li>Two<li>Three</ul>", "- One\n- Two\n- Three"),
        ("<p>One.<p>Two.", "One.\n\nTwo."),
        (
            "<table><tr><th>Ship<th>Tons<tr><td>Anna<td>70</table>",
            "| Ship | Tons |\n| --- | --- |\n| Anna | 70 |",
        ),
        ("<dl><dt>Pier<dd>of stone</dl>", "Pier\n:   of stone"),
    ],
)
def test_end_tags_that_html_lets_a_page_leave_out_are_no_loss(page, text):
    assert converting._markdown(page).strip() == text


def test_a_long_table_without_end_tags_stays_as_long_as_it_is():
    rows = "".join(f"<tr><td>{n}<td>x" for n in range(2_000))
    text = converting._markdown(f"<table>{rows}</table>")
    assert "| 1999 | x |" in text
    assert len(text) < 40_000


def test_a_chapter_that_is_listed_once_for_each_section_is_read_once():
    book = io.BytesIO()
    with zipfile.ZipFile(book, "w") as archive:
        archive.writestr("mimetype", "application/epub+zip")
        archive.writestr(
            "META-INF/container.xml",
            '<container><rootfiles><rootfile full-path="p.opf"/></rootfiles></container>',
        )
        archive.writestr("p.opf", PACKAGE)
        archive.writestr("a.xhtml", "<html><body><p>Said once.</p></body></html>")
        archive.writestr("c.xhtml", "<html><body><p>And this.</p></body></html>")
    text = converting.convert("epub", book.getvalue(), 100_000)
    assert text.count("Said once.") == 1
    assert text.index("Said once.") < text.index("And this.")
