"""The one kind of error that a bad setting gives."""

from __future__ import annotations


def require(condition: bool, fieldname: str, value: object, remedy: str) -> None:
    """Raise ValueError with field, value and remedy unless the condition holds."""
    if not condition:
        raise ValueError(f"{fieldname}={value!r} cannot work: {remedy}")
