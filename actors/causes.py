"""From what failing processes wrote to the one line that says why. Pure: texts in, a line out.

Frameworks wrap the error that matters: vLLM's engine ends with "See root cause above", pydantic with the address of its
manual, Ray with the traceback of another process. The cause is the last exception that says more than where to look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

MAX_CAUSE_CHARS = 600

NEXT_TRACEBACK = ("Traceback (most", "ray::", "During handling", "The above exception")

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
"""Ray paints the start of a traceback."""
_LOG_PREFIX = re.compile(r"^\s?(?:\([^()]*pid=\d+[^()]*\)\s?)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]*\]\s?)?")
"""Which process wrote a line, and what vLLM's logging puts before each line of a traceback."""
_EXCEPTION = re.compile(r"^(?:[A-Za-z_]\w*\.)*([A-Z]\w*(?:Error|Exception|Exit|Interrupt|Expired))(?:: ?(.*))?$")
_VALIDATION = re.compile(r"^\d+ validation errors? for (.+)$")
_VALIDATION_TAIL = re.compile(r"\s*\[type=\w+, input_value=.*$")
_FATAL = re.compile(r"Fatal Python error|terminate called|what\(\):|Check failed|Segmentation fault")
_VAGUE = re.compile(
    r"root cause|stack ?trace (?:above|below)|see (?:the )?(?:stack ?trace|logs?\b)|for further information"
    r"|the actor (?:died|is dead)|engine core initialization failed|enginecore encountered|engine core proc"
    r"|worker ?proc.* died|died unexpectedly|cannot pickle|isn't serializable"
    r"|broken pipe|connection reset by peer|cancelled|^no message$|^$",
    re.IGNORECASE,
)
"""Messages that point elsewhere, or that a process in its end adds to its cause."""


def plain_lines(text: str) -> list[str]:
    """Lines of a text without colours and logging prefixes, indentation kept."""
    return [_LOG_PREFIX.sub("", line).rstrip() for line in _COLOURS.sub("", text).splitlines()]


def is_vague(message: str) -> bool:
    """Whether a message says where to look, or that something died, but not why."""
    return _VAGUE.search(message.strip()) is not None


def last_cause(text: str) -> str | None:
    """`Name: message` of the last exception in a traceback or log that says why; None where there is none."""
    lines = plain_lines(text)
    found = None
    for name, message in _exceptions(lines):
        if not is_vague(message):
            found = f"{name}: {message}"
    return found[:MAX_CAUSE_CHARS] if found else None


def cause_in_log(text: str) -> str | None:
    """Why a process failed, from its log: an exception, or the last words of one that did not live to raise any."""
    if (cause := last_cause(text)) is not None:
        return cause
    fatal = [line.strip() for line in plain_lines(text) if _FATAL.search(line)]
    return fatal[-1][:MAX_CAUSE_CHARS] if fatal else None


def gist(error: BaseException | str) -> str:
    """The line of an error of Ray, Serve, vLLM or pydantic, or of its message, that says why.

    That is the first one, or the last that tells a cause where the traceback of another process comes before it.
    """
    if isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    text = str(error)
    lines = [line.strip() for line in plain_lines(text) if line.strip()] or ["no message"]
    if validation := _VALIDATION.match(lines[0]):
        return _validation_message(validation[1], lines[1:])[:MAX_CAUSE_CHARS]
    is_traceback = "creation task" in lines[0] or any(line.startswith(("ray::", "Traceback (most")) for line in lines)
    if not is_traceback:
        return lines[0][:MAX_CAUSE_CHARS]
    return last_cause(text) or lines[-1][:MAX_CAUSE_CHARS]


def _exceptions(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Name and message of each exception whose last line of a traceback stands in the text, in its order."""
    for number, line in enumerate(lines):
        if (match := _EXCEPTION.match(line)) is None:
            continue
        name, message = match[1], (match[2] or "").strip()
        following = _message_lines(lines[number + 1 :])
        if validation := _VALIDATION.match(message):
            yield validation[1], _validation_message("", following)
        elif (not message or message.endswith(":")) and following:
            yield name, f"{message} {following[0]}".strip()
        else:
            yield name, message


def _message_lines(lines: Sequence[str]) -> list[str]:
    """The rest of a message of several lines: up to an empty line, another exception or traceback."""
    rest: list[str] = []
    for line in lines:
        if not line.strip() or _EXCEPTION.match(line) or line.startswith(NEXT_TRACEBACK):
            break
        rest.append(line.strip())
    return rest


def _validation_message(model: str, lines: Sequence[str]) -> str:
    """pydantic's list of fields and complaints as one line, without types and the address of its manual."""
    told = [line.strip() for line in lines if line.strip() and not is_vague(line)]
    cleaned = (_VALIDATION_TAIL.sub("", line).removeprefix("Value error, ").removesuffix(",") for line in told)
    message = ": ".join(line for line in cleaned if line)
    return f"{model}: {message}" if model else message
