"""What a failed call says: which kind of failure it is, how long to wait, and a reason that can be shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from openai import APIError, APIStatusError

from judge.llm.apikey import hide_keys
from judge.verdict import Failure, NoVerdict, Usage

MAX_REASON_CHARS = 200
_DENIED = frozenset({401, 402, 403, 404, 405, 407, 410})
_UNREACHABLE = frozenset({408, 409, 425})
_QUOTA = "insufficient_quota"
"""OpenAI's code of a 429 that no wait mends: the account is empty."""


def describe_failure(error: APIError, keys: Iterable[str]) -> NoVerdict:
    """The failure of a call as the client raised it, without the keys."""
    usage = Usage(num_calls=1)
    if not isinstance(error, APIStatusError):
        cause = error.__cause__ or error
        reason = f"{type(error).__name__}: {type(cause).__name__} {cause}"
        return NoVerdict(reason=_shown(reason, keys), failure=Failure.UNREACHABLE, usage=usage)
    return NoVerdict(
        reason=_shown(f"status {error.status_code}, {type(error).__name__}: {_message(error)}", keys),
        failure=kind_of_status(error.status_code, error.code),
        retry_after_s=retry_after_s(error.response.headers),
        usage=usage,
    )


def kind_of_status(status: int, code: str | None) -> Failure:
    """What a status other than success means for the next call.

    Args:
        code: the endpoint's own word for the error, if any.
    """
    if status == 429:
        return Failure.DENIED if code == _QUOTA else Failure.THROTTLED
    if status in _DENIED:
        return Failure.DENIED
    if 400 <= status < 500 and status not in _UNREACHABLE:
        return Failure.REJECTED
    return Failure.UNREACHABLE


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` ask for; None where neither can be read.

    A date is taken from the reply's own `Date`, as the clocks of both sides may differ.

    Args:
        headers: keys in lower case, or a mapping that does not mind.
        now: stands in for a missing `Date`.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    until = _date(headers.get("retry-after"))
    if until is None:
        return None
    since = _date(headers.get("date")) or now or datetime.now(UTC)
    return max(0.0, (until - since).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _message(error: APIStatusError) -> str:
    """What the endpoint says in words, wherever it puts them."""
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else body
    message = inner.get("message", "") if isinstance(inner, dict) else inner
    return message if isinstance(message, str) else ""


def _shown(text: str, keys: Iterable[str]) -> str:
    """One short line, keys hidden before the cut: half a key is a leak as well."""
    line = " ".join(hide_keys(text, keys).split())
    return "".join(char if char.isprintable() else "?" for char in line)[:MAX_REASON_CHARS]
