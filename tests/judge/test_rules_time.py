"""No answer keeps the rules busy: they hold the interpreter, so no deadline would end them."""

import time

import pytest

from judge.rules.judge import best_guess, certain_verdict, may_be_math
from judge.trust.precheck import precheck

COLOURS = "Which colour?\nA. red\nB. blue"
SEEDS = (
    *("A or ", "A and B ", "(A) ", "A. ", "A, ", "1 ", "1,", "1,000,", "1.0", "-", "- 1 ", "1/2 ", "1 to ", "$5 "),
    *("5 km ", "%", "'", "6' 2\" ", '"', "((", "[1, ", "\\frac{1}{2}", "\\boxed{1} ", "\\boxed ", "\\boxed{", "{"),
    *("May 5, ", "10:30 ", "Mon, ", "first ", "yes, ", "no not ", "and ", ", and ", "; ", "- x\n", "1. x\n", "5 m, "),
    *("how many ", "in ", "in order ", "a ", "a", "1", " ", "the ", "per cent ", "million ", "x = ", "twenty-one "),
    *("e", "½", "²", "㎡", "quarter past ", "The answer is ", "**", "9^", "9^{", "x^2+", "(", "1 m^2 ", "2 h 3 min "),
)
"""Texts that, repeated, lead every pattern into its longest search."""


@pytest.mark.parametrize("seed", SEEDS)
def test_the_time_to_judge_an_answer_is_bounded_whatever_its_length(seed):
    def seconds(num_chars: int) -> float:
        answer = (seed * num_chars)[:num_chars] + "Z"
        started = time.process_time()
        for question, reference in (
            (answer, "red, blue and 5 kg"),
            ("How many?", answer),
            (COLOURS, "A, B"),
            ("What time is it?", "10"),
        ):
            for prediction in (answer, "red, 3"):
                for metric in ("strict", "anls"):
                    certain_verdict(question, reference, prediction, metric=metric)
                    best_guess(question, reference, prediction, metric=metric)
                may_be_math(question, reference, prediction)
            precheck(reference, answer, max_answer_chars=2000)
        return time.process_time() - started

    certain_verdict("How long?", "2 m", "200 cm")  # pint takes its second at the first quantity
    # Small lengths first: time of 2^n would not come back from the longer ones.
    for num_chars in (40, 80, 160, 398, 1000, 2000):
        assert seconds(num_chars) < 0.5
    assert seconds(20_000) < 2


def test_long_lists_are_not_compared_each_with_each():
    numbers = ", ".join(map(str, range(90)))
    started = time.process_time()
    assert best_guess("Which?", numbers, ", ".join(map(str, range(89, -1, -1)))).is_correct
    assert not best_guess("Which?", numbers, numbers.replace("7", "8")).is_correct
    assert time.process_time() - started < 1
