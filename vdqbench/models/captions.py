"""How captions are cleaned before T5 sees them: the cleaner of DeepFloyd IF's line, with which Open-Sora v1.0 was trained.

It lowers the case, drops addresses, markup, CJK signs, file names and codes, brings dashes and quotation marks to one kind, and is
applied twice, since one pass can lay open what the next one drops. A model sees another prompt where a rule differs, so the rules
are all here, in order, odd ones included.
"""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

from vdqbench.errors import ConfigError

Rules = tuple[tuple[str, str], ...]
"""Regular expressions and what takes the place of every match, applied in order."""

FILES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
ADDRESSES: Rules = (
    (r"<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", ""),
)
SIGNS: Rules = (
    (r"@\w+\b", ""),
    (r"[\u31c0-\u9fff]+", ""),  # CJK strokes, katakana extensions, enclosed signs, hexagrams and ideographs: one range
    (r"[-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+", "-"),
    (r"[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    (r"[\u2018\u2019]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
CODES: Rules = (
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[x\u0445\u00d7]\d+\.?\d*\b", ""),  # 640x480, with a Latin or a Cyrillic x
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)
MANY_DASHES = 3
"""With more dashes and underscores than this, they stand for spaces."""


def clean(caption: str) -> str:
    """A caption as the text encoder is to see it.

    Raises:
        ConfigError: a package that it needs is not installed.
    """
    return _once(_once(caption))


def _once(caption: str) -> str:
    try:
        import ftfy
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed, and captions of Open-Sora are cleaned with it; pip install 'vdqbench[models]'"
        ) from error
    text = _replaced(unquote_plus(caption).strip().lower(), ADDRESSES)
    text = _replaced(BeautifulSoup(text, features="html.parser").text, SIGNS)
    if len(re.findall("[-_]", text)) > MANY_DASHES:
        text = re.sub("[-_]", " ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _replaced(text, CODES).strip()


def _replaced(text: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text
