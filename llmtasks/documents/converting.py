"""PDF, Word, EPUB and HTML become Markdown, or plain text where a format knows no headings.

Runs in a child process (`child.py`), as the libraries parse what anybody may have written. Nothing named in
a document is opened: no image, no DTD, no entity, no URL.
"""

from __future__ import annotations

import io
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from llmtasks.documents.decoding import decode_html, lines
from llmtasks.documents.formats import looks_like
from llmtasks.errors import InvalidDocument

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

#: An archive may unpack to so many times `max_bytes`: pictures are much larger than texts.
UNPACKED_FACTOR = 10

_NO_TEXT = "holds no text: is it a scan? Run OCR first"
_ENCRYPTED = "is encrypted; store it without a password"

#: What a reader does not see, or does not read a document for.
_JUNK = (
    "script, style, noscript, template, nav, iframe, object, embed, canvas, svg, audio, video,"
    " button, input, select, textarea, [hidden], [role=navigation],"
    ' [style*="display:none"], [style*="display: none"]'
)
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*)+\n")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
#: PDFium's signs for a hyphen at the end of a line, after which it joins the word.
_HYPHENS = re.compile("[\x02\ufffe]")
#: Legal in XHTML, and the start of an endless script in HTML.
#: Elements whose end a page may leave to its reader, and such as are often left open.
_OPEN_ENDED = r"(li|p|tr|td|th|dt|dd|thead|tbody|tfoot|option|b|i|em|strong|font|a|span)"
_OPENED = re.compile(rf"<{_OPEN_ENDED}(?=[\s>])(?![^>]*/>)", re.IGNORECASE)
_CLOSED = re.compile(rf"</{_OPEN_ENDED}(?=[\s>])", re.IGNORECASE)
_SELF_CLOSED = re.compile(r"<(script|style|title|textarea|iframe)\b([^<>]*)/>", re.IGNORECASE)
_PDF_PASSWORD_ERROR = 4


def convert(format_: str, data: bytes, max_bytes: int) -> str:
    """The text of a document.

    Raises:
        InvalidDocument: what is wrong with it.
        ImportError: the libraries of the `documents` extra are not installed.
    """
    text = _clean(CONVERTERS[format_](data, max_bytes))
    if not text:
        raise InvalidDocument(_NO_TEXT if format_ == "pdf" else "holds no text")
    return text


def _clean(text: str) -> str:
    text = _CONTROLS.sub("", lines(text))
    return _BLANK_LINES.sub("\n\n", _SURROGATES.sub("\ufffd", text)).strip()


def _pdf(data: bytes, max_bytes: int) -> str:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PDF_PASSWORD_ERROR:
            raise InvalidDocument(_ENCRYPTED) from None
        raise _broken(data, "PDF") from None
    pages: list[str] = []
    size = 0
    for number, page in enumerate(_pages(document), 1):
        text = _HYPHENS.sub("", page.get_textpage().get_text_bounded()).strip()
        size += len(text)
        if size > max_bytes:
            raise too_long(max_bytes)
        if not text and any(page.get_objects(filter=[pypdfium2.raw.FPDF_PAGEOBJ_IMAGE])):
            text = f"[Page {number} is an image without text.]"  # so that nobody takes it for blank
        pages.append(text)
        page.close()
    return "" if size == 0 else "\n\n".join(pages)


def _pages(document: Any) -> Iterator[Any]:
    import pypdfium2

    for number in range(len(document)):
        try:
            yield document[number]
        except pypdfium2.PdfiumError:
            raise InvalidDocument(f"is broken: page {number + 1} cannot be read") from None


def _docx(data: bytes, max_bytes: int) -> str:
    import mammoth

    with _archive(data, max_bytes, "Word document") as archive:
        if "[Content_Types].xml" not in archive.namelist():
            raise _broken(data, "Word document")
    try:
        page = mammoth.convert_to_html(
            io.BytesIO(data),
            style_map="p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh",
            convert_image=mammoth.images.img_element(lambda _image: {"src": ""}),
            external_file_access=False,
        )
    except (MemoryError, RecursionError, ImportError):
        raise
    except Exception:  # noqa: BLE001  # a damaged file meets it in any of its lines
        raise _broken(data, "Word document") from None
    return _markdown(page.value)


def _epub(data: bytes, max_bytes: int) -> str:
    with _archive(data, max_bytes, "EPUB") as archive:
        try:
            chapters = [_markdown(_xhtml(archive.read(name))) for name in _chapters(archive)]
        except (KeyError, zipfile.BadZipFile, EOFError):  # what it lists is not there, or damaged
            raise _broken(data, "EPUB") from None
        except RuntimeError as error:
            if isinstance(error, RecursionError):
                raise
            raise InvalidDocument(_ENCRYPTED) from None  # an archive's own password
    return "\n\n".join(chapters)


def _html(data: bytes, _max_bytes: int) -> str:
    return _markdown(decode_html(data).text)


#: A format's way from bytes to text.
CONVERTERS: Mapping[str, Callable[[bytes, int], str]] = {
    "pdf": _pdf,
    "docx": _docx,
    "epub": _epub,
    "html": _html,
}


def too_long(max_bytes: int) -> InvalidDocument:
    """The error of a text that is longer than a document may be."""
    return InvalidDocument(
        f"holds more than {max_bytes:,} bytes of text (documents.max_bytes in the settings)"
    )


def _broken(data: bytes, what: str) -> InvalidDocument:
    kind = looks_like(data)
    if kind is None or kind.endswith(what):
        article = "an" if what[0] in "AEIOU" else "a"
        return InvalidDocument(f"is broken: it cannot be read as {article} {what}")
    return InvalidDocument(f"is no {what}: it looks like {kind}")


def _archive(data: bytes, max_bytes: int, what: str) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        files = archive.infolist()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, UnicodeDecodeError):
        raise _broken(data, what) from None
    if any(file.flag_bits & 1 for file in files):
        raise InvalidDocument(_ENCRYPTED)
    bound = UNPACKED_FACTOR * max_bytes
    if sum(file.file_size for file in files) > bound:
        raise InvalidDocument(
            f"unpacks to more than {bound:,} bytes, {UNPACKED_FACTOR} times documents.max_bytes"
            " in the settings"
        )
    return archive


def _chapters(archive: zipfile.ZipFile) -> list[str]:
    """The names of a book's chapters in the order of reading."""
    package_name = _elements(archive, "META-INF/container.xml", "rootfile")[0]["full-path"]
    manifest = {item["id"]: item for item in _elements(archive, package_name, "item")}
    folder = posixpath.dirname(package_name)
    names = []
    for reference in _elements(archive, package_name, "itemref"):
        item = manifest[reference["idref"]]
        if "html" in item.get("media-type", "html"):
            href = unquote(item["href"].split("#")[0])
            names.append(posixpath.normpath(posixpath.join(folder, href)))
    if "META-INF/encryption.xml" in archive.namelist():  # lists fonts, too
        locked = _elements(archive, "META-INF/encryption.xml", "cipherreference")
        if {unquote(one.get("uri", "")) for one in locked} & set(names):
            raise InvalidDocument("is encrypted (DRM)")
    return list(dict.fromkeys(names))  # one file may be named once for each of its sections


def _elements(archive: zipfile.ZipFile, name: str, tag: str) -> list[dict[str, str]]:
    """The attributes of an XML file's elements, whatever their prefix. Read as HTML: that parser knows
    neither DTDs nor entities of a file's own, so none can be abused.
    """
    found = _soup(decode_html(archive.read(name)).text).find_all(
        lambda one: one.name.rpartition(":")[2] == tag
    )
    if not found and tag == "rootfile":
        raise KeyError(tag)
    return [{key: str(value) for key, value in one.attrs.items()} for one in found]


def _xhtml(data: bytes) -> str:
    return _SELF_CLOSED.sub(r"<\1\2></\1>", decode_html(data).text)


def _soup(page: str) -> BeautifulSoup:
    import warnings

    from bs4 import BeautifulSoup, XMLParsedAsHTMLWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", XMLParsedAsHTMLWarning)
        return BeautifulSoup(page, "html5lib" if _omits_ends(page) else "html.parser")


def _omits_ends(page: str) -> bool:
    """Whether the page leaves out end tags that HTML lets it leave out, or forgot some.

    Only html5lib knows where those elements end; it takes several times as long, so only where it has to.
    """
    opened = Counter(tag.lower() for tag in _OPENED.findall(page))
    closed = Counter(tag.lower() for tag in _CLOSED.findall(page))
    return any(opened[tag] > closed[tag] for tag in opened)


def _markdown(page: str) -> str:
    from markdownify import MarkdownConverter

    soup = _soup(page)
    title = soup.title.get_text(" ", strip=True) if soup.title else ""
    _reduce(soup)
    converter = MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        table_infer_header=True,
    )
    text: str = converter.convert_soup(soup).strip()
    return f"# {title}\n\n{text}" if title and text and not soup.find("h1") else text


def _reduce(soup: BeautifulSoup) -> None:
    """Leave what a reader reads: of a picture its description, of a link its address if it leads out."""
    from bs4.element import Comment, Declaration, Doctype, ProcessingInstruction

    remarks = (Comment, Declaration, Doctype, ProcessingInstruction)
    for remark in soup.find_all(string=lambda text: isinstance(text, remarks)):
        remark.extract()
    for junk in soup.select(f"head, {_JUNK}"):
        junk.decompose()
    for picture in soup.find_all("img"):
        picture.replace_with(str(picture.get("alt") or ""))
    for link in soup.find_all("a"):
        if not str(link.get("href") or "").startswith(("http://", "https://", "mailto:")):
            link.unwrap()
