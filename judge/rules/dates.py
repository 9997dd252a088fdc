"""Dates, times of day, and the names of days and months.

A text may be read in more than one way: `03/05/2021` is in March or in May, `3:30` before or after noon. Each text is a
set of readings; where the sets do not meet the answer is wrong, where each holds the same single one it is right, and
the rest is for somebody who knows more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from typing import TypeAlias

from judge.rules.findings import Finding, Rule, right, wrong
from judge.rules.normalise import fold_unicode, unwrap
from judge.rules.quantity import parse_quantity

_Day: TypeAlias = tuple[int | None, int, int | None]
"""Year, month, day; None where it is not said."""

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SHORT = {"sept": "september", "tues": "tuesday", "weds": "wednesday", "thur": "thursday", "thurs": "thursday"}
_SHORT |= {name[:3]: name for name in (*_MONTHS, *_WEEKDAYS)}
_MONTH = r"(?P<month>[a-z]+)\.?"
_WRITTEN = [
    re.compile(rf"{_MONTH}\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(?P<year>\d{{4}}))?"),
    re.compile(rf"(?:the\s+)?(?P<day>\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+(?P<year>\d{{4}}))?"),
    re.compile(rf"{_MONTH},?\s+(?:of\s+)?(?P<year>\d{{4}})"),
]
_YEAR_FIRST = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_YEAR_LAST = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{4})")
_WEEKDAY_BEFORE = re.compile(rf"({'|'.join(name[:3] for name in _WEEKDAYS)})[a-z]*\.?,?\s+(?=\S)")
_CLOCK = re.compile(r"(?:at\s+)?(?P<hour>\d{1,2})(?:(?P<mark>[:.h])(?P<minute>[0-5]\d))?\s*(?P<half>am|pm|o'clock)?")
_PAST = re.compile(
    r"(?:(?:a|at)\s+)?(?P<part>quarter|half|[a-z0-9-]+(?=\s+minutes?))(?:\s+minutes?)?\s+(?P<way>past|after|to|before)"
    r"\s+(?P<hour>[a-z0-9]+)"
)
_DAY_MINUTES = 24 * 60


def compare_dates(reference: str, prediction: str) -> Finding | None:
    """Compare two texts as dates, times, or names of days and months; None where one of them is none of these."""
    one, other = (unwrap(fold_unicode(text)).casefold() for text in (reference, prediction))
    expected_name, given_name = _name(one), _name(other)
    # `Sun` or `May` may be anything; a name spelled out in the reference says what is meant.
    if expected_name and given_name and one == expected_name and _are_alike(expected_name, given_name):
        return _finding(expected_name == given_name, Rule.DATE)
    expected_days, given_days = _read_days(one), _read_days(other)
    if expected_days and given_days:
        finding = _compare_days(expected_days, given_days)
        weekdays = [match[1] for text in (one, other) if (match := _WEEKDAY_BEFORE.match(text))]
        return wrong(Rule.DATE_UNCLEAR) if finding.is_correct and len(set(weekdays)) > 1 else finding
    expected_times, given_times = _read_times(one), _read_times(other)
    if expected_times and given_times:
        if expected_times == given_times:
            return right(Rule.DATE, "same")
        is_open = bool(expected_times & given_times) or _are_equal_ratios(one, other)
        return right(Rule.DATE_UNCLEAR) if is_open else wrong(Rule.DATE, "different")
    return None


def _compare_days(expected: frozenset[_Day], given: frozenset[_Day]) -> Finding:
    pairs = [(one, other) for one in expected for other in given]
    if not any(_can_be_same(one, other) for one, other in pairs):
        return wrong(Rule.DATE, "different")
    is_definite = len(pairs) == 1 and expected == given
    return right(Rule.DATE, "same") if is_definite else right(Rule.DATE_UNCLEAR)


def _can_be_same(one: _Day, other: _Day) -> bool:
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def _name(text: str) -> str | None:
    word = text.rstrip(".")
    word = _SHORT.get(word, word)
    return word if word in _MONTHS or word in _WEEKDAYS else None


def _are_alike(one: str, other: str) -> bool:
    return any(one in names and other in names for names in (_MONTHS, _WEEKDAYS))


def _read_days(text: str) -> frozenset[_Day]:
    text = _WEEKDAY_BEFORE.sub("", text, count=1)
    if match := _YEAR_FIRST.fullmatch(text):
        return _existing([(int(match[1]), int(match[3]), int(match[4]))])
    if match := _YEAR_LAST.fullmatch(text):
        first, second, year = int(match[1]), int(match[3]), int(match[4])
        return _existing([(year, first, second), (year, second, first)])
    for pattern in _WRITTEN:
        if match := pattern.fullmatch(text):
            parts = match.groupdict()
            name = _name(parts["month"])
            if name in _MONTHS:
                said, day = (int(parts[key]) if parts.get(key) else None for key in ("year", "day"))
                return _existing([(said, _MONTHS.index(name) + 1, day)])
    return frozenset()


def _existing(days: Iterable[_Day]) -> frozenset[_Day]:
    """Those that a calendar has. 29 February may stand without a year."""
    found = set()
    for year, month, day in days:
        try:
            date(year or 2000, month, day or 1)
        except ValueError:
            continue
        found.add((year, month, day))
    return frozenset(found)


def _read_times(text: str) -> frozenset[int]:
    """Minutes after midnight that a text may mean."""
    text = text.replace("a.m", "am").replace("p.m", "pm").rstrip(".")
    if text in ("noon", "midday", "midnight"):
        return frozenset({0 if text == "midnight" else 12 * 60})
    if match := _PAST.fullmatch(text):
        part, hour = _whole({"quarter": "15", "half": "30"}.get(match["part"], match["part"])), _whole(match["hour"])
        if part is None or hour is None or not (0 < part < 60 and 1 <= hour <= 12):
            return frozenset()
        minutes = hour * 60 + (part if match["way"] in ("past", "after") else -part)
        return frozenset(at % _DAY_MINUTES for at in (minutes, minutes + 12 * 60))
    match = _CLOCK.fullmatch(text)
    # `7.30` without more is a number.
    if match is None or not (match["half"] or (match["minute"] and match["mark"] != ".")):
        return frozenset()
    clock_hour, minute, half = int(match["hour"]), int(match["minute"] or 0), match["half"]
    if clock_hour > 23 or (half in ("am", "pm") and not 1 <= clock_hour <= 12):
        return frozenset()
    if half in ("am", "pm"):
        return frozenset({(clock_hour % 12 + (12 if half == "pm" else 0)) * 60 + minute})
    # An hour past twelve is of the 24-hour clock; up to twelve nobody can tell.
    hours = (clock_hour,) if clock_hour > 12 or clock_hour == 0 else (clock_hour % 12, clock_hour % 12 + 12)
    return frozenset(each * 60 + minute for each in hours)


def _whole(word: str) -> int | None:
    quantity = parse_quantity(word)
    return int(quantity.value) if quantity and quantity.unit is None and quantity.value.denominator == 1 else None


def _are_equal_ratios(one: str, other: str) -> bool:
    """`10:20` and `20:40` may be ratios."""
    if not all(re.fullmatch(r"[\d:]+", text) for text in (one, other)):
        return False
    pairs = [[int(part) for part in re.findall(r"\d+", text)] for text in (one, other)]
    return all(len(pair) == 2 for pair in pairs) and pairs[0][0] * pairs[1][1] == pairs[0][1] * pairs[1][0]


def _finding(is_correct: bool, rule: Rule) -> Finding:
    return Finding(is_correct=is_correct, rule=rule, detail="same" if is_correct else "different")
