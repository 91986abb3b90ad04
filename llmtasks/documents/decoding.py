"""Bytes to text. Pure; what cannot be read is an `InvalidDocument` that says what it looks like."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

from llmtasks.documents.formats import HEAD_BYTES, looks_like
from llmtasks.errors import InvalidDocument

#: UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

#: Bytes looked at for what their NULs say.
_SAMPLE_BYTES = 4096
#: In UTF-16 of letters below U+0100 every second byte is NUL; the others nearly never.
_MANY_NULS, _FEW_NULS = 0.4, 0.02

#: Old encodings that a text may be in: one for each script, where nearly the same ones differ in a few
#: letters only. So fewer guesses are wrong.
_LEGACY = (
    "cp1252",
    "cp1250",
    "cp1251",
    "cp1253",
    "cp1254",
    "cp1255",
    "cp1256",
    "cp1257",
    "koi8_r",
    "cp932",
    "euc_jp",
    "gb18030",
    "big5",
    "cp949",
    "cp874",
)
_LATIN = frozenset({"cp1252", "cp1250", "cp1254", "cp1257"})

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]")
#: Of a legacy text's bytes; compressed data have a tenth.
_MOST_CONTROLS = 0.01

_DECLARED = re.compile(
    rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]+)|<meta[^>]{0,400}?charset\s*=\s*["']?\s*([\w.:-]+)""",
    re.IGNORECASE,
)
#: What browsers read under these names.
_BROWSERS = {"iso8859-1": "cp1252", "ascii": "cp1252", "utf-16": "utf-8", "gb2312": "gb18030"}


#: The sequences by which ISO-2022-JP changes its character set.
_SWITCH = re.compile(rb"\x1b\$[@B]|\x1b\([BJ]")
#: Bytes that were no UTF-8, and characters that were, of several bytes.
_ESCAPED = re.compile("[\udc80-\udcff]")
_BEYOND_ASCII = re.compile("[\x80-\ud7ff\ue000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A text without byte order mark, and the name of its encoding."""

    text: str
    encoding: str


def decode(data: bytes) -> Decoded:
    """Read bytes as text: byte order marks, UTF-8, UTF-16 without a mark, then the likeliest old encoding.

    The text is given to the letter; only a byte order mark is taken away.

    Raises:
        InvalidDocument: the bytes are no text.
    """
    marked = _marked(data)
    if marked is not None:
        return marked
    if b"\0" not in data and not data.startswith(b"%PDF-"):  # which may be ASCII all through
        if _SWITCH.search(data):  # ASCII by its bytes, and not by its meaning
            return _escaped(data)
        try:
            return Decoded(data.decode(), "utf-8")
        except UnicodeDecodeError as error:
            _refuse_broken(data, error)
    kind = looks_like(data)
    if kind is not None:
        raise InvalidDocument(f"looks like {kind}, not like text")
    return _with_nuls(data) if b"\0" in data else _legacy(data)


def decode_html(data: bytes) -> Decoded:
    """As `decode`, but a page's own word on its encoding counts where it is true.

    Raises:
        InvalidDocument: the bytes are no text.
    """
    declared = _DECLARED.search(data[: 2 * HEAD_BYTES])
    if declared and _marked(data) is None and b"\0" not in data:
        name = (declared.group(1) or declared.group(2)).decode("ascii")
        try:
            known = codecs.lookup(name).name
            encoding = _BROWSERS.get(known, known)
            return Decoded(data.decode(encoding), encoding)
        except (LookupError, UnicodeError):
            pass
    return decode(data)


def lines(text: str) -> str:
    r"""The text with `\n` at the end of each line."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _marked(data: bytes) -> Decoded | None:
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return Decoded(data[len(mark) :].decode(encoding), encoding)
            except UnicodeDecodeError as error:
                raise InvalidDocument(
                    f"starts with the byte order mark of {encoding.upper()}, but is broken at"
                    f" byte {len(mark) + error.start}"
                ) from None
    return None


def _escaped(data: bytes) -> Decoded:
    try:
        return Decoded(data.decode("iso2022_jp_2"), "iso-2022-jp")
    except UnicodeDecodeError as error:
        raise InvalidDocument(f"is broken ISO-2022-JP at byte {error.start}") from None


def _refuse_broken(data: bytes, error: UnicodeDecodeError) -> None:
    """UTF-8 with a bad byte in it is no other encoding: as one it would be read, to nonsense.

    Sequences of several bytes that UTF-8 allows hardly come about by chance.
    """
    told = data.decode("utf-8", "surrogateescape")
    bad = len(_ESCAPED.findall(told))
    whole = len(_BEYOND_ASCII.findall(told))
    if whole >= max(bad, 2):
        raise InvalidDocument(
            f"is UTF-8 that is broken at byte {error.start}"
            + (f", and at {bad - 1} more" if bad > 1 else "")
        )


def _with_nuls(data: bytes) -> Decoded:
    sample = data[:_SAMPLE_BYTES]
    half = max(1, len(sample) // 2)
    even, odd = sample[0::2].count(0) / half, sample[1::2].count(0) / half
    encoding = None
    if odd >= _MANY_NULS and even <= _FEW_NULS:
        encoding = "utf-16-le"
    elif even >= _MANY_NULS and odd <= _FEW_NULS:
        encoding = "utf-16-be"
    if encoding is not None:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in text:
                return Decoded(text, encoding)
    raise InvalidDocument("is binary: it holds NUL bytes, which no text has")


def _legacy(data: bytes) -> Decoded:
    if len(_CONTROLS.findall(data)) > _MOST_CONTROLS * len(data):
        raise InvalidDocument("is binary, or text in an encoding that is not recognized")
    import charset_normalizer

    matches = list(charset_normalizer.from_bytes(data, cp_isolation=list(_LEGACY)))
    for encoding in _ranked([(m.encoding, m.chaos, m.could_be_from_charset) for m in matches]):
        try:
            return Decoded(data.decode(encoding), encoding)
        except UnicodeDecodeError:
            continue  # guessed from a sample
    raise InvalidDocument("is text in an encoding that is not recognized; store it as UTF-8")


def _ranked(matches: list[tuple[str, float, list[str]]]) -> list[str]:
    """Likeliest first. Among the encodings of Latin letters Western Europe's where it reads as well:
    the statistics of single letters cannot tell French from Slovak.
    """
    names = [name for name, _, _ in matches]
    if not matches or names[0] not in _LATIN:
        return names
    least = matches[0][1]
    western = any(chaos <= least and ("cp1252" in (name, *same)) for name, chaos, same in matches)
    return ["cp1252", *names] if western else names
