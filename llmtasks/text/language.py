"""Languages: their names, how many words a text has, and a cautious guess which one it is in."""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

#: ISO 639-1 codes and English names, the usual name first; a few widely used three-letter ones.
_LANGUAGES = """
aa Afar; ab Abkhazian; ae Avestan; af Afrikaans; ak Akan; am Amharic; an Aragonese; ar Arabic; as Assamese;
av Avaric; ay Aymara; az Azerbaijani, Azeri; ba Bashkir; be Belarusian; bg Bulgarian; bi Bislama; bm Bambara;
bn Bengali, Bangla; bo Tibetan; br Breton; bs Bosnian; ca Catalan, Valencian; ce Chechen; ceb Cebuano;
ch Chamorro; co Corsican; cr Cree; cs Czech; cu Church Slavonic; cv Chuvash; cy Welsh; da Danish; de German;
dv Dhivehi, Maldivian; dz Dzongkha; ee Ewe; el Greek, Modern Greek; en English; eo Esperanto;
es Spanish, Castilian; et Estonian; eu Basque; fa Persian, Farsi; ff Fulah; fi Finnish; fil Filipino;
fj Fijian; fo Faroese; fr French; fy Western Frisian, Frisian; ga Irish; gd Scottish Gaelic, Gaelic;
gl Galician; gn Guarani; gu Gujarati; gv Manx; ha Hausa; haw Hawaiian; he Hebrew; hi Hindi; hmn Hmong;
ho Hiri Motu; hr Croatian; ht Haitian Creole, Haitian; hu Hungarian; hy Armenian; hz Herero; ia Interlingua;
id Indonesian; ie Interlingue; ig Igbo; ii Sichuan Yi, Nuosu; ik Inupiaq; io Ido; is Icelandic; it Italian;
iu Inuktitut; ja Japanese; jv Javanese; ka Georgian; kg Kongo; ki Kikuyu, Gikuyu; kj Kuanyama; kk Kazakh;
kl Greenlandic, Kalaallisut; km Khmer, Central Khmer; kn Kannada; ko Korean; kr Kanuri; ks Kashmiri;
ku Kurdish; kv Komi; kw Cornish; ky Kyrgyz, Kirghiz; la Latin; lb Luxembourgish; lg Ganda, Luganda;
li Limburgish; ln Lingala; lo Lao; lt Lithuanian; lu Luba-Katanga; lv Latvian; mg Malagasy; mh Marshallese;
mi Maori; mk Macedonian; ml Malayalam; mn Mongolian; mr Marathi; ms Malay; mt Maltese; my Burmese; na Nauru;
nb Norwegian Bokmål, Bokmål; nd North Ndebele; ne Nepali; ng Ndonga; nl Dutch, Flemish;
nn Norwegian Nynorsk, Nynorsk; no Norwegian; nr South Ndebele; nv Navajo; ny Chichewa, Nyanja; oc Occitan;
oj Ojibwa; om Oromo; or Odia, Oriya; os Ossetian; pa Punjabi, Panjabi; pi Pali; pl Polish; ps Pashto;
pt Portuguese; qu Quechua; rm Romansh; rn Rundi, Kirundi; ro Romanian, Moldovan; ru Russian; rw Kinyarwanda;
sa Sanskrit; sc Sardinian; sd Sindhi; se Northern Sami; sg Sango; si Sinhala, Sinhalese; sk Slovak;
sl Slovenian, Slovene; sm Samoan; sn Shona; so Somali; sq Albanian; sr Serbian; ss Swati; st Southern Sotho;
su Sundanese; sv Swedish; sw Swahili; ta Tamil; te Telugu; tg Tajik; th Thai; ti Tigrinya; tk Turkmen;
tl Tagalog; tn Tswana; to Tonga; tr Turkish; ts Tsonga; tt Tatar; tw Twi; ty Tahitian; ug Uyghur, Uighur;
uk Ukrainian; ur Urdu; uz Uzbek; ve Venda; vi Vietnamese; vo Volapük; wa Walloon; wo Wolof; xh Xhosa;
yi Yiddish; yo Yoruba; yue Cantonese; za Zhuang; zh Chinese, Mandarin; zu Zulu
"""

#: Names of variants that people write instead of the code.
_VARIANTS = {
    "american english": "en-US",
    "brazilian portuguese": "pt-BR",
    "british english": "en-GB",
    "canadian french": "fr-CA",
    "european portuguese": "pt-PT",
    "mexican spanish": "es-MX",
    "simplified chinese": "zh-Hans",
    "swiss german": "de-CH",
    "traditional chinese": "zh-Hant",
}

_TAG = re.compile(
    r"(?P<base>[A-Za-z]{2,3})(?:[-_](?P<script>[A-Za-z]{4}))?(?:[-_](?P<region>[A-Za-z]{2}|[0-9]{3}))?"
)


@functools.cache
def _by_code() -> Mapping[str, tuple[str, ...]]:
    table: dict[str, tuple[str, ...]] = {}
    for entry in " ".join(_LANGUAGES.split()).split("; "):
        code, _, names = entry.partition(" ")
        table[code] = tuple(names.split(", "))
    return table


@functools.cache
def _by_name() -> Mapping[str, str]:
    table = {_fold(name): code for code, names in _by_code().items() for name in names}
    return table | _VARIANTS


def normalise(language: str) -> str:
    """The code of a language given by code (`es`, `PT_br`, `zh-hant`) or English name (`Spanish`).

    Raises:
        ValueError: no such language; suggests the nearest.
    """
    asked = " ".join(language.split())
    if code := _by_name().get(_fold(asked)):
        return code
    found = _TAG.fullmatch(asked)
    if found and found["base"].lower() in _by_code():
        parts = [found["base"].lower()]
        if found["script"]:
            parts.append(found["script"].title())
        if found["region"]:
            parts.append(found["region"].upper())
        return "-".join(parts)
    near = difflib.get_close_matches(_fold(asked), _by_name(), n=1)
    hint = f"; did you mean {english_name(_by_name()[near[0]])}?" if near else "."
    raise ValueError(
        f"{asked[:40]!r} is no known language{hint}"
        " Allowed are ISO 639-1 codes such as es or pt-BR, and English names such as Spanish"
    )


def english_name(code: str) -> str:
    """`Spanish` for `es`, `Portuguese (pt-BR)` for `pt-BR`. The code is a normalised one."""
    name = _by_code()[base(code)][0]
    return name if code == base(code) else f"{name} ({code})"


def base(code: str) -> str:
    """The language of a code without script and region: `pt` of `pt-BR`."""
    return code.partition("-")[0]


def _fold(name: str) -> str:
    """Lower case without accents: `Bokmål` is written `bokmal` as well."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(ch for ch in decomposed if not unicodedata.combining(ch))


# --- scripts and words ---------------------------------------------------------------------------

#: Scripts that do not put spaces between words: characters per word, roughly.
_UNSPACED = {
    "han": (r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", 1.7),
    "kana": (r"\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f", 2.5),
    "thai": (r"\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u0f00-\u0fff", 5.0),
}
_RUNS = {name: re.compile(f"[{chars}]") for name, (chars, _) in _UNSPACED.items()}
_ANY_UNSPACED = re.compile("[" + "".join(chars for chars, _ in _UNSPACED.values()) + "]+")
_WORD = re.compile(r"\S*\w\S*")


def word_count(text: str) -> int:
    """About how many words a text has, also where words are not spaced (Chinese, Japanese, Thai …)."""
    unspaced = sum(
        len(_RUNS[name].findall(text)) / per_word for name, (_, per_word) in _UNSPACED.items()
    )
    rest = _ANY_UNSPACED.sub(" ", text) if unspaced else text
    return len(_WORD.findall(rest)) + round(unspaced)


#: Languages that own a script here: letters of it decide. Latin is decided by function words.
_SCRIPTS = {
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "zh": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]"),
    "ko": re.compile(r"[\uac00-\ud7a3]"),
    "el": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "ka": re.compile(r"[\u10a0-\u10ff]"),
    "hy": re.compile(r"[\u0530-\u058f]"),
    "ta": re.compile(r"[\u0b80-\u0bff]"),
}
#: Words that are frequent in one language and rare or unknown in the other ones of this table.
_FUNCTION_WORDS = {
    "en": "the and of to is that with was for are by this from which were has have its their been",
    "es": "el los las del y que una por con para fue como más su al pero sus está entre también",
    "fr": "le les des et du une est dans pour qui sur avec par au pas ce sont cette aux ses",
    "de": "der die und das den von ist mit dem ein nicht eine auf für sich wurde auch als zu im",
    "it": "il che di della per gli è con una sono nel dei alla delle più anche dal non ha degli",
    "pt": "o os que do da em um uma não com para as dos foi por mais ao das pela também",
    "nl": "het een van en dat zijn op te voor met niet werd ook aan door naar deze wordt maar bij",
    "sv": "och att det som är av för på den till med har inte ett var från eller om men kan",
    "pl": "i w na z się nie do jest że przez od po jako oraz był za dla tym został jego",
    "ru": "и в не на что с по как это из для его к от был была она они также который",  # noqa: RUF001
    "uk": "і в не на що з до як це із для його від був була вона вони також який та",  # noqa: RUF001
}
_FEWEST_WORDS = 12  # below, a guess would be one
_FEWEST_DIFFERENT = 3  # a single frequent word may be another language's


@functools.cache
def _function_words() -> Mapping[str, frozenset[str]]:
    return {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}


def guess(text: str) -> str | None:
    """The language of a text where that is plain to see, else None. Made to be silent rather than wrong.

    Looks at the first 20,000 characters: it judges the language, not the content.
    """
    text = text[:20_000]
    letters = sum(1 for ch in text if ch.isalpha())
    if not letters:
        return None
    for code, script in _SCRIPTS.items():
        # Japanese text is half Chinese characters, so its kana are looked for first and at a lower share.
        share = 0.15 if code == "ja" else 0.5
        if len(script.findall(text)) > max(share * letters, 10):
            return code
    words = re.findall(r"[^\W\d_]+", text.lower())
    if len(words) < _FEWEST_WORDS:
        return None
    counted = Counter(words)
    hits = {code: sum(counted[word] for word in known) for code, known in _function_words().items()}
    (best, most), (_, second) = sorted(hits.items(), key=lambda one: -one[1])[:2]
    different = sum(1 for word in _function_words()[best] if word in counted)
    plain = most >= 0.12 * len(words) and most >= 1.5 * second and different >= _FEWEST_DIFFERENT
    return best if plain else None
