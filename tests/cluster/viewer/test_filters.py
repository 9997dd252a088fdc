"""Filters: from an address to a condition and back."""

import pytest

from cluster.viewer.filters import MAX_TEXT, Filter


def test_parameters_of_other_meaning_and_empty_ones_are_left_alone():
    chosen = Filter.of({"verdict": "wrong", "tool": "", "token": "secret", "offset": "100", "pos": "3"})
    assert dict(chosen.values) == {"verdict": "wrong"}
    assert chosen.query() == "verdict=wrong"
    assert Filter.of({"step": "3", "q": "a&b"}).query() == "step=3&q=a%26b"


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ({"verdict": "maybe"}, "right, wrong, none"),
        ({"preset": "best"}, "needless"),
        ({"sort": "question; DROP TABLE episodes"}, "sort"),
        ({"sort": "--step"}, "sort"),
        ({"step": "1-2-3"}, "10-20"),
        ({"step": "-1"}, "step"),
        ({"step": "9" * 30}, "step"),
        ({"q": "x" * (MAX_TEXT + 1)}, "at most 500"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_what_can(query, problem):
    with pytest.raises(ValueError, match=problem):
        Filter.of(query)


def test_what_people_type_is_bound_and_never_part_of_the_statement():
    attack = "'; DROP TABLE episodes; --"
    where, bound = Filter.of({"q": attack, "sample": attack, "reason": attack, "step": "3-9"}).where()
    assert "DROP" not in where
    assert bound.count(attack) == 3
    assert bound[-3:-1] == [3, 9]
    assert where.count("?") == len(bound)
