"""Judges in a row: what one cannot decide with certainty goes to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from configs.judges import JudgeConfig
from judge.rules.judge import RulesJudge
from judge.trust.precheck import Precheck
from judge.verdict import Failure, Judge, JudgeRequest, NoVerdict, Outcome, check_outcomes


def make_judge(config: JudgeConfig) -> Chain:
    """The judges that `judge.chain` names, as one, behind what is settled without any.

    Raises:
        ValueError: the wording of an LLM judge cannot be used.
    """
    judges: list[Judge] = [Precheck(max_answer_chars=config.max_answer_chars)]
    for name in config.chain:
        match name:
            case "rules":
                judges.append(RulesJudge.from_config(config))
            case "openai" | "cluster":
                # The endpoint's client takes a second to import; rules alone go without.
                from judge.llm.client import LLMJudge

                # An LLM in the cluster is one more endpoint: the launcher puts its address into `llm.base_url`.
                judges.append(LLMJudge(config))
    return Chain(judges=judges)


@runtime_checkable
class Closing(Protocol):
    """A judge that holds connections."""

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Asks the first judge about all predictions, each further one about those left undecided."""

    judges: Sequence[Judge]

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        outcomes: list[Outcome] = [
            NoVerdict(reason="no judge was asked", failure=Failure.UNDECIDED) for _ in request.predictions
        ]
        for judge in self.judges:
            open_at = [index for index, outcome in enumerate(outcomes) if _is_undecided(outcome)]
            if not open_at:
                break
            predictions = tuple(request.predictions[index] for index in open_at)
            replies = check_outcomes(await judge.grade(replace(request, predictions=predictions)), len(open_at))
            for index, outcome in zip(open_at, replies, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def aclose(self) -> None:
        """Let go of connections."""
        for judge in self.judges:
            if isinstance(judge, Closing):
                await judge.aclose()


def _is_undecided(outcome: Outcome) -> bool:
    return isinstance(outcome, NoVerdict) and outcome.failure is Failure.UNDECIDED
