"""The judges that a config names, in a row: what one cannot decide with certainty goes to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from configs.judges import JudgeConfig
from judge.rules.judge import RulesJudge
from judge.trust.precheck import Precheck
from judge.verdict import Failure, Judge, JudgeRequest, NoVerdict, Outcome, check_outcomes, failure_of

_NOBODY = NoVerdict(reason="no judge was asked", failure=Failure.UNDECIDED)


def local_judges(config: JudgeConfig) -> Chain:
    """Those that need no LLM, for the process that asks: what is always checked, and the rules where they are named."""
    judges: list[Judge] = [Precheck(max_answer_chars=config.max_answer_chars)]
    if "rules" in config.chain:
        judges.append(RulesJudge.from_config(config))
    return Chain(judges=judges)


def llm_judge(config: JudgeConfig) -> Judge:
    """The LLM at the end of the chain, for a replica. One in the cluster is an endpoint as well, which is filled in.

    Raises:
        ValueError: the wording cannot be used.
    """
    from judge.llm.client import LLMJudge  # the endpoint's client takes a second to import; rules alone go without

    return LLMJudge(config)


def make_judge(config: JudgeConfig) -> Chain:
    """All of them, for one process. Raises as `llm_judge`."""
    local = local_judges(config)
    return Chain(judges=[*local.judges, llm_judge(config)]) if config.has_llm else local


@runtime_checkable
class Closing(Protocol):
    """A judge that holds connections or processes."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Asks the first judge about all predictions, each further one about those left undecided."""

    judges: Sequence[Judge]

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        outcomes: list[Outcome] = [_NOBODY] * len(request.predictions)
        for judge in self.judges:
            open_at = [index for index, outcome in enumerate(outcomes) if failure_of(outcome) is Failure.UNDECIDED]
            if not open_at:
                break
            predictions = tuple(request.predictions[index] for index in open_at)
            replies = check_outcomes(await judge.grade(replace(request, predictions=predictions)), len(open_at))
            for index, outcome in zip(open_at, replies, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def aclose(self) -> None:
        """Let go of connections and processes."""
        for judge in self.judges:
            if isinstance(judge, Closing):
                await judge.aclose()
