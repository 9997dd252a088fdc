"""Reads an LLM judge's reply: whole and strictly. Anything but one verdict is no verdict, never a zero."""

from __future__ import annotations

import json
import re
from typing import Any

from judge.verdict import Failure, NoVerdict, Outcome, Usage, Verdict

REPLY_FORMAT = 1
"""Raise it when the same reply is read as another verdict: verdicts kept under the old one no longer count."""
MAX_REPLY_CHARS = 200
"""A verdict is shorter; a longer reply is refused unparsed."""
MAX_SHOWN_CHARS = 60
_JSON = re.compile(r'_\{_"verdict"_:_([01])_\}_'.replace("_", r"[ \t\r\n]*"))
_DIGIT = re.compile(r"_([01])_".replace("_", r"[ \t\r\n]*"))


class UnusableReply(ValueError):
    """The reply is not one verdict. The message says why."""


def parse_verdict(text: str, form: str) -> bool:
    """True for right, False for wrong.

    Args:
        form: of `judge.llm.reply`. `json`: exactly one object `{"verdict": 1}` or `{"verdict": 0}`, no other key.
            `choice`, `text`: exactly `1` or `0`. White space around it is no part of a reply.

    Raises:
        UnusableReply: anything else.
    """
    if len(text) > MAX_REPLY_CHARS:
        raise UnusableReply(f"{len(text)} characters instead of a verdict")
    if found := (_JSON if form == "json" else _DIGIT).fullmatch(text):
        return found[1] == "1"
    raise UnusableReply(f"not a verdict: {shown(text)}")


def read_completion(body: str, form: str, *, judge: str, judge_version: str) -> Outcome:
    """Outcome of one call that the endpoint answered with success.

    Args:
        body: the response as it came, meant to be a chat completion in JSON.
        form: of `judge.llm.reply`.
        judge: name for the verdict.
        judge_version: for the verdict.
    """
    usage = Usage(num_calls=1)
    try:
        completion = _object(_load(body), "the response")
        usage = _usage(completion)
        choices = completion.get("choices")
        if not isinstance(choices, list) or len(choices) != 1:
            raise UnusableReply(f"{len(choices) if isinstance(choices, list) else 'no'} choices instead of one")
        choice = _object(choices[0], "the choice")
        if choice.get("finish_reason") == "content_filter":
            return NoVerdict(reason="the endpoint filtered the reply", failure=Failure.REJECTED, usage=usage)
        text = _content(choice)
        is_correct = parse_verdict(text, form)
    except UnusableReply as error:
        return NoVerdict(reason=f"unusable reply: {error}", failure=Failure.UNUSABLE, usage=usage)
    model, reason = completion.get("model"), f"replied {shown(text)}"
    name = model if isinstance(model, str) else ""
    return Verdict(
        is_correct=is_correct, judge=judge, reason=reason, judge_version=judge_version, model=name, usage=usage
    )


def _load(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UnusableReply(f"the response is not JSON: {shown(body)}") from error


def _object(value: object, what: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise UnusableReply(f"{what} is not an object")


def _usage(completion: dict[str, Any]) -> Usage:
    """Tokens as the endpoint counted them; 0 where it does not say."""
    tokens = completion.get("usage")
    counts = [tokens.get(f"{what}_tokens") if isinstance(tokens, dict) else 0 for what in ("prompt", "completion")]
    prompt, reply = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return Usage(num_calls=1, prompt_tokens=prompt, reply_tokens=reply)


def _content(choice: dict[str, Any]) -> str:
    message = _object(choice.get("message"), "the message")
    for name in ("refusal", "tool_calls", "function_call"):
        if message.get(name):
            raise UnusableReply(f"the message has a {name}")
    if (reason := choice.get("finish_reason")) != "stop":
        raise UnusableReply(f"the reply ended by {shown(str(reason))}, not by stop")
    content = message.get("content")
    if isinstance(content, str):
        return content
    raise UnusableReply("the message has no text")


def shown(text: str) -> str:
    """A short, printable form of a text that came from outside."""
    short = text[:MAX_SHOWN_CHARS]
    return repr(short) if short.isprintable() else ascii(short)
