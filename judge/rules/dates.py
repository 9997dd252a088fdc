"""Dates: definite ones (day, month named or ISO, year), and what dateutil makes of the rest for guesses."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import TypeAlias

from dateutil import parser

Known: TypeAlias = dict[str, int]

_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_DEFINITE = re.compile(
    rf"\d{{4}}-\d\d-\d\d|\d{{1,2}}(?:st|nd|rd|th)?[ -](?:of )?{_MONTH},?[ -]\d{{4}}"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\b\d{1,2}(?::\d\d){1,2}\b|\b\d{1,2} ?[ap]\.?m\b", re.IGNORECASE)
_DATE_LIKE = re.compile(rf"\b{_MONTH}(?![a-z])|\d[-/.]\d{{1,2}}[-/.]\d", re.IGNORECASE)
_BLANKS = datetime(2000, 1, 1, 1, 1), datetime(2004, 2, 2, 2, 2)
"""What a text does not say is read from these; the two agree in what it does say."""


def definite_date(text: str) -> date | None:
    """A date that can be read in one way only: ISO, or the month named, with day and year of four digits."""
    if not _DEFINITE.fullmatch(text):
        return None
    try:
        return parser.parse(text).date()
    except (ValueError, OverflowError):
        return None


def same_date(question: str, reference: str, prediction: str) -> bool | None:
    """A guess whether two texts are the same date or time of day; None where one of them is neither."""
    is_time = re.search(r"\b(?:time|clock|when|hour|o'clock)\b", question.casefold()) is not None
    sides = [_readings(text, is_time) for text in (reference, prediction)]
    if not all(sides):
        return None
    return any(_agree(one, other) for one in sides[0] for other in sides[1])


def _readings(text: str, is_time: bool) -> list[Known]:
    has_time = is_time and _CLOCK.search(text)
    if len(text) > 40 or not (has_time or _DATE_LIKE.search(text)):
        return []
    # 05/03/2020 may be the 5th of March or the 3rd of May; ISO dates are one or the other for nobody.
    is_ambiguous = re.match(r"\d{1,2}[/.-]\d", text)
    found = [_known(text, day_first=day_first) for day_first in ((False, True) if is_ambiguous else (False,))]
    return [known for known in found if known]


def _known(text: str, *, day_first: bool) -> Known:
    try:
        one, other = (parser.parse(text, default=blank, dayfirst=day_first) for blank in _BLANKS)
    except (ValueError, OverflowError, TypeError):
        return {}
    known = {name: getattr(one, name) for name in ("year", "month", "day", "hour", "minute")}
    known = {name: value for name, value in known.items() if value == getattr(other, name)}
    if "hour" in known and not re.search(r"[ap]\.?m", text, re.IGNORECASE) and 0 < known["hour"] <= 12:
        known["half"] = known["hour"] % 12
        del known["hour"]
    return known


def _agree(reference: Known, prediction: Known) -> bool:
    """The prediction says all that the reference says; a morning or afternoon left out on one side may be either."""
    one, other = dict(reference), dict(prediction)
    if ("half" in one) != ("half" in other):
        one["half"], other["half"] = (side.pop("hour", side.get("half", -1)) % 12 for side in (one, other))
    return all(other.get(name) == value for name, value in one.items())
