"""Sorts a reply, token by token, into reasoning and answer."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Channel = Literal["reasoning", "answer"]
TAGS: dict[str, Channel | None] = {
    "<think>": "reasoning",
    "</think>": "answer",
    "<answer>": "answer",
    "</answer>": "answer",
    "<tool_call>": None,
    "</tool_call>": "answer",
}
"""Tag -> where the text after it belongs. A call is shown nowhere; text outside of the format counts as the answer."""
_TAG = re.compile("|".join(map(re.escape, TAGS)))
UNFINISHED = "\ufffd"
"""What the bytes of half a character decode to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of text to show."""

    channel: Channel
    text: str


class TokenText:
    """Token ids to text, as they come. Decodes a short window each time, so a long reply takes linear time.

    Args:
        decode: ids to text, such as `ChatRenderer.reply_text`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = self._shown = 0

    def add(self, token_ids: Sequence[int], *, is_last: bool = False) -> str:
        """The text that these ids add, without the half of a character that more ids would complete."""
        self._ids.extend(token_ids)
        before = self._decode(self._ids[self._start : self._shown])
        text = self._decode(self._ids[self._start :])
        if len(text) <= len(before) or (text.endswith(UNFINISHED) and not is_last):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return text[len(before) :]


class ReplySplitter:
    """One turn's text into deltas. However the text is cut into pieces, the deltas of a channel join to the same text.

    Spaces around what a channel shows are left out, as `parse_reply` does with answers. Call `finish` at the end.
    """

    def __init__(self) -> None:
        self._channel: Channel | None = "answer"
        self._rest = ""
        """Not sorted yet: it may be the beginning of a tag."""
        self._space: dict[Channel, str | None] = {"reasoning": None, "answer": None}
        """Spaces held back until text follows them; None before the first text."""

    def add(self, text: str) -> list[Delta]:
        return self._sort(text, is_last=False)

    def finish(self) -> list[Delta]:
        return self._sort("", is_last=True)

    def _sort(self, text: str, *, is_last: bool) -> list[Delta]:
        self._rest += text
        found: list[Delta] = []
        while tag := _TAG.search(self._rest):
            self._show(self._rest[: tag.start()], found)
            self._rest = self._rest[tag.end() :]
            self._channel = TAGS[tag[0]]
        possible = -1 if is_last else self._rest.rfind("<")
        is_open = possible >= 0 and any(tag.startswith(self._rest[possible:]) for tag in TAGS)
        end = possible if is_open else len(self._rest)
        self._show(self._rest[:end], found)
        self._rest = self._rest[end:]
        return found

    def _show(self, text: str, found: list[Delta]) -> None:
        if self._channel is None or not text:
            return
        held = self._space[self._channel]
        text = text.lstrip() if held is None else held + text
        shown = text.rstrip()
        if shown or held is not None:
            self._space[self._channel] = text[len(shown) :]
        if shown:
            found.append(Delta(channel=self._channel, text=shown))


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """The same text in as few deltas as there are changes of channel."""
    runs = itertools.groupby(deltas, key=lambda delta: delta.channel)
    return [Delta(channel=channel, text="".join(delta.text for delta in run)) for channel, run in runs]


def split_reply(text: str) -> list[Delta]:
    """The deltas of a whole turn."""
    splitter = ReplySplitter()
    return [*splitter.add(text), *splitter.finish()]
