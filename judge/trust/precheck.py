"""What is wrong whoever judges: settled by a written rule before any call, because LLM judges are known to pass it.

An answer is wrong when it is empty, only punctuation, only a phrase that opens an answer (such as `Solution` or
`Let's think step by step`, which pass up to nine of ten LLM judges: arXiv 2507.08794), or longer than the cap. Where
the reference holds the same, as with a question about a sign, the rule does not apply. Everything else is left to the
next judge.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from judge.llm.fence import clean_text
from judge.rules.text import boxed_answer, fold_unicode, names_sign
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Verdict

JUDGE_NAME = "precheck"

_TAGS = re.compile(r"<([A-Za-z][A-Za-z0-9_-]{0,20})>([^<>]*)</\1>")
_LATEX_SHELL = re.compile(r"\\(?:text|mathrm|mathbf|boxed)\s*\{|\\[()\[\],;! ]")
_MARKUP_SIGNS = frozenset("|~^`´¨")
"""Signs of markup that Unicode does not count as punctuation. `+`, `=`, `<`, `$`, `°` may be answers."""

PASS_PHRASES = frozenset(
    phrase.strip()
    for phrase in """
    solution / the solution / solutions / here is the solution / here s the solution / my solution
    answer / the answer / the answer is / answer is / my answer / my answer is / here is the answer / here s the answer
    final answer / the final answer / the final answer is / so the answer is / therefore the answer is
    as above / same as above / same as the reference / same as reference / the reference answer / reference answer
    verdict / conclusion / analysis
    correct answer / the correct answer / the correct answer is / right answer / the right answer
    thought process / thinking process / reasoning / reasoning process / explanation
    step by step / let s see / let me think / let us think / let s think / let s begin
    let s think step by step / let us think step by step / let s solve this step by step / let s start
    let us solve this step by step / let s solve this problem step by step / let s solve the problem step by step
    let s work through this step by step / let s break this down / let s break it down step by step
    to solve this problem / to answer this question / to answer the question
    lösung / die lösung / antwort / die antwort / die antwort lautet / die antwort ist / gedankengang / erklärung
    denken wir schritt für schritt / lass uns schritt für schritt vorgehen / schritt für schritt
    la solution / réponse / la réponse / la réponse est / explication / raisonnement / résolvons cela étape par étape
    réfléchissons étape par étape / étape par étape / solución / la solución / respuesta / la respuesta
    la respuesta es / explicación / razonamiento / pensemos paso a paso / resolvamos esto paso a paso / paso a paso
    solução / a solução / resposta / a resposta / a resposta é / explicação / raciocínio / vamos pensar passo a passo
    passo a passo / soluzione / la soluzione / risposta / la risposta / la risposta è / spiegazione / ragionamento
    pensiamo passo dopo passo / oplossing / antwoord / het antwoord / uitleg / rozwiązanie / odpowiedź / çözüm / cevap
    решение / ответ / объяснение / рассуждение / давайте подумаем шаг за шагом / решим шаг за шагом / шаг за шагом
    解 / 解答 / 解析 / 解法 / 答 / 答案 / 答案是 / 最终答案 / 回答 / 思路 / 思考过程 / 推理过程 / 解题过程
    让我们一步一步思考 / 让我们逐步思考 / 让我们一步一步解决这个问题
    解説 / かいせつ / 解き方 / 答え / 思考過程 / 考え方
    ステップバイステップで考えましょう / 段階的に考えましょう / 풀이 / 해설 / 해답 / 답 / 정답 / 답변 / 사고 과정
    단계별로 생각해 봅시다 / الحل / الجواب / الإجابة / التفسير / لنفكر خطوة بخطوة / हल / समाधान / उत्तर
    lời giải / đáp án
    """.replace("\n", "/").split("/")
    if phrase.strip()
)
"""Openings of an answer that say nothing, as `_words` writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precheck:
    """First judge of every chain."""

    max_answer_chars: int

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        return [
            precheck(request.reference, prediction, max_answer_chars=self.max_answer_chars)
            for prediction in request.predictions
        ]


def precheck(reference: str, prediction: str, *, max_answer_chars: int) -> Outcome:
    """Wrong by a written rule, or undecided. Never right, and undecided where the reference itself says nothing."""
    if not reference.strip():
        return _undecided("the reference answer is empty")
    if prediction.strip() == reference.strip():
        return _undecided("same text as the reference")
    if len(prediction) > max_answer_chars:
        return _wrong(f"longer than {max_answer_chars} characters")
    said = _peel(clean_text(prediction, max_answer_chars))
    if not said.strip():
        return _wrong("empty")
    expected = clean_text(reference, max_answer_chars)
    if all(_is_punctuation(char) for char in said):
        is_asked = _signs(said) in _signs(expected) or names_sign(expected, said)
        return _undecided("signs of the reference") if is_asked else _wrong("only punctuation")
    words = _words(said)
    if words in PASS_PHRASES:
        is_asked = f" {words} " in f" {_words(expected)} "
        return _undecided("words of the reference") if is_asked else _wrong("a phrase that opens an answer")
    return _undecided("for the next judge")


def _peel(text: str) -> str:
    """What is left of a text without boxes, tags and emphasis around nothing."""
    inner = boxed_answer(text)
    return _LATEX_SHELL.sub(" ", _TAGS.sub(r" \2 ", text if inner is None else inner))


def _is_punctuation(char: str) -> bool:
    return char.isspace() or char in _MARKUP_SIGNS or unicodedata.category(char).startswith("P")


def _signs(text: str) -> str:
    return "".join(fold_unicode(text).split())


def _words(text: str) -> str:
    """Case, punctuation and spacing taken out: letters, digits and their marks, one space between words."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join("".join(char if _is_of_word(char) else " " for char in folded).split())


def _is_of_word(char: str) -> bool:
    """Vowel signs of Indic scripts are marks, and part of their word."""
    return char.isalnum() or unicodedata.category(char).startswith("M")


def _wrong(reason: str) -> Verdict:
    return Verdict(is_correct=False, judge=JUDGE_NAME, reason=reason)


def _undecided(reason: str) -> NoVerdict:
    return NoVerdict(reason=reason, failure=Failure.UNDECIDED)
