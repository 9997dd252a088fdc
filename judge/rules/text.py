"""Answers as text: Unicode forms, what encloses an answer, and which differences do not change what it says."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SIGNS = str.maketrans(dict.fromkeys("−–—‐‑", "-") | dict.fromkeys("’‘`´′", "'") | dict.fromkeys("“”„«»″", '"') | {"。": "."})
_KEPT = str.maketrans({"′": "'", "″": '"'})
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|therefore|hence),? )?(?:the |my )?(?:(?:final|correct|right|best) )?"
    r"(?:answer|option|choice) ?(?:is ?:?|:) ?(?=\S)",
    re.IGNORECASE,
)
_SHELLS = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("*", "*"), ("_", "_"), ('"', '"'), ("'", "'"))
_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*")
_SHORT_WORDS = frozenset("a an as at be by de do go he in is it la no of on or so the to up us we".split())
_EXACT = re.compile(r"\b(?:password|code|case|capital\w*|upper\w*|lower\w*|exact\w*|symbols?|formula|units?|gen\w+|url)\b")
_LATEX = (
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname|mbox)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dtc]?frac\s*\{(\w+)\}\s*\{(\w+)\}|\\[dtc]?frac\s*([0-9])\s*([0-9])"), r" \1\3/\2\4"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![A-Za-z])|\\[,;:!>]|\$"), ""),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "×"),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\\([%$#&_{}])"), r"\1"),
)
_LOOSE = (
    (re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])"), " "),
    (re.compile(r"\b(?:between|from) ([\d.,]+) (?:and|to) (?=\d)|([\d.,]+) ?(?:to|-) ?(?=\d)"), r"\1\2-"),
    (re.compile(r"\bper ?cent\b"), "%"),
    (re.compile(r"\"|\*\*|(?<!\w)'|'(?!\w)|[.,?;:]+(?=\s|$)|(?<=[^\W\d_]{2})!+|(?<!\d),|(?<=[a-z])'(?=[a-z])"), ""),
    (re.compile(r"(?<![\w'])(?:an?|the) (?=\w)"), ""),
)
_OTHER_NAMES = {".": "period dot point", "-": "dash minus", "/": "slash", "*": "star", "#": "hash", "'": "quote"}
_SAYS_NOTHING = frozenset("mark sign symbol a an the left right".split())


def fold_unicode(text: str) -> str:
    """NFKC and one space between words; what NFKC would glue to its neighbour stays apart: `10²` -> `10^2`,
    `2½` -> `2 1/2`, and `①` is no `1`."""
    if text.isascii():
        return " ".join(text.split())
    return " ".join("".join(map(_fold_char, unicodedata.normalize("NFC", text))).translate(_SIGNS).split())


@lru_cache(maxsize=4096)
def _fold_char(char: str) -> str:
    tag, *code_points = unicodedata.decomposition(char).split(" ")
    if tag == "<square>":
        return "".join(_fold_char(chr(int(point, 16))) for point in code_points)
    if tag == "<circle>":
        return char
    mark = {"<super>": "^", "<fraction>": " "}.get(tag, "")
    return mark + unicodedata.normalize("NFKC", char.translate(_KEPT)).replace("⁄", "/")


def bare(text: str) -> str:
    """The answer without what encloses all of it: `The answer is **red**.` -> `red`, `\\boxed{5}` -> `5`."""
    text = fold_unicode(text)
    while (shorter := _unwrap(text)) != text:
        text = shorter
    return text


def _unwrap(text: str) -> str:
    text = text.strip()
    if lead := _LEAD_IN.match(text):
        return text[lead.end() :]
    if text.startswith("\\boxed{") and _closing_brace(text, 6) == len(text) - 1:
        return text[7:-1]
    for opening, closing in _SHELLS:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and closing not in inner:
            return inner
    return text[:-1] if re.search(r"[\w)\]}°%\"*'$]\.$", text) else text


def same_text(question: str, one: str, other: str) -> bool:
    """Whether two bare answers are the same letters, but for case where case says nothing."""
    if one == other:
        return True
    # `10 MΩ`, `2E3`, `x^2`: beside digits and signs the case of a letter may carry meaning.
    if one.casefold() != other.casefold() or re.search(r"\d", one) or _EXACT.search(question.casefold()):
        return False
    words, mates = re.findall(r"[^\W_]+", one), re.findall(r"[^\W_]+", other)
    has_long_word = any(len(word) > 2 for word in words)
    return len(words) == len(mates) and all(
        word == mate
        or (all(_is_plain_case(form) for form in (word, mate)) and (len(word) > 2 or _is_filler(word, has_long_word)))
        for word, mate in zip(words, mates, strict=True)
    )


def _is_plain_case(word: str) -> bool:
    """`red`, `Red`, `RED`; not `NaCl`."""
    return word.islower() or word.isupper() or word.istitle()


def _is_filler(word: str, has_long_word: bool) -> bool:
    return has_long_word and word.casefold() in _SHORT_WORDS


def differs_in_meaning_case(one: str, other: str) -> bool:
    """For guesses: `Co` and `CO`, `NaCl` and `NACL`, `Aa` and `AA`; not `US` and `us`."""
    return any(
        word != mate and word.casefold() == mate.casefold() and (
            (len(word) < 3 and word.lower() not in (word, mate))
            or any(re.fullmatch(r"(?:[A-Z][a-z]?)+", form) and not _is_plain_case(form) for form in (word, mate))
        )
        for word, mate in zip(one.split(), other.split(), strict=False)
    )


def strip_latex(text: str) -> str:
    """Undo the LaTeX of numbers, units and words: `12\\%` -> `12%`, `\\frac{1}{2}` -> `1/2`."""
    if "\\" in text or text.count("$") > 1:
        for pattern, plain in _LATEX:
            text = pattern.sub(plain, text)
    return text.strip()


def loose(text: str) -> str:
    """For guesses: case, articles, quotes and the punctuation of sentences taken out. `-5`, `n!`, `c++` keep signs."""
    text = strip_latex(text).casefold()
    for pattern, plain in _LOOSE:
        text = pattern.sub(plain, text)
    return " ".join(text.split())


def boxed_answer(text: str) -> str | None:
    """Content of `\\boxed{…}`, braces balanced; the text itself where there is no box.

    None when the boxes disagree or one never closes: such a text has no definite answer.
    """
    contents, end = set[str](), 0
    while match := _BOX.search(text, end):
        opening = match.end()
        if text[opening : opening + 1] == "{":
            if (closing := _closing_brace(text, opening)) is None:
                return None
            opening, end = opening + 1, closing
        else:
            end = len(text) if (line := re.search(r"\n|\$|\\boxed", text[opening:])) is None else opening + line.start()
        contents.add(text[opening:end].strip())
    if not contents:
        return text
    return contents.pop() if len(contents) == 1 else None


def _closing_brace(text: str, opening: int) -> int | None:
    """Index of the brace that closes the one at `opening`."""
    depth = 0
    for brace in re.finditer(r"(?<!\\)[{}]", text[opening:]):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return opening + brace.start()
    return None


def names_sign(words: str, sign: str) -> bool:
    """Whether a text is the name of a sign: `question mark` and `?`. Names are Unicode's, and a few everyday ones."""
    signs = set(fold_unicode(sign).replace(" ", ""))
    if len(signs) != 1:
        return False
    (char,) = signs
    names = set(re.findall(r"\w+", unicodedata.name(char, "").lower() + " " + _OTHER_NAMES.get(char, "")))
    said = set(re.findall(r"\w+", words.lower()))
    return bool(said & (names - _SAYS_NOTHING)) and said <= names | _SAYS_NOTHING
