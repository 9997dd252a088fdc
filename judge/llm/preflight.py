"""What keeps an endpoint from judging, found before anything starts: key, wording, address, model, form of reply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from actors.errors import JudgeError
from configs.judges import ROUND_TRIP_S, JudgeConfig
from judge.llm.client import LLMJudge
from judge.llm.endpoint import read_key
from judge.verdict import Failure, JudgeRequest, NoVerdict

TIMEOUT_S = 15.0
QUESTION = JudgeRequest(question="What kind of vehicle is shown?", reference="car", predictions=("automobile",))
REMEDIES = {
    Failure.DENIED: "mend the key, the model or the address",
    Failure.REJECTED: "ask for what it takes: judge.llm.reply, judge.llm.thinks, judge.llm.max_reply_tokens",
    Failure.UNREACHABLE: "bring it up, or mend the address",
}


async def preflight_judge(config: JudgeConfig, *, warn: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> None:
    """Ask the endpoint one settled question. Needs no Ray; rules alone, and an LLM still to be served, call nobody.

    `warn` is told of what may pass: too many calls (429), server errors, a slow or unusable reply.

    Raises:
        ValueError: the wording cannot be used.
        JudgeError: the key cannot be read, or the endpoint cannot be reached or refuses what it is asked.
    """
    if not config.has_llm or "cluster" in config.chain:
        return
    read_key(config.llm)
    hasty = replace(config.llm, try_timeout_s=timeout_s)
    judge = LLMJudge(replace(config, llm=hasty, timeout_s=timeout_s + ROUND_TRIP_S))
    try:
        (outcome,) = await judge.grade(QUESTION)
    finally:
        await judge.aclose()
    if not isinstance(outcome, NoVerdict):
        return
    message = f"judge.llm.base_url={config.llm.base_url!r} with judge.llm.model={config.llm.model!r}: {outcome.reason}"
    may_pass = outcome.failure is Failure.UNREACHABLE and (outcome.status or outcome.usage.num_lost_calls)
    if outcome.failure not in REMEDIES or may_pass:
        return warn(f"{message}; verdicts may be late or missing")
    raise JudgeError(f"{message}; {REMEDIES[outcome.failure]}")
