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
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d){1,2}\b|\b\d{1,2} ?[ap]\.?m\b", re.IGNORECASE)
_DATE_LIKE = re.compile(rf"\b{_MONTH}(?![a-z])|\d[-/.]\d{{1,2}}[-/.]\d", re.IGNORECASE)


def definite_date(text: str) -> date | None:
    """A date that can be read in one way only: ISO, or the month named, with day and year of four digits."""
    try:
        return parser.parse(text).date() if _DEFINITE.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def same_date(question: str, reference: str, prediction: str) -> bool | None:
    """A guess whether two texts are the same date or time of day; None where one of them is neither."""
    is_time = re.search(r"\b(?:time|clock|when|hour|o'clock)\b", question.casefold()) is not None
    sides = [_readings(text) if (is_time and _CLOCK.search(text)) or _DATE_LIKE.search(text) else [] for text in (
        reference, prediction)]
    if not all(sides):
        return None
    return any(one.items() <= other.items() for one in sides[0] for other in sides[1])


def _readings(text: str) -> list[dict[str, int]]:
    """What a text may say of year, month, day, hour and minute: `05/03` is May or March, `3:15` morning or not."""
    found = []
    for day_first in (False, True) if re.match(r"\d{1,2}[/.-]\d", text) else (False,):
        try:
            # What the text does not say is taken from the two blanks, which differ in everything.
            blanks = datetime(2000, 1, 1, 1, 1), datetime(2004, 2, 2, 2, 2)
            one, other = (parser.parse(text[:40], default=blank, dayfirst=day_first) for blank in blanks)
        except (ValueError, OverflowError, TypeError):
            continue
        names = ("year", "month", "day", "hour", "minute")
        known = {name: getattr(one, name) for name in names if getattr(one, name) == getattr(other, name)}
        found.append(known)
        if known.get("hour", 13) <= 12 and not re.search(r"[ap]\.?m", text, re.IGNORECASE):
            found.append(known | {"hour": (known["hour"] + 12) % 24})
    return found
