"""Judges in a row: what one cannot decide with certainty goes to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from configs.judges import JudgeConfig
from judge.rules import RulesJudge
from judge.verdict import Failure, Judge, JudgeRequest, NoVerdict, Outcome, check_outcomes


def make_judge(config: JudgeConfig) -> Judge:
    """The judges that `judge.chain` names, as one."""
    judges: list[Judge] = []
    for name in config.chain:
        match name:
            case "rules":
                judges.append(RulesJudge.from_config(config))
            case "openai" | "cluster":
                raise ValueError(f"judge.chain={list(config.chain)!r} cannot work: no such judge yet")
    return Chain(judges=judges)


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


def _is_undecided(outcome: Outcome) -> bool:
    return isinstance(outcome, NoVerdict) and outcome.failure is Failure.UNDECIDED
