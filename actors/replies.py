"""Parses replies of a policy: a thought, then an answer or a call of a tool."""

from __future__ import annotations

import re
from dataclasses import dataclass

from actors.prompts import SPECIAL_TOKEN
from actors.tools.registry import Toolbox, ToolCall
from actors.tools.tool import WrongCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    text: str
    """Text between the answer tags, stripped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """A reply outside the format, or a call where no tool is on offer."""

    reason: str


Reply = Answer | ToolCall | WrongCall | Malformed

_REPLY = re.compile(
    r"\s*<think>(?P<think>.*?)</think>\s*"
    r"(?:<answer>(?P<answer>.*)</answer>|<tool_call>(?P<call>.*)</tool_call>)\s*",
    re.DOTALL,
)
_TAG = re.compile(r"</?(?:think|answer|tool_call)>")


def parse_reply(text: str, toolbox: Toolbox | None) -> Reply:
    """One thought, then exactly one answer or one call, and nothing else (R_format of Eq. 4).

    Args:
        toolbox: the tools on offer, which read the call; None where there are none.
    """
    match = _REPLY.fullmatch(text)
    if match is None:
        return Malformed(reason="not one <think> followed by one <answer> or one <tool_call>")
    if any(_TAG.search(part) for part in match.groupdict().values() if part):
        return Malformed(reason="nested tags")
    if SPECIAL_TOKEN.search(text):
        return Malformed(reason="a special token in the reply")
    if match["answer"] is not None:
        return Answer(text=match["answer"].strip())
    return Malformed(reason="no tool is on offer") if toolbox is None else toolbox.parse(match["call"])
