"""Greedy play of the held-out split: the policy beside always-quarter and always-full."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from actors.data.dataset import Dataset, SkipLedger
from actors.episode import PlayedGroup, SampleRef, SkippedSample
from actors.errors import RolloutError, RunError
from actors.fleet.pool import RolloutPool
from actors.play import Kind, PlayRequest
from cluster.display import Display
from cluster.records.metrics import PlayScore, score_play
from cluster.score import judge_group
from configs.schema import Config
from judge.pool import JudgePool
from judge.verdict import NoVerdict, Outcome

if TYPE_CHECKING:
    from cluster.run import Run

KINDS: tuple[Kind, ...] = ("policy", "always_quarter", "always_full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Players:
    """What playing a split needs: a run without its learner."""

    rollouts: RolloutPool
    judges: JudgePool
    display: Display
    heldout: Dataset
    skips: SkipLedger = field(default_factory=lambda: SkipLedger(max_skipped_fraction=1.0))
    """Knows which unusable rows were warned of; what an evaluation may lose is `train.max_lost_fraction`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one split. Samples that could not be played or judged are counted, never scored as wrong."""

    num_samples: int
    num_lost: int
    """Plays that failed or whose row is unusable, over all kinds."""
    policy: PlayScore
    always_quarter: PlayScore
    always_full: PlayScore

    def figures(self) -> dict[str, object]:
        """The flat figures that `--json` prints."""
        return {
            **asdict(self.policy),
            "accuracy_full": self.always_full.accuracy,
            "accuracy_quarter": self.always_quarter.accuracy,
            "num_samples": self.num_samples,
            "num_lost": self.num_lost,
        }


async def evaluate(run: Run | Players, config: Config) -> Evaluation:
    """Play every sample once per kind, all at the same time.

    Raises:
        RunError: more plays were lost than `train.max_lost_fraction`.
    """
    num_rows = len(run.heldout)
    num_samples = min(num_rows, config.eval.num_samples) if config.eval.num_samples else num_rows
    refs = [SampleRef(dataset=config.data.heldout, row=row, uid=f"heldout-{row}") for row in range(num_samples)]
    run.display.evaluation_started(num_samples * len(KINDS))
    played = await asyncio.gather(*(_play_all(run, config, kind, refs) for kind in KINDS))
    num_lost = sum(len(refs) - len(groups) for groups in played)
    if num_lost > config.train.max_lost_fraction * len(refs) * len(KINDS):
        raise RunError(f"evaluation lost {num_lost} of {len(refs) * len(KINDS)} plays; see the warnings above")
    policy, quarter, full = (score_play(groups) for groups in played)
    if num_unscored := sum(score.num_unscored for score in (policy, quarter, full)):
        run.display.warn(
            f"{num_unscored} of {len(refs) * len(KINDS)} plays have no verdict and count in no accuracy, the first: "
            f"{_first_reason(played)}"
        )
    return Evaluation(
        num_samples=num_samples, num_lost=num_lost, policy=policy, always_quarter=quarter, always_full=full
    )


def _first_reason(played: Sequence[Sequence[tuple[PlayedGroup, tuple[Outcome, ...]]]]) -> str:
    outcomes = (outcome for groups in played for _, graded in groups for outcome in graded)
    return next(outcome.reason for outcome in outcomes if isinstance(outcome, NoVerdict))


async def _play_all(
    run: Run | Players, config: Config, kind: Kind, refs: list[SampleRef]
) -> list[tuple[PlayedGroup, tuple[Outcome, ...]]]:
    async def one(ref: SampleRef) -> tuple[PlayedGroup, tuple[Outcome, ...]] | None:
        request = PlayRequest(ref=ref, kind=kind, greedy=True, num_episodes=1, run=config.run.name, step=0, attempt=0)
        try:
            played, _ = await run.rollouts.play(request)
        except RolloutError as error:
            run.display.warn(str(error))
            return None
        finally:
            run.display.evaluation_played()
        if isinstance(played, SkippedSample):
            if run.skips.is_news(played.ref):
                run.display.warn(f"row {played.ref.row}: {played.reason}")
            return None
        return played, await judge_group(run.judges, played)

    return [scored for scored in await asyncio.gather(*(one(ref) for ref in refs)) if scored is not None]
