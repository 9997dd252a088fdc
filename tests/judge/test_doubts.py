"""Answers that look settled and are not, beside plain ones that must stay settled."""

import pytest

from judge.findings import Rule
from judge.rules import find_by_rules

RIGHT, WRONG = True, False
SIGN_CASES = [
    ("What was the result?", "($1,234)", "-1,234", Rule.SIGN, RIGHT),
    ("What was the result?", "(1,234)", "-$1,234", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-12", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-0.12", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "12%", "-13", Rule.NO_READING, WRONG),
    ("By how much did it fall?", "$5 million", "-5 million", Rule.SIGN, RIGHT),
    ("By how much did it fall?", "5 km", "-5000 m", Rule.SIGN, RIGHT),
    ("By how much did it grow?", "12%", "-12", Rule.NO_READING, WRONG),
    ("What was the drop in temperature?", "5°C", "-5", Rule.SIGN, RIGHT),
    ("How many fewer apples are there?", "5 apples", "-5", Rule.SIGN, RIGHT),
]
CASES = [*SIGN_CASES]


@pytest.mark.parametrize(("question", "reference", "prediction", "rule", "is_correct"), CASES)
def test_each_answer_falls_under_its_rule(question, reference, prediction, rule, is_correct):
    finding = find_by_rules(question, reference, prediction, relative_tolerance=1e-3)
    assert (finding.rule, finding.is_correct) == (rule, is_correct)
