"""No answer keeps the rules busy: they hold the interpreter, so no deadline would end them."""

import time

import pytest

from judge.rules.findings import Rule
from judge.rules.judge import find_by_rules
from judge.trust.precheck import precheck

COLOURS = "Which colour?\nA. red\nB. blue"


@pytest.mark.parametrize(
    "answer",
    [
        "A" + " " * 1990 + "x",
        "how many " + "a" * 1900,
        "a, " * 660,
        "1 to " * 400,
        "and " * 499,
        "((" * 900,
        "- x\n" * 490,
    ],
)
def test_no_answer_takes_long_to_judge(answer):
    started = time.monotonic()
    for question, reference in ((answer, "red, blue and 5 kg"), ("How many?", answer), ("How many?", "10-15")):
        find_by_rules(question, reference, answer, relative_tolerance=1e-3)
        find_by_rules(question, reference, "red, 3", relative_tolerance=1e-3)
    assert time.monotonic() - started < 5


SEEDS = (
    *(
        "A or ",
        "A and B ",
        "(A) ",
        "A. ",
        "A, ",
        "1 ",
        "1,",
        "1,000,",
        "1.0",
        "-",
        "- 1 ",
        "1/2 ",
        "1 to ",
        "$5 ",
        "5 m, ",
    ),
    *(
        "5 km ",
        "%",
        "'",
        "6' 2\" ",
        '"',
        "((",
        "[1, ",
        "\\frac{1}{2}",
        "\\boxed{1} ",
        "\\boxed ",
        "{",
        "May 5, ",
        "10:30 ",
    ),
    *(
        "Mon, ",
        "first ",
        "yes, ",
        "no not ",
        "and ",
        ", and ",
        "; ",
        "- x\n",
        "1. x\n",
        "how many ",
        "in ",
        "in order ",
        "a ",
    ),
    *(
        "a",
        " ",
        "the ",
        "per cent ",
        "million ",
        "x = ",
        "twenty-one ",
        "e",
        "½",
        "²",
        "quarter past ",
        "The answer is ",
    ),
)
"""Texts that, repeated, lead every pattern into its longest search."""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_time_to_judge_an_answer_grows_no_faster_than_its_square(seed):
    def seconds(num_chars: int) -> float:
        answer = (seed * num_chars)[:num_chars] + "Z"
        started = time.process_time()
        for question, reference in (
            (answer, "red, blue and 5 kg"),
            ("How many?", answer),
            (COLOURS, "A, B"),
            ("?", "10"),
        ):
            find_by_rules(question, reference, answer, relative_tolerance=1e-3)
            find_by_rules(question, reference, "red, 3", relative_tolerance=1e-3)
            precheck(reference, answer, max_answer_chars=2000)
        return time.process_time() - started

    # Small lengths first: time of 2^n would not come back from the cap of 2,000 characters.
    for num_chars in (40, 80, 160, 500, 1000):
        assert seconds(num_chars) < 0.5
    half, whole = seconds(1000), seconds(2000)
    assert whole < 5 * half + 0.2
    assert whole < 2


def test_long_lists_are_not_compared_each_with_each():
    def find(reference, prediction, question="?"):
        return find_by_rules(question, ", ".join(reference), ", ".join(prediction), relative_tolerance=1e-3)

    names = [f"colour {chr(97 + at % 26)}{chr(97 + at // 26)}" for at in range(667)]
    numbers = [str(at) for at in range(667)]
    started = time.process_time()
    assert find(names, names[::-1]).rule is Rule.ITEMS
    assert find(names, names[::-1], "Name them in order.").rule is Rule.ITEM_ORDER
    assert find(numbers, [f"{at}.0" for at in range(667)]).rule is Rule.ITEMS
    assert find(numbers, [*numbers[1:], "5"]).rule is Rule.ITEMS_UNCLEAR
    assert find(numbers, numbers[1:]).rule is Rule.ITEM_NUMBERS
    assert time.process_time() - started < 1
    assert find(numbers[:40], [*numbers[1:40], "70"]).rule is Rule.ITEM_NUMBERS
