"""Makes a text from outside fit to stand in a prompt: as data, between marks that it cannot know."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Sequence

NONCE_BYTES = 8
MAX_DRAWS = 100

_LINE_ENDS = re.compile(r"\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn"})
"""Control and format characters (zero width, direction, tags), private and unassigned ones, lone surrogates."""
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
"""Those that show nothing though their category says letter or mark."""
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

    What it says is kept as written; there is no compatibility folding, which would turn `10²` into `102`.
    """
    # Cut twice: the first cut bounds the work on a text of any length.
    text = _LINE_ENDS.sub("\n", text[: 4 * max_chars])
    text = _INVISIBLE.sub("", "".join(char for char in text if char in "\n\t" or _is_kept(char)))
    return _without_special_tokens(text)[:max_chars].strip()


def _is_kept(char: str) -> bool:
    return unicodedata.category(char) not in _DROPPED_CATEGORIES


def _without_special_tokens(text: str) -> str:
    """Taking one out may join its surroundings to another, so until none is left."""
    while (shorter := _SPECIAL_TOKEN.sub("", text)) != text:
        text = shorter
    return text


def draw_nonce(texts: Sequence[str], draw: Callable[[], str] = lambda: secrets.token_hex(NONCE_BYTES)) -> str:
    """A code for the marks of one call: nobody can guess it, and none of the texts holds it."""
    for _ in range(MAX_DRAWS):
        nonce = draw()
        if not any(nonce in text.casefold() for text in texts):
            return nonce
    raise AssertionError(f"{MAX_DRAWS} codes in a row stood in the texts: the source of codes is broken")


def fence(name: str, text: str, nonce: str) -> str:
    """A cleaned text between its two marks."""
    assert nonce not in text, "a mark must not stand in the text it encloses"
    return f"<<<{name} {nonce}>>>\n{text}\n<<<end of {name} {nonce}>>>"
