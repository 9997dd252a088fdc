"""An answer with its verdict, as the verdict cache keeps it."""

from judge.llm.cache import JudgedAnswer
from judge.verdict import Usage, Verdict


def answer(prediction: str = "red", *, is_correct: bool = True, version: str = "v1") -> JudgedAnswer:
    verdict = Verdict(
        is_correct=is_correct, judge="openai", reason="said so", judge_version=version, usage=Usage(num_calls=1)
    )
    return JudgedAnswer(question="what colour?", reference="red", prediction=prediction, verdict=verdict)
