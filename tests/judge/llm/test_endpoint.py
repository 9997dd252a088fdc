"""What a failed call means."""

from datetime import UTC, datetime

import pytest

from judge.llm.endpoint import kind_of_status, retry_after_s
from judge.verdict import Failure

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 02 Jan 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 02 Jan 2026 12:00:30 -0000"}, 30.0),
        ({"retry-after": "Fri, 02 Jan 2026 11:00:00 GMT"}, 0.0),
        # The endpoint's clock is a day off: only the difference counts.
        ({"retry-after": "Sat, 03 Jan 2026 12:00:05 GMT", "date": "Sat, 03 Jan 2026 12:00:00 GMT"}, 5.0),
        ({"retry-after": "Fri, 02 Jan 2026 12:00:30 GMT", "date": "yesterday"}, 30.0),
        ({"retry-after": "Fri, 99 Jan 2026 12:00:30 GMT"}, None),
        ({"retry-after": "Fri, 02 Jan 99999999999999999999 12:00:30 GMT"}, None),
    ],
)
def test_how_long_to_wait_is_read_from_any_of_its_forms(headers, seconds):
    assert retry_after_s(headers, now=NOON) == seconds


@pytest.mark.parametrize(
    ("status", "code", "failure"),
    [
        (400, None, Failure.REJECTED),
        (400, "content_filter", Failure.REJECTED),
        (401, None, Failure.DENIED),
        (402, None, Failure.DENIED),
        (403, None, Failure.DENIED),
        (404, "model_not_found", Failure.DENIED),
        (408, None, Failure.UNREACHABLE),
        (413, None, Failure.REJECTED),
        (422, None, Failure.REJECTED),
        (429, None, Failure.THROTTLED),
        (429, "rate_limit_exceeded", Failure.THROTTLED),
        (429, "insufficient_quota", Failure.DENIED),
        (500, None, Failure.UNREACHABLE),
        (503, None, Failure.UNREACHABLE),
        (529, None, Failure.UNREACHABLE),
        (302, None, Failure.UNREACHABLE),
    ],
)
def test_a_status_tells_what_the_next_call_may_hope_for(status, code, failure):
    assert kind_of_status(status, code) is failure
