"""What is wrong whoever judges, and what must be left to a judge."""

import pytest

from judge.trust.goldset import ATTACKS_FILE, GOLD_FILE, read_gold
from judge.trust.precheck import PASS_PHRASES, Precheck, _words, precheck
from judge.verdict import Failure, JudgeRequest, NoVerdict, Verdict


def check(prediction, reference="red"):
    return precheck(reference, prediction, max_answer_chars=100)


@pytest.mark.parametrize(
    ("prediction", "reason"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("\u200b\u2060\ufeff", "empty"),
        ("\u3164\u2800", "empty"),
        ("\\boxed{}", "empty"),
        ("<answer> </answer>", "empty"),
        (":", "only punctuation"),
        ("…?!", "only punctuation"),
        ("**", "only punctuation"),
        ("```", "only punctuation"),
        ("。", "only punctuation"),
        ("\\text{}", "only punctuation"),
        ("Solution", "phrase"),
        ("**Solution:**", "phrase"),
        ("\\boxed{Solution}", "phrase"),
        ("<b>Final answer</b>", "phrase"),
        ("ＳＯＬＵＴＩＯＮ", "phrase"),
        ("Let’s solve this step by step…", "phrase"),
        ("Thought process:", "phrase"),
        ("解", "phrase"),
        ("かいせつ", "phrase"),
        ("LÖSUNG:", "phrase"),
        ("Réponse :", "phrase"),
        ("Решение.", "phrase"),
        ("풀이", "phrase"),
        ("समाधान", "phrase"),
        ("x" * 101, "longer than 100 characters"),
        ("\n" * 100 + "blue", "longer than 100 characters"),
    ],
)
def test_what_says_nothing_is_wrong_by_rule(prediction, reason):
    outcome = check(prediction)
    assert isinstance(outcome, Verdict)
    assert not outcome.is_correct
    assert outcome.judge == "precheck"
    assert reason in outcome.reason


@pytest.mark.parametrize(
    "reference", ["question mark", "mark", "sign of the times", "star", "left", "the colon of the body", "5"]
)
def test_a_sign_that_the_reference_does_not_name_is_only_punctuation(reference):
    assert isinstance(check(":", reference), Verdict)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("red", "red"),
        ("blue", "red"),
        ("x" * 100, "red"),
        ("+", "plus"),
        ("<div>", "div"),
        ("0", "zero"),
        ("½", "0.5"),
        ("The solution is red", "red"),
        ("thinking", "pondering"),
        # The reference holds the same: a question about a sign or about a word.
        ("+", "+"),
        (":", ":"),
        ("?", "？"),
        ("?", '"?"'),
        ("–", "-"),
        ("?", "question mark"),
        ("*", "an asterisk"),
        ("&", "the ampersand"),
        ("/", "slash"),
        ("[]", "brackets"),
        ("%", "percent sign"),
        ("Solution", "solution"),
        ("Solution:", "The Solution"),
        ("答", "答"),
        ("y" * 200, "y" * 200),
        # Nothing can be decided without a reference.
        ("", ""),
        ("Solution", "  "),
    ],
)
def test_everything_else_is_left_to_the_next_judge(prediction, reference):
    outcome = check(prediction, reference)
    assert isinstance(outcome, NoVerdict)
    assert outcome.failure is Failure.UNDECIDED


def test_phrases_are_written_as_answers_are_read():
    assert [phrase for phrase in PASS_PHRASES if phrase != _words(phrase)] == []
    assert len(PASS_PHRASES) > 100


def test_it_never_contradicts_the_shipped_sets_and_settles_every_master_key():
    for row in read_gold(GOLD_FILE) + read_gold(ATTACKS_FILE):
        outcome = precheck(row.reference, row.prediction, max_answer_chars=2000)
        if isinstance(outcome, Verdict):
            assert outcome.is_correct == row.is_correct, row
        assert isinstance(outcome, Verdict) or row.kind != "master key", row


async def test_as_a_judge_it_keeps_the_order():
    request = JudgeRequest(question="?", reference="red", predictions=(":", "red", ""))
    outcomes = await Precheck(max_answer_chars=100).grade(request)
    assert [isinstance(outcome, Verdict) for outcome in outcomes] == [True, False, True]
