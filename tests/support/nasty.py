"""A folder of the files that people have: `python -m support.nasty FOLDER` makes one to look at.

Each file stands beside what becomes of it: ADDED with words of its text, REFUSED with words of its error, or
LEFT_OUT. All are made by hand, so that no library is needed and nothing is clean by accident.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ADDED: Literal["added"] = "added"
REFUSED: Literal["error"] = "error"
LEFT_OUT: Literal["left out"] = "left out"

#: `[documents] max_bytes` that the table below is true under.
MAX_BYTES = 100_000

#: Nothing may ever be asked for here.
SECRET_FILE = "secret-of-the-machine"
SECRET = "the secret of the machine"


@dataclass(frozen=True)
class Expected:
    """What becomes of a file, and words that its text or its error holds, or does not."""

    outcome: Literal["added", "error", "left out"]
    says: str = ""
    never: str = "\x00"


def pdf(pages: Sequence[str | None], *, encrypted: bool = False) -> bytes:
    """A PDF; a page of None is a picture."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(pages)} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for n, text in enumerate(pages):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 400] /Contents %d 0 R"
            b" /Resources << /Font << /F 3 0 R >> >> >>" % (5 + 2 * n)
        )
        drawn = b"q 400 0 0 400 0 0 cm BI /W 1 /H 1 /CS /G /BPC 8 ID \x80 EI Q"
        if text is not None:
            drawn = b"BT /F 12 Tf 20 300 Td (%s) Tj ET" % text.encode("cp1252")
        packed = zlib.compress(drawn)
        objects.append(
            b"<< /Length %d /Filter /FlateDecode >> stream\n%s\nendstream" % (len(packed), packed)
        )
    out, offsets = io.BytesIO(), []
    out.write(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    for number, body in enumerate(objects, 1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj\n%s\nendobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1))
    out.writelines(b"%010d 00000 n \n" % offset for offset in offsets)
    lock = b" /ID [<00><00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 /O <%s> /U <%s> >>" % (
        b"ab" * 32,
        b"cd" * 32,
    )
    out.write(
        b"trailer << /Size %d /Root 1 0 R%s >>\nstartxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, lock if encrypted else b"", table)
    )
    return out.getvalue()


def archive(files: Mapping[str, str | bytes], claim: int | None = None) -> bytes:
    """A zip; `claim` is the size that its last file says to have."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
        if claim is not None:
            packed.filelist[-1].file_size = claim
    return out.getvalue()


def docx(body: str, prolog: str = "", claim: int | None = None) -> bytes:
    """A Word document with this body, in WordprocessingML."""
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    return archive(
        {
            "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="xml"'
            ' ContentType="application/xml"/><Override PartName="/word/document.xml" ContentType='
            '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/>'
            "</Types>",
            "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1"'
            f' Type="{office}" Target="word/document.xml"/></Relationships>',
            "word/document.xml": f'{prolog}<w:document xmlns:w="{word}"><w:body>{body}</w:body>'
            "</w:document>",
        },
        claim,
    )


def paragraph(text: str, style: str = "") -> str:
    """A paragraph of a Word document."""
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


def epub(chapters: Mapping[str, str], extra: Mapping[str, str] | None = None) -> bytes:
    """An EPUB whose chapters are read in this order, and listed and stored in another."""
    items = [
        f'<opf:item id="Ch{n}" href="{name}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(chapters)
    ]
    spine = "".join(f'<opf:itemref idref="Ch{n}"/>' for n in range(len(chapters)))
    files = {
        f"OEBPS/{name.replace('%20', ' ')}": '<?xml version="1.0" encoding="utf-8"?><html'
        ' xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title><script src="x.js"/></head>'
        f"<body>{body}</body></html>"
        for name, body in reversed(chapters.items())
        if body
    }
    return archive(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="OEBPS/b.opf"/>'
            "</rootfiles></container>",
            "OEBPS/b.opf": "<opf:package><opf:manifest>"
            f"{''.join(reversed(items))}</opf:manifest><opf:spine>{spine}</opf:spine></opf:package>",
            **files,
            **(extra or {}),
        }
    )


BOOK = {
    "z%20first.xhtml": "<h1>Chapter the first</h1><p>It began.</p>",
    "a.xhtml": "<h1>Chapter the second</h1><p>It went on.</p>",
}
PAGE = """<!doctype html><html><head><title>Harbour</title><style>p { color: red }</style></head><body>
<nav><a href="/home">Home page</a></nav><h1>The harbour</h1><script>steal()</script>
<p>Ships <b>left</b> for <a href="#x">Bergen</a>.<img src="http://127.0.0.1:1/x.png" alt="a ship"></p>
<table><tr><th>Ship</th><th>Tons</th></tr><tr><td>Anna</td><td>90</td></tr></table></body></html>"""
ENTITY = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{{folder}}/{SECRET_FILE}">]>'
LAUGHS = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 12))
    + "]>"
)

#: Name -> content and what becomes of it. `{folder}` in a content is the folder's path.
FILES: Mapping[str, tuple[bytes | str, Expected]] = {
    "plain.txt": ("Plain words.", Expected(ADDED, "Plain words.")),
    "UPPER.TXT": ("A loud name.", Expected(ADDED, "loud")),
    "notes.md": ("# Notes\n\n- one", Expected(ADDED, "# Notes\n\n- one")),
    "deep/er/and/deeper.txt": ("Far down.", Expected(ADDED, "Far down.")),
    "--rm -rf": ("No suffix.", Expected(LEFT_OUT)),
    "--rm -rf.txt": ("Named like an option.", Expected(ADDED, "option")),
    "[red]markup[/red].txt": ("Named like markup.", Expected(ADDED, "markup")),
    "🚢 and\nnew line.txt": ("An odd name.", Expected(ADDED, "odd")),
    "*.txt": ("Named like a pattern.", Expected(ADDED, "pattern")),
    "crlf.txt": (b"one\r\ntwo\rthree\r\n", Expected(ADDED, "one\ntwo\nthree\n")),
    "bom8.txt": (b"\xef\xbb\xbfMarked.", Expected(ADDED, "Marked.", "\ufeff")),
    "bom16.txt": ("Zwölf Boxkämpfer".encode("utf-16"), Expected(ADDED, "Zwölf", "\ufeff")),
    "bom32.txt": ("Zwölf Boxkämpfer".encode("utf-32"), Expected(ADDED, "Zwölf", "\ufeff")),
    "unmarked16.txt": ("Jagt den Hund".encode("utf-16-le"), Expected(ADDED, "Jagt den Hund")),
    "latin1.txt": ("Déjà vu à la gare".encode("latin-1"), Expected(ADDED, "Déjà vu")),
    "sjis.txt": (
        "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。".encode("shift-jis"),
        Expected(ADDED, "吾輩は猫である"),
    ),
    "broken16.txt": (b"\xff\xfea\x00\x00\xd8b\x00", Expected(REFUSED, "UTF-16")),
    "empty.txt": ("", Expected(REFUSED, "is empty")),
    "blank.md": (" \n\t\u00a0\n", Expected(REFUSED, "is blank")),
    "mark alone.txt": (b"\xef\xbb\xbf", Expected(REFUSED, "is blank")),
    "nul.txt": (b"some\x00thing", Expected(REFUSED, "NUL")),
    "random.txt": (bytes(range(1, 256)) * 40, Expected(REFUSED, "binary")),
    "picture.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", Expected(REFUSED, "a PNG image")),
    "packed.md": (gzip.compress(b"x" * 99), Expected(REFUSED, "a gzip archive")),
    "really a.pdf.txt": (pdf(["Text"]), Expected(REFUSED, "a PDF")),
    "large.txt": ("x" * (MAX_BYTES + 1), Expected(REFUSED, "documents.max_bytes")),
    "page.html": (PAGE, Expected(ADDED, "# The harbour\n\nShips **left** for Bergen.", "steal")),
    "menu.htm": (PAGE, Expected(ADDED, "| Ship | Tons |\n| --- | --- |\n| Anna | 90 |", "Home")),
    "koi8.html": (
        '<meta charset="koi8-r"><p>Съешь ещё булок</p>'.encode("koi8-r"),
        Expected(ADDED, "Съешь ещё булок"),
    ),
    "script.html": ("<script>alert('nothing else')</script>", Expected(REFUSED, "no text")),
    "abyss.html": ("<div>" * 15_000 + "x", Expected(REFUSED, "nested too deeply")),
    "words.pdf": (
        pdf(["First page.", "Second café."]),
        Expected(ADDED, "First page.\n\nSecond café."),
    ),
    "half scan.pdf": (pdf(["Words.", None]), Expected(ADDED, "[Page 2 is an image without text.]")),
    "scan.pdf": (pdf([None, None]), Expected(REFUSED, "is it a scan?")),
    "locked.pdf": (pdf(["Secret."], encrypted=True), Expected(REFUSED, "is encrypted")),
    "broken.pdf": (b"%PDF-1.7\n" + b"rubbish " * 50, Expected(REFUSED, "is broken")),
    "no.pdf": (b"\x89PNG\r\n\x1a\n", Expected(REFUSED, "is no PDF: it looks like a PNG image")),
    "letter.docx": (
        docx(paragraph("Report", "Heading1") + paragraph("All is well.")),
        Expected(ADDED, "All is well."),
    ),
    "entity.docx": (docx(paragraph("Hello &e;"), ENTITY), Expected(ADDED, "Hello", SECRET)),
    "laughs.docx": (docx(paragraph("&a11;"), LAUGHS), Expected(REFUSED, "is broken")),
    "bomb.docx": (docx(paragraph("x"), claim=1 << 40), Expected(REFUSED, "unpacks to more")),
    "broken.docx": (b"PK\x03\x04 and no more", Expected(REFUSED, "Word document")),
    "table.docx": (archive({"xl/a.xml": "x"}), Expected(REFUSED, "is no Word document")),
    "locked.docx": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" * 9, Expected(REFUSED, "encrypted")),
    "book.epub": (epub(BOOK), Expected(ADDED, "first\n\nIt began.\n\n# Chapter the second")),
    "torn.epub": (epub({**BOOK, "gone.xhtml": ""}), Expected(REFUSED, "is broken")),
    "drm.epub": (
        epub(BOOK, {"META-INF/encryption.xml": '<enc:CipherReference URI="OEBPS/a.xhtml"/>'}),
        Expected(REFUSED, "DRM"),
    ),
    ".hidden.txt": ("Not for you.", Expected(LEFT_OUT)),
    ".git/config.txt": ("Not for you.", Expected(LEFT_OUT)),
    "sheet.xlsx": (archive({"xl/a.xml": "x"}), Expected(LEFT_OUT)),
    SECRET_FILE: (SECRET, Expected(LEFT_OUT)),
}

#: What is no ordinary file; made by `build`.
OTHERS: Mapping[str, Expected] = {
    "linked.txt": Expected(ADDED, "Plain words."),
    "dangling.txt": Expected(REFUSED, "not there"),
    "fifo.txt": Expected(REFUSED, "a FIFO"),
    "loop/plain.txt": Expected(LEFT_OUT),
}


def build(folder: Path) -> dict[str, Expected]:
    """Make the files; by their names in the folder what becomes of each."""
    for name, (content, _) in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(data.replace(b"{folder}", bytes(folder)))
    (folder / "linked.txt").symlink_to("plain.txt")
    (folder / "dangling.txt").symlink_to("nothing.txt")
    (folder / "loop").symlink_to(".", target_is_directory=True)
    os.mkfifo(folder / "fifo.txt")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.txt")).write_text("Named in Latin-1.")
    return {**{name: expected for name, (_, expected) in FILES.items()}, **OTHERS}


def main() -> None:
    """Make the folder named on the command line."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    for name, expected in build(folder.absolute()).items():
        sys.stdout.write(f"{expected.outcome:<10}{name!r}\n")


if __name__ == "__main__":
    main()
