"""Bring answers into a form in which equal means the same: Unicode, case, punctuation, articles, LaTeX, boxes."""

from __future__ import annotations

import re
import unicodedata

_BEFORE_NFKC = str.maketrans({power: f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {"′": "'", "″": '"'})
_SIGNS = str.maketrans(
    {"−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "÷": "/", "⁄": "/"}
    | dict.fromkeys("’‘`´", "'")
    | dict.fromkeys("“”„«»", '"')
    | {"。": ".", "、": ", "}
)
_LATEX_BRACED = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|operatorname|mbox)\s*\{([^{}]*)\}"
)
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}\s*\{([^{}]*)\}|([0-9])\s*([0-9]))")
_LATEX_WORDS = (
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|bigr?)(?![A-Za-z])"), ""),
    (re.compile(r"\\[,;:!>]|\\q?quad(?![A-Za-z])|~(?=\\)"), " "),
    (re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\(?:degree|circ)(?![A-Za-z])"), "°"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), "*"),
    (re.compile(r"\\pi(?![A-Za-z])"), "π"),
    (re.compile(r"\\([%$#&_{}])"), r"\1"),
)
_ARTICLE = re.compile(r"(?<![\w'])(?:(?:a|an)\s+(?=[^\W\d_])|the\s+(?=\w))")
_PUNCTUATION_AT_WORD_END = re.compile(r"[.,!?;:]+(?=\s|$)")
_COMMA_BETWEEN_WORDS = re.compile(r"(?<![0-9]),|,(?![0-9])")
_HYPHEN_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_]{2})-(?=[^\W\d_])|(?<=[^\W\d_])-(?=[^\W\d_]{2})")
"""A word on one side at least: `x-y` is a difference."""
_QUOTED = re.compile(r"""(?<![0-9])"([^"]*)"|(?<![\w'])'([^']*)'(?!\w)""")
_QUOTE = re.compile(r"""(?<![0-9])["']|(?<=[0-9])'(?=[^\W\d_])""")
"""Not after a digit, where it is a prime unless a letter follows: `6'2"` is no 62, `1990's` is `1990s`."""
_BOX = re.compile(r"\\boxed(?![A-Za-z])\s*")
_BOX_LINE_END = re.compile(r"\n|\$|\\boxed")
_BRACKETS = {"(": ")", "[": "]", "{": "}", '"': '"'}


def fold_unicode(text: str) -> str:
    """NFKC, after the forms that NFKC would glue to their neighbours: `10²` -> `10^2`, `2½` -> `2 1/2`."""
    text = text.translate(_BEFORE_NFKC)
    text = "".join(
        " " + unicodedata.normalize("NFKC", char) if unicodedata.decomposition(char).startswith("<fraction>") else char
        for char in text
    )
    return " ".join(unicodedata.normalize("NFKC", text).translate(_SIGNS).split())


def strip_latex(text: str) -> str:
    """Undo the LaTeX that changes how an answer is written but not what it says.

    `$\\frac{1}{2}$` -> `1/2`, `12\\%` -> `12%`, `5\\text{ cm}` -> `5 cm`, `90^\\circ` -> `90°`. Fractions of longer
    terms keep brackets: `\\frac{x+1}{2}` -> `(x+1)/2`.
    """
    text = text.replace("$$", "$").strip()
    if len(text) > 2 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1]
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)]
    if "\\" not in text:
        return text
    text = _LATEX_BRACED.sub(r"\1", text)
    for pattern, plain in _LATEX_WORDS:
        text = pattern.sub(plain, text)
    text = re.sub(r"(?<=[0-9])(?=\\[dtc]?frac)", " ", text)
    return _LATEX_FRACTION.sub(_plain_fraction, text)


def _plain_fraction(match: re.Match[str]) -> str:
    above, below = (part.strip() for part in match.groups() if part is not None)
    # Two signs below the line are no longer one term on it: `1/2x` is half of x.
    is_one_term = below.isdigit() or len(below) == 1
    return f"{above if above.isalnum() else f'({above})'}/{below if is_one_term else f'({below})'}"


def boxed_answer(text: str) -> str | None:
    """Content of `\\boxed{…}`, braces balanced; the text itself where there is no box.

    None when the boxes disagree or one never closes: such a text has no definite answer.
    """
    if "\\boxed" not in text:
        return text
    contents = boxed_answers(text)
    return contents[0] if len(contents) == 1 else None


def boxed_answers(text: str) -> list[str]:
    """The different contents of the boxes of a text, in their order; none where one never closes.

    TeX allows `\\boxed 5`: without braces, what stands on the rest of the line.
    """
    contents, end = dict[str, None](), 0
    while match := _BOX.search(text, end):
        opening = match.end()
        if text[opening : opening + 1] == "{":
            closing = _closing_brace(text, opening)
            if closing is None:
                return []
            opening, end = opening + 1, closing
        else:
            stop = _BOX_LINE_END.search(text, opening)
            end = stop.start() if stop else len(text)
        contents[text[opening:end].strip()] = None
    return list(contents)


def _closing_brace(text: str, opening: int) -> int | None:
    """Index of the brace that closes the one at `opening`."""
    depth = 0
    if text[opening : opening + 1] != "{":
        return None
    for index in range(opening, len(text)):
        if text[index] in "{}" and text[index - 1] != "\\":
            depth += 1 if text[index] == "{" else -1
        if depth == 0:
            return index
    return None


def unwrap(text: str) -> str:
    """Take off brackets, quotes and emphasis that enclose the whole answer, and punctuation at its end."""
    while True:
        shorter = text.strip().rstrip(".!?;:,").strip()
        # Emphasis stands on both sides: the grade `A*` is no `A`.
        while len(shorter) > 2 and shorter[0] in "*_" and shorter[0] == shorter[-1]:
            shorter = shorter[1:-1].strip()
        closing = _BRACKETS.get(shorter[:1])
        if closing and len(shorter) > 1 and shorter.endswith(closing) and closing not in shorter[1:-1]:
            shorter = shorter[1:-1]
        if shorter == text:
            return text
        text = shorter


def normalise(text: str) -> str:
    """Text in which case, spacing, articles and sentence punctuation no longer matter.

    Signs that carry meaning stay: `c++` is not `c`, `-5` is not `5`, `3.5` is not `35`.
    """
    text = unwrap(strip_latex(fold_unicode(text)).casefold())
    text = _QUOTED.sub(lambda quoted: f" {quoted[1] or quoted[2] or ''} ", text)
    text = _QUOTE.sub(lambda quote: " " if quote[0] == '"' else "", text)
    text = _COMMA_BETWEEN_WORDS.sub(" ", text)
    text = _HYPHEN_BETWEEN_LETTERS.sub(" ", _PUNCTUATION_AT_WORD_END.sub(" ", text))
    return " ".join(_ARTICLE.sub("", " ".join(text.split())).split())


def is_blank(text: str) -> bool:
    """Nothing in the text is a letter or a digit."""
    return not any(char.isalnum() for char in text)


def digits_of(text: str) -> str:
    """The digits alone: what two ways to group them have in common."""
    return "".join(re.findall(r"\d", text))
