"""Makes a text from outside fit to stand in a prompt: as data, between marks that it cannot know."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import unicodedata

_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})
"""Control and format characters (zero width, direction, tags), private and unassigned ones, lone surrogates."""
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Characters that show nothing though their category says letter or mark."""
_SPECIAL_TOKEN = re.compile(
    r"<[|｜][^<>|｜\n]{0,64}[|｜]>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|IMG|IMG_BREAK|IMG_END|CLS|SEP|PAD|MASK|gMASK)\]"
    r"|\[\|(?:system|user|assistant|tool|endofturn)\|\]"
    r"|<</?SYS>>"
    r"|</?(?:s|bos|eos|pad|unk|mask|image|video|start_of_turn|end_of_turn|start_of_image|end_of_image"
    r"|image_soft_token|end_of_utterance|sop|eop|extra_id_[0-9]{1,3}|unused[0-9]{1,4}|think|tool_call|tool_response|tools)>",
    re.IGNORECASE,
)
"""Role marks and control tokens of the common chat templates: a tokenizer may read them as such wherever they stand."""


def clean_text(text: str, max_chars: int) -> str:
    """The text as a judge may see it: visible characters and line feeds, no special tokens, at most `max_chars`.

    A special token is spaced out (`<s>` becomes `< s>`): it stays readable. Nothing else is rewritten.
    """
    # Cut twice: the first cut bounds the work on a text of any length.
    text = _LINE_ENDS.sub("\n", text[: 4 * max_chars])
    if not text.isprintable():
        text = "".join(char for char in text if char in "\n\t" or unicodedata.category(char) not in _DROPPED_CATEGORIES)
    text = _SPECIAL_TOKEN.sub(lambda token: f"{token[0][0]} {token[0][1:]}", _INVISIBLE.sub("", text))
    return text[:max_chars].strip()


def group_code(secret: bytes, *texts: str) -> str:
    """The code of the marks around question, reference and prediction; nobody knows it who lacks the secret.

    All predictions of a group have the same: equal calls of a run are equal byte for byte, and the calls of a group
    share what stands before the prediction. Only a text that holds the code by chance gets another one.
    """
    *group, _ = texts
    code = hmac.new(secret, json.dumps(group).encode(), hashlib.sha256).hexdigest()[:16]
    while any(code in text.casefold() for text in texts):
        code = hmac.new(secret, code.encode(), hashlib.sha256).hexdigest()[:16]
    return code


def fence(name: str, text: str, code: str) -> str:
    """A cleaned text between its two marks."""
    return f"<<<{name} {code}>>>\n{text}\n<<<end of {name} {code}>>>"
