"""The paper's rule: 8 + 8 right is low, 6 of 8 more at full is full, the rest is out; both classes of one size."""

import pytest

from cluster.datasets.selection import Rule, Tried, figures, select_balanced

RULE = Rule()


def tried(row, quarter, full, **changes):
    return Tried(row=row, num_quarter=quarter, num_full=full, full_size=(8, 8), **changes)


@pytest.mark.parametrize(
    ("quarter", "full", "need"),
    [
        (8, 8, "low"),
        (7, 8, None),
        (8, 7, None),
        (0, 8, "full"),
        (0, 6, "full"),
        (2, 8, "full"),
        (3, 8, None),
        (0, 5, None),
        (0, 0, None),
        (8, 0, None),
    ],
)
def test_the_rule_of_the_paper(quarter, full, need):
    assert RULE.need_of(tried(0, quarter, full)) == need


@pytest.mark.parametrize("status", ["no_verdict", "unreadable", "too_small"])
def test_what_is_not_judged_is_in_no_class(status):
    assert RULE.need_of(tried(0, 8, 8, status=status)) is None
    assert figures([tried(0, 8, 8, status=status)], RULE)["histogram"]["+0"] == 0


@pytest.mark.parametrize(("rollouts", "margin"), [(8, 6), (4, 3), (16, 12), (1, 1), (3, 3)])
def test_the_margin_grows_with_the_rollouts(rollouts, margin):
    assert Rule(num_rollouts=rollouts).least_margin == margin
    assert Rule(num_rollouts=rollouts, margin=1).least_margin == 1


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_rollouts": 0}, "--rollouts=0"),
        ({"margin": 9}, "--margin=9 is invalid: must be from 1 to --rollouts=8"),
        ({"margin": 0}, "--margin=0"),
        ({"per_class": 0}, "--per-class=0"),
    ],
)
def test_a_rule_that_makes_no_sense(settings, told):
    with pytest.raises(ValueError, match=told):
        Rule(**settings)


def test_both_classes_have_the_size_of_the_smaller_and_the_first_ones_drawn():
    order = [tried(5, 8, 8), tried(3, 8, 8), tried(9, 0, 8), tried(1, 8, 8), tried(2, 5, 8), tried(0, 1, 8)]
    assert [(one.tried.row, one.need) for one in select_balanced(order, RULE)] == [
        (5, "low"),
        (3, "low"),
        (9, "full"),
        (0, "full"),
    ]
    assert len(select_balanced(order, Rule(per_class=1))) == 2
    assert select_balanced(order[:2], RULE) == [], "nothing needs the full view"


def test_enough_is_known_from_the_counts():
    assert not RULE.has_enough({"low": 99, "full": 99})
    rule = Rule(per_class=2)
    assert [rule.has_enough(counts) for counts in ({"low": 2, "full": 2}, {"low": 9, "full": 1}, {})] == [
        True,
        False,
        False,
    ]


def test_figures_count_every_sample_once():
    found = figures(
        [tried(0, 8, 8), tried(1, 0, 8), tried(2, 3, 4), tried(3, 5, 2), tried(4, 0, 0, status="unreadable")], RULE
    )
    assert (found["num_tried"], found["num_judged"], found["num_unreadable"], found["num_no_verdict"]) == (5, 4, 1, 0)
    assert (found["num_low"], found["num_full"], found["num_neither"]) == (1, 1, 2)
    assert {key: count for key, count in found["histogram"].items() if count} == {"-3": 1, "+0": 1, "+1": 1, "+8": 1}
    assert len(found["histogram"]) == 17
    assert (found["accuracy_quarter"], found["accuracy_full"]) == (16 / 32, 22 / 32)
