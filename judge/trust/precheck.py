"""Answers that are wrong whoever judges: decided before any call, because LLM judges are known to pass them.

An answer is wrong when it is empty, only punctuation, only a phrase that opens an answer (such as `Solution`, which
passes up to nine of ten LLM judges: arXiv 2507.08794), or longer than the cap, unless the reference holds the same.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from judge.llm.fence import clean_text
from judge.trust.goldset import FOLDER
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

_TAGS = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{0,20})>([^<>]*)</\1>")
_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_LATEX_SHELL = re.compile(r"\\(?:text|mathrm|mathbf|boxed)\s*\{|\\[()\[\],;! ]")
_MARKUP_SIGNS = frozenset("|~^`´¨")
"""Signs of markup that Unicode does not count as punctuation. `+`, `=`, `<`, `$`, `°` may be answers."""
_OTHER_NAMES = {".": "period dot point", "-": "dash minus", "/": "slash", "*": "star", "#": "hash", "'": "quote"}
_OTHER_NAMES |= dict.fromkeys("([{", "bracket brackets parentheses")
"""What people call signs besides their Unicode names."""
_NO_NAMES = frozenset(("a", "an", "the", "mark", "marks", "sign", "symbol", "left", "right"))
PASS_PHRASES = frozenset((FOLDER / "pass_phrases.txt").read_text(encoding="utf-8").split("\n")) - {""}
"""Openings of an answer that say nothing, as `_words` writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precheck:
    """First judge of every chain."""

    max_answer_chars: int

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        return [precheck(request.reference, p, max_answer_chars=self.max_answer_chars) for p in request.predictions]


def precheck(reference: str, prediction: str, *, max_answer_chars: int) -> Outcome:
    """Wrong by a written rule, or undecided. Never right, and undecided where the reference itself says nothing."""
    if reason := _why_wrong(reference, prediction, max_answer_chars):
        return Verdict(is_correct=False, judge="precheck", reason=reason)
    return NoVerdict(reason="says something", failure=Failure.UNDECIDED)


def _why_wrong(reference: str, prediction: str, max_answer_chars: int) -> str | None:
    if reference.strip() in ("", prediction.strip()):
        return None
    if len(prediction) > max_answer_chars:
        return f"longer than {max_answer_chars} characters"
    said, expected = _peel(clean_text(prediction, max_answer_chars)), clean_text(reference, max_answer_chars)
    if not said.strip():
        return "empty"
    if all(_is_punctuation(char) for char in said):
        is_asked = _signs(said) in _signs(expected) or _is_named(_signs(said), expected)
        return None if is_asked else "only punctuation"
    is_asked = f" {_words(said)} " in f" {_words(expected)} "
    return "a phrase that opens an answer" if _words(said) in PASS_PHRASES and not is_asked else None


def _peel(text: str) -> str:
    """What is left of a text without boxes, tags and emphasis around nothing."""
    boxed = {match[1].strip() for match in _BOX.finditer(text)}
    inner = boxed.pop() if len(boxed) == 1 else text
    return _LATEX_SHELL.sub(" ", _TAGS.sub(r" \2 ", inner))


def _is_punctuation(char: str) -> bool:
    return char.isspace() or char in _MARKUP_SIGNS or unicodedata.category(char).startswith("P")


def _signs(text: str) -> str:
    """Without spaces, every dash the same."""
    chars = "".join(unicodedata.normalize("NFKC", text).split())
    return "".join("-" if unicodedata.category(char) == "Pd" or char == "−" else char for char in chars)


def _is_named(signs: str, text: str) -> bool:
    """Whether a text is the name of one of the signs: `question mark` for `?`."""
    names = _words(" ".join(f"{unicodedata.name(sign, '')} {_OTHER_NAMES.get(sign, '')}" for sign in signs)).split()
    said = set(_words(text).split()) - _NO_NAMES
    return bool(said) and said.issubset(names)


def _words(text: str) -> str:
    """Letters, digits and their marks (vowel signs of Indic scripts) in one case, one space between words."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold())
    kept = (char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in folded)
    return " ".join("".join(kept).split())
