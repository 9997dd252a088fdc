"""Reads an LLM judge's reply: whole and strictly. Anything but one verdict is no verdict, never a zero."""

from __future__ import annotations

import json
import re

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
        completion = json.loads(body)
        usage = _usage(completion.get("usage"))
        (choice,) = completion["choices"]
        end, message = choice["finish_reason"], choice["message"]
        if end == "content_filter":
            return NoVerdict(reason="the endpoint filtered the reply", failure=Failure.REJECTED, usage=usage)
        if extras := [name for name in ("refusal", "tool_calls", "function_call") if message.get(name)]:
            raise UnusableReply(f"the message has a {extras[0]}")
        if end != "stop":
            raise UnusableReply(f"the reply ended by {shown(str(end))}, not by stop")
        text = message["content"]
        is_correct, model = parse_verdict(text, form), completion.get("model")
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        why = error if isinstance(error, UnusableReply) else f"no chat completion with one choice: {shown(body)}"
        return NoVerdict(reason=f"unusable reply: {why}", failure=Failure.UNUSABLE, usage=usage)
    return Verdict(
        is_correct=is_correct,
        judge=judge,
        reason=f"replied {shown(text)}",
        judge_version=judge_version,
        model=model if isinstance(model, str) else "",
        usage=usage,
    )


def _usage(tokens: object) -> Usage:
    """Tokens as the endpoint counted them; 0 where it does not say."""
    counts = [tokens.get(f"{what}_tokens") if isinstance(tokens, dict) else 0 for what in ("prompt", "completion")]
    prompt, reply = (count if type(count) is int and count >= 0 else 0 for count in counts)
    return Usage(num_calls=1, prompt_tokens=prompt, reply_tokens=reply)


def shown(text: str) -> str:
    """A short, printable form of a text that came from outside."""
    short = text[:MAX_SHOWN_CHARS]
    return repr(short) if short.isprintable() else ascii(short)
