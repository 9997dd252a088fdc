"""Judge handles that do as they are told, and the outcomes they give."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.verdict import Failure, GradeReply, Judge, JudgeRequest, NoVerdict, Outcome, Usage, Verdict, grade_one

LLM = LLMJudgeConfig(model="m", prompt_price=1.0, reply_price=10.0)
USAGE = Usage(num_calls=1, prompt_tokens=100, reply_tokens=5)


def llm_config(**settings: object) -> JudgeConfig:
    timeout_s = settings.get("timeout_s", 60.0)
    assert isinstance(timeout_s, float)
    llm = replace(LLM, try_timeout_s=min(timeout_s - 1, LLM.try_timeout_s))
    return JudgeConfig(**{"chain": ("openai",), "max_replicas": 1, "llm": llm, **settings})


def ask(*predictions: str, question: str = "?") -> JudgeRequest:
    return JudgeRequest(question=question, reference="red", predictions=predictions)


def said(request: JudgeRequest, prediction: str, *, version: str = "v1") -> Verdict:
    """What an honest LLM says."""
    return Verdict(
        is_correct=prediction == request.reference, judge="llm", reason="", judge_version=version, usage=USAGE
    )


def failed(failure: Failure, reason: str = "", *, retry_after_s: float | None = None) -> NoVerdict:
    return NoVerdict(reason=reason or failure.value, failure=failure, retry_after_s=retry_after_s)


def reply(outcome: Outcome, *, service_s: float = 0.0) -> GradeReply:
    return GradeReply(outcome=outcome, service_s=service_s)


class InProcess:
    """A judge as the handle of a pool, as a replica would serve it."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    async def grade(self, request: JudgeRequest) -> GradeReply:
        return await grade_one(self.judge, request)


def correctness(outcomes: Iterable[Outcome]) -> list[bool | None]:
    return [outcome.is_correct if isinstance(outcome, Verdict) else None for outcome in outcomes]


def on(script: Mapping[str, Outcome]) -> Callable[[JudgeRequest, str], Outcome]:
    """A judge function: failures by prediction, honest otherwise."""
    return lambda request, prediction: script.get(prediction) or said(request, prediction)


def down_until(at: float, failure: Failure = Failure.UNREACHABLE) -> Callable[[JudgeRequest, str], Outcome]:
    """A judge function: honest from then on."""
    return lambda request, prediction: (
        said(request, prediction) if asyncio.get_running_loop().time() >= at else failed(failure, "down")
    )


class Judges:
    """A handle: one outcome per call, after a while."""

    def __init__(
        self, judge: Callable[[JudgeRequest, str], Outcome | Exception] = said, *, seconds: float = 0.0
    ) -> None:
        self.judge = judge
        self.seconds = seconds
        self.calls: list[tuple[float, str]] = []
        """When, and about which answer."""
        self.under_way = 0
        self.most_under_way = 0

    async def grade(self, request: JudgeRequest) -> GradeReply:
        (prediction,) = request.predictions
        self.calls.append((asyncio.get_running_loop().time(), prediction))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.seconds)
            outcome = self.judge(request, prediction)
        finally:
            self.under_way -= 1
        if isinstance(outcome, Exception):
            raise outcome
        return reply(outcome, service_s=self.seconds)

    def times_asked(self, prediction: str) -> int:
        return sum(asked == prediction for _, asked in self.calls)


class ScriptedHandle:
    """Takes one step of its script per call, the last one for ever; a step raises or replies."""

    def __init__(self, *script: Exception | Callable[[JudgeRequest], Awaitable[GradeReply]]) -> None:
        self.script = list(script)
        self.seen: list[tuple[str, ...]] = []

    async def grade(self, request: JudgeRequest) -> GradeReply:
        self.seen.append(request.predictions)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return await step(request)


class SmallEndpoint(Judges):
    """Takes so many calls at a time and turns the rest away at once."""

    def __init__(self, num_taken: int, *, seconds: float = 0.5, retry_after_s: float | None = None) -> None:
        super().__init__(seconds=seconds)
        self.num_taken = num_taken
        self.retry_after_s = retry_after_s
        self.num_turned_away = 0

    async def grade(self, request: JudgeRequest) -> GradeReply:
        if self.under_way < self.num_taken:
            return await super().grade(request)
        self.num_turned_away += 1
        return reply(failed(Failure.THROTTLED, "429", retry_after_s=self.retry_after_s))


UNDECIDED = NoVerdict(reason="cannot tell", failure=Failure.UNDECIDED)


class Rules:
    """Certain about some predictions, after a while."""

    def __init__(self, *certain: str, seconds: float = 0.0, others=UNDECIDED) -> None:
        self.certain = certain
        self.seconds = seconds
        self.others = others
        self.asked = []

    async def grade(self, request):
        self.asked.append(request.predictions)
        await asyncio.sleep(self.seconds)
        right = Verdict(is_correct=True, judge="rules", reason="")
        return [right if p in self.certain else self.others for p in request.predictions]


class Store:
    def __init__(self):
        self.kept = {}
        self.asked = []

    async def get(self, keys):
        self.asked += keys
        await asyncio.sleep(0)
        return {key: self.kept[key] for key in keys if key in self.kept}

    async def put(self, answer):
        await asyncio.sleep(0)
        self.kept[answer.key] = answer.verdict
