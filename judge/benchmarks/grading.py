"""One answer of a benchmark, scored by its official metric: by rules alone, or with an LLM of the judge pool.

A failed judgement is no verdict and no score, never a zero. An episode without an answer is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from actors.data.benchmarks.row import BenchmarkRow
from judge.benchmarks import mathverse, mathvista
from judge.benchmarks.chartqa import is_relaxed_match
from judge.benchmarks.docvqa import anls
from judge.benchmarks.mmvet import shown_reference
from judge.benchmarks.ocrbench import contains_answer
from judge.benchmarks.realworldqa import is_exact_match
from judge.benchmarks.yes_no import mme_answer, pope_answer
from judge.rules.text import boxed_answer, strip_latex
from judge.verdict import Judge, JudgeRequest, NoVerdict, Outcome, Task, Verdict

PASSING_SCORE = 0.5
"""From here on an answer counts as right where a metric has values between 0 and 1 (ANLS, MM-Vet)."""
LATEX = frozenset({"ocrbench", "mathverse"})
"""Suites whose references are LaTeX: what stands in a box stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    outcome: Outcome
    score: float | None
    """From 0 to 1; None without a verdict."""


RULES: dict[str, Callable[[BenchmarkRow, str], float]] = {
    "chartqa": lambda row, text: max(float(is_relaxed_match(text, target)) for target in row.references),
    "ocrbench": lambda row, text: float(contains_answer(text, row.references, row.answer_type)),
    "docvqa": lambda row, text: anls(text, row.references),
    "mme": lambda row, text: float(mme_answer(text) == row.references[0].strip().lower()),
    "realworldqa": lambda row, text: float(is_exact_match(row.question, text, row.references[0])),
    "pope": lambda row, text: float(pope_answer(text) == row.references[0].strip().lower()),
}
"""Score of an answer, for the suites whose metric needs no LLM."""


def answer_text(suite: str, answer: str) -> str:
    """What the metric sees of an answer: the content of its `\\boxed{}`, where our prompt asks for one."""
    boxed = boxed_answer(answer)
    if boxed is None or boxed == answer:
        return answer.strip()
    return boxed.strip() if suite in LATEX else strip_latex(boxed)


async def grade_answer(suite: str, row: BenchmarkRow, answer: str, judge: Judge, *, run: int = 0) -> Graded:
    """Score one answer; `run` tells several judgements of the same answer apart.

    Raises:
        JudgeError: an outage of the judges outlasted its limit.
    """
    text = answer_text(suite, answer)
    if suite in RULES:
        score = RULES[suite](row, text)
        return Graded(outcome=Verdict(is_correct=score >= PASSING_SCORE, judge=suite, reason=f"{score:g}"), score=score)
    graders = {"mmvet": _mmvet, "mathvista": _mathvista, "mathverse": _mathverse}
    return await graders[suite](row, text, judge, run)


async def _mmvet(row: BenchmarkRow, text: str, judge: Judge, run: int) -> Graded:
    outcome = await _ask(judge, row.question, shown_reference(row.references[0]), text, "grade", run)
    return Graded(outcome=outcome, score=None if isinstance(outcome, NoVerdict) else float(outcome.reply))


async def _mathvista(row: BenchmarkRow, text: str, judge: Judge, run: int) -> Graded:
    if (plain := mathvista.plain_answer(text, row)) is not None:
        is_right = mathvista.is_right(plain, row)
        verdict = Verdict(is_correct=is_right, judge="mathvista", reason=f"read {plain!r}")
        return Graded(outcome=verdict, score=float(is_right))
    extracted = await _ask(judge, row.question, mathvista.wanted_form(row), text, "extract", run)
    if isinstance(extracted, NoVerdict):
        return Graded(outcome=extracted, score=None)
    is_right = not _is_null(extracted.reply) and mathvista.is_right(extracted.reply, row)
    return Graded(outcome=replace(extracted, is_correct=is_right), score=float(is_right))


async def _mathverse(row: BenchmarkRow, text: str, judge: Judge, run: int) -> Graded:
    question = row.judged_question or row.question
    if (final := mathverse.plain_answer(text)) is None:
        extracted = await _ask(judge, question, mathverse.FORM, text, "extract", run)
        if isinstance(extracted, NoVerdict):
            return Graded(outcome=extracted, score=None)
        if _is_null(extracted.reply):
            return Graded(outcome=replace(extracted, is_correct=False), score=0.0)
        final = extracted.reply
    outcome = await _ask(judge, question, row.references[0], final, "verdict", run)
    return Graded(outcome=outcome, score=None if isinstance(outcome, NoVerdict) else float(outcome.is_correct))


async def _ask(judge: Judge, question: str, reference: str, text: str, task: Task, run: int) -> Outcome:
    request = JudgeRequest(question=question, reference=reference, predictions=(text,), task=task, run=run)
    (outcome,) = await judge.grade(request)
    return outcome


def _is_null(reply: str) -> bool:
    """The LLM found no answer."""
    return reply.strip().lower() in ("", "null", "none")
