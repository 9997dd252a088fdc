"""Dates: definite ones (day, month named or ISO, year), and what dateutil makes of the rest for guesses."""

from __future__ import annotations

import re
from datetime import date, datetime

from dateutil import parser

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DEFINITE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]\d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}",
    re.IGNORECASE,
)
_DATE_LIKE = re.compile(rf"\b{_MONTH}(?![a-z])|\d[-/.]\d{{1,2}}[-/.]\d", re.IGNORECASE)
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d){1,2}\b|\b\d{1,2} ?[ap]\.?m\b", re.IGNORECASE)


def definite_date(text: str) -> date | None:
    """A date that can be read in one way only: ISO, or the month named, with day and year of four digits."""
    try:
        return parser.parse(text).date() if _DEFINITE.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def same_date(question: str, reference: str, prediction: str) -> bool | None:
    """A guess whether two texts are the same date or time of day; None where one of them is neither."""
    is_time = re.search(r"\b(?:time|clock|when|hour)\b", question.casefold())
    texts, blank = (reference[:40], prediction[:40]), datetime(2000, 1, 1)
    if not all(_DATE_LIKE.search(text) or (is_time and _CLOCK.search(text)) for text in texts):
        return None
    try:
        # 05/03/2020 may be in March or in May; an ISO date is in one of them for everybody.
        sides = [
            {parser.parse(text, default=blank, dayfirst=first) for first in (False, not re.match(r"\d{4}", text))}
            for text in texts
        ]
    except (ValueError, OverflowError, TypeError):
        return None
    return not sides[0].isdisjoint(sides[1])
