"""Answers scored with an LLM that is scripted, and what is no verdict."""

from dataclasses import dataclass, field

import pytest

from actors.data.benchmarks.row import BenchmarkRow
from judge.benchmarks.grading import RULES, answer_text, grade_answer
from judge.verdict import Failure, JudgeRequest, NoVerdict, Verdict

LONG = "After a long look at the whole picture I would say that it must be fourteen"


@dataclass
class Scripted:
    """Replies by task; None is no verdict."""

    replies: dict[str, str | None]
    asked: list[JudgeRequest] = field(default_factory=list)

    async def grade(self, request):
        self.asked.append(request)
        reply = self.replies[request.task]
        if reply is None:
            return [NoVerdict(reason="down", failure=Failure.UNREACHABLE)]
        return [Verdict(is_correct=reply not in ("0", "0.4"), judge="llm", reason="", reply=reply)]


def row(answer="14", **facts):
    return BenchmarkRow(question="How many?", references=(answer,), **facts)


async def test_mmvet_takes_the_grade_of_the_llm_as_score():
    judge = Scripted({"grade": "0.4"})
    graded = await grade_answer("mmvet", row("-1<AND>-5"), "x = -1", judge, run=3)
    assert (graded.score, graded.outcome.is_correct) == (0.4, False)
    (request,) = judge.asked
    assert (request.reference, request.task, request.run) == ("-1 <AND> -5", "grade", 3)


@pytest.mark.parametrize(("reply", "score"), [("14", 1.0), ("15", 0.0), ("null", 0.0)])
async def test_mathvista_asks_only_where_the_answer_is_not_plain(reply, score):
    judge, integer = Scripted({"extract": reply}), row(answer_type="integer", question_type="free_form")
    assert (await grade_answer("mathvista", integer, r"\boxed{14}", judge)).score == 1.0
    assert judge.asked == []
    assert (await grade_answer("mathvista", integer, LONG, judge)).score == score
    assert judge.asked[0].reference == "a whole number"


@pytest.mark.parametrize(("answer", "score"), [("B", 1.0), ("B)", 1.0), ("(B)", 1.0), ("A)", 0.0)])
async def test_mathvista_reads_a_letter_however_it_is_bracketed(answer, score):
    choice = row("8/11", choices=("3/11", "8/11", "6/11"), question_type="multi_choice")
    assert (await grade_answer("mathvista", choice, answer, Scripted({}))).score == score


async def test_null_is_no_choice_even_where_the_nearest_one_would_be_right():
    judge = Scripted({"extract": "null"})
    choice = row("nil", choices=("nil", "a lot"), question_type="multi_choice")
    assert (await grade_answer("mathvista", choice, LONG, judge)).score == 0.0


async def test_mathverse_extracts_then_compares():
    judge = Scripted({"extract": "2", "verdict": "1"})
    graded = await grade_answer("mathverse", row(judged_question="Find x."), LONG, judge)
    assert (graded.score, [request.task for request in judge.asked]) == (1.0, ["extract", "verdict"])
    assert (judge.asked[1].question, judge.asked[1].predictions) == ("Find x.", ("2",))


@pytest.mark.parametrize("suite", ["mmvet", "mathvista", "mathverse"])
async def test_a_failed_judgement_is_no_score(suite):
    judge = Scripted({"grade": None, "extract": None, "verdict": None})
    graded = await grade_answer(suite, row(question_type="free_form", answer_type="integer"), LONG, judge)
    assert graded.score is None
    assert isinstance(graded.outcome, NoVerdict)


def test_an_answer_is_taken_out_of_its_box():
    assert answer_text("chartqa", r"It is \boxed{25\%}") == "25%"
    assert answer_text("mme", r"\boxed{\text{Yes}}") == "Yes"
    assert answer_text("mathverse", r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert answer_text("ocrbench", " word ") == "word"


async def test_rules_score_without_a_judge():
    never = Scripted({})
    graded = await grade_answer("docvqa", BenchmarkRow(question="?", references=("abcd", "xyz")), "abcf", never)
    assert (graded.score, graded.outcome.is_correct) == (0.75, True)
    assert sorted(RULES) == ["chartqa", "docvqa", "mme", "ocrbench", "pope", "realworldqa"]
