"""The error that every invalid setting gives: field, value, remedy."""

from __future__ import annotations


def require(condition: bool, fieldname: str, value: object, remedy: str) -> None:
    """Raise ValueError unless the condition holds.

    The remedy completes the sentence "field=value is invalid: ...", as in "must be at least 1".
    """
    if not condition:
        raise ValueError(f"{fieldname}={value!r} is invalid: {remedy}")
