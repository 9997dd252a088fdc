"""Answers as text: Unicode forms, what encloses an answer, and which differences do not change what it says."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SIGNS = str.maketrans(
    dict.fromkeys("−–—‐‑", "-") | dict.fromkeys("’‘`´", "'") | dict.fromkeys("“”„«»", '"') | {"。": ".", "⁄": "/"}
)
_INNER = r"[^{}]*+(?:\{[^{}]*+(?:\{[^{}]*+(?:\{[^{}]*+\}[^{}]*+)*+\}[^{}]*+)*+\}[^{}]*+)*+"
_BOX = re.compile(rf"\\boxed\s*(?:\{{({_INNER})\}}|(?![A-Za-z{{])([^\s$\\]+))")
_SHELL = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:the |my )?(?:(?:final|correct|right|best) )?(?:answer|option|choice) ?"
    rf"(?:is ?:?|:) ?(\S.*)|\\boxed ?\{{({_INNER})\}}|\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]|\*\*([^*]+)\*\*|\*([^*]+)\*"
    r"""|_([^_]+)_|"([^"]+)"|'([^']+)'|(.*[\w)\]}°%\"*'$])\.""",
    re.IGNORECASE,
)
_SHORT_WORDS = frozenset(re.findall(r"\w+", "a an as at be by de do go he in is it la no of on or so the to up us we"))
_EXACT = re.compile(r"\b(?:password|code|case|capital\w*|upper\w*|lower\w*|exact\w*|symbols?|formula|units?|gen\w+)\b")
_LATEX = (
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]?frac\s*\{(\w+)\}\s*\{(\w+)\}|\\[dtc]?frac\s*(\d)\s*(\d)"), r" \1\3/\2\4"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!>]|\$(?=.*\$)|(?<=\S)\$"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\([%$#&_{}])"), r"\1"),
)
_LOOSE = (
    (re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])"), " "),
    (re.compile(r"\bper ?cent\b"), "%"),
    (re.compile(r"(?<=\d)\.0+(?![\d.])"), ""),
    (re.compile(r"\"|\*\*|(?<!\w)'|(?<=[^\W\d_]{2})'|(?<=[a-z])'(?=[a-z])"), ""),
    (re.compile(r"[.,?;:]+(?=\s|$)|(?<=[^\W\d_]{2})!+|(?<!\d),"), ""),
    (re.compile(r"(?<![\w'])(?:an?|the|mrs?|ms|dr|prof) (?=\w)"), ""),
)


def fold_unicode(text: str) -> str:
    """NFKC and one space between words; what NFKC would glue to its neighbour stays apart: `10²` -> `10^2`,
    `2½` -> `2 1/2`, and `①` is no `1`."""
    if not text.isascii():
        text = "".join(map(_fold_char, unicodedata.normalize("NFC", text))).translate(_SIGNS)
    return " ".join(text.split())


@lru_cache(maxsize=4096)
def _fold_char(char: str) -> str:
    tag, *code_points = unicodedata.decomposition(char).split(" ")
    if tag == "<square>":
        return "".join(_fold_char(chr(int(point, 16))) for point in code_points)
    if tag == "<circle>" or char in "′″":
        return {"′": "'", "″": '"'}.get(char, char)
    return {"<super>": "^", "<fraction>": " "}.get(tag, "") + unicodedata.normalize("NFKC", char)


def boxed_answer(text: str) -> str | None:
    """Content of `\\boxed{…}`; the text itself where there is no box, None where boxes disagree or one never closes."""
    boxes = [braced.strip() or bare for braced, bare in _BOX.findall(text)]
    if len(boxes) != text.count("\\boxed"):
        return None
    return text if not boxes else boxes[0] if len(set(boxes)) == 1 else None


def bare(text: str) -> str:
    """The answer without what encloses all of it: `The answer is **red**.` -> `red`, `\\boxed{5}` -> `5`."""
    text = fold_unicode(text)
    while shell := _SHELL.fullmatch(text):
        text = shell[shell.lastindex or 0].strip()
    return text


def same_text(question: str, one: str, other: str) -> bool:
    """Whether two bare answers are the same letters, but for case where case says nothing."""
    if one == other:
        return True
    # `10 MΩ`, `2E3`, `x^2`: beside digits the case of a letter may carry meaning.
    is_open = re.search(r"\d", one) or _EXACT.search(question.casefold())
    return one.casefold() == other.casefold() and not is_open and not case_matters(one, other)


def case_matters(one: str, other: str) -> bool:
    """Whether a word may mean something else in the other case: `Co`, `CO`; `NaCl`, `NACL`."""
    words, mates = (re.findall(r"[^\W_]+", text.replace("'", "")) for text in (one, other))
    has_long_word = any(len(word) > 2 for word in words)

    def may_differ(word: str, mate: str) -> bool:
        is_plain = all(form.islower() or form.isupper() or form.istitle() for form in (word, mate))
        is_usual = is_plain and (len(word) > 2 or (has_long_word and word.casefold() in _SHORT_WORDS))
        return word != mate and word.casefold() == mate.casefold() and not is_usual

    return any(map(may_differ, words, mates))


def strip_latex(text: str) -> str:
    """Undo the LaTeX of numbers, units and words: `12\\%` -> `12%`, `\\frac{1}{2}` -> `1/2`."""
    for pattern, plain in _LATEX:
        text = pattern.sub(plain, text)
    return text.strip()


def loose(text: str) -> str:
    """For guesses: case, articles, quotes and the punctuation of sentences taken out. `-5`, `n!`, `c++` keep signs."""
    text = text.casefold()
    for pattern, plain in _LOOSE:
        text = pattern.sub(plain, text)
    return " ".join(text.split())
