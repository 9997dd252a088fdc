"""Reads an LLM judge's reply: whole and strictly. Anything but one verdict is no verdict, never a zero."""

from __future__ import annotations

import json
import re

from judge.verdict import Failure, NoVerdict, Outcome, Usage, Verdict

MAX_REPLY_CHARS = 200
"""A verdict is shorter; a longer reply is refused unparsed."""
MAX_SHOWN_CHARS = 60
_JSON = re.compile(r'_\{_"verdict"_:_([01])_\}_'.replace("_", r"[ \t\r\n]*"))
_DIGIT = re.compile(r"_([01])_".replace("_", r"[ \t\r\n]*"))


def parse_verdict(text: str, form: str) -> bool | None:
    """True for right, False for wrong; None where the text is not exactly one verdict.

    Args:
        form: of `judge.llm.reply`. `json`: exactly one object `{"verdict": 1}` or `{"verdict": 0}`, no other key.
            `choice`, `text`: exactly `1` or `0`. White space around it is no part of a reply.
    """
    found = (_JSON if form == "json" else _DIGIT).fullmatch(text)
    return found[1] == "1" if found and len(text) <= MAX_REPLY_CHARS else None


def read_completion(body: str, form: str, *, judge: str, judge_version: str) -> Outcome:
    """Outcome of one call that the endpoint answered with success.

    Args:
        body: the response as it came, meant to be a chat completion in JSON.
        form: of `judge.llm.reply`.
        judge: name for the verdict.
        judge_version: for the verdict.
    """
    usage, is_correct = Usage(num_calls=1), None
    try:
        completion = json.loads(body)
        tokens = completion.get("usage") or {}
        counted = (tokens.get("prompt_tokens"), tokens.get("completion_tokens"))  # 0 where the endpoint does not say
        prompt, reply = (count if type(count) is int and count >= 0 else 0 for count in counted)
        usage = Usage(num_calls=1, prompt_tokens=prompt, reply_tokens=reply)
        (choice,) = completion["choices"]
        end, message = choice["finish_reason"], choice["message"]
        if end == "content_filter":
            return NoVerdict(reason="the endpoint filtered the reply", failure=Failure.REJECTED, usage=usage)
        if extras := [name for name in ("refusal", "tool_calls", "function_call") if message.get(name)]:
            reason = f"the message has a {extras[0]}"
        elif end != "stop":
            reason = f"the reply ended by {shown(str(end))}, not by stop"
        else:
            is_correct, reason = parse_verdict(message["content"], form), shown(message["content"])
            reason = f"not a verdict: {reason}" if is_correct is None else f"replied {reason}"
        model = completion.get("model")
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError):
        reason = f"no chat completion with one choice: {shown(body)}"
    if is_correct is None:
        return NoVerdict(reason=f"unusable reply: {reason}", failure=Failure.UNUSABLE, usage=usage)
    return Verdict(
        is_correct=is_correct,
        judge=judge,
        reason=reason,
        judge_version=judge_version,
        model=model if isinstance(model, str) else "",
        usage=usage,
    )


def shown(text: str) -> str:
    """A short, printable form of a text that came from outside."""
    short = text[:MAX_SHOWN_CHARS]
    return repr(short) if short.isprintable() else ascii(short)
