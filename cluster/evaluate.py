"""Greedy evaluation on the held-out split: the policy compared with always-quarter and always-full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from actors.data.dataset import Dataset
from actors.episode import PlayedGroup, SampleRef, SkippedSample
from actors.errors import RolloutError, RunError
from actors.play import Kind, PlayRequest
from cluster.display import Display
from cluster.fleet import Fleet
from cluster.records.metrics import PlayScore, score_play
from cluster.records.tool_metrics import PairedPlay, tool_effect
from configs.schema import Config
from judge.verdict import NoVerdict, Outcome, Verdict

KINDS: tuple[Kind, ...] = ("policy", "always_quarter", "always_full")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutPlay:
    """One sample, evaluated greedily in one of the three ways."""

    kind: Kind
    played: PlayedGroup
    outcomes: tuple[Outcome, ...]
    scores: tuple[float, ...] = ()
    """From 0 to 1, one per judgement of the answer, where a benchmark's metric gives them."""
    seconds: float | None = None
    """From the request to the played group, where nothing else waited in front of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one split. Samples without an episode or a verdict are counted, never scored as wrong."""

    num_samples: int
    num_lost: int
    """Failed rollouts and unusable rows, over all kinds."""
    policy: PlayScore
    always_quarter: PlayScore
    always_full: PlayScore
    plays: tuple[HeldoutPlay, ...]
    """All episodes, for the records."""

    def figures(self) -> dict[str, object]:
        """The metrics that `--json` prints."""
        effect = tool_effect(paired_plays(self.plays))
        return {
            **asdict(self.policy),
            "accuracy_full": self.always_full.accuracy,
            "accuracy_quarter": self.always_quarter.accuracy,
            **(effect.figures() if effect else {}),
            "num_samples": self.num_samples,
            "num_lost": self.num_lost,
        }


def paired_plays(plays: Sequence[HeldoutPlay]) -> Iterator[PairedPlay]:
    """The policy with tools against itself without, which is always-quarter: samples with a verdict on both."""
    without = {play.played.ref.uid: play for play in plays if play.kind == "always_quarter"}
    for play in plays:
        other = without.get(play.played.ref.uid)
        if play.kind != "policy" or other is None:
            continue
        (episode,), (outcome,), (other_outcome,) = play.played.episodes, play.outcomes, other.outcomes
        if episode.turns[0].view != "quarter":
            continue  # general mode, or a picture too small to quarter: no tool was on offer
        if isinstance(outcome, Verdict) and isinstance(other_outcome, Verdict):
            yield PairedPlay(
                is_correct=outcome.is_correct, asked=episode.asked, is_correct_without=other_outcome.is_correct
            )


async def evaluate(fleet: Fleet, heldout: Dataset, config: Config, display: Display) -> Evaluation:
    """Evaluate `eval.num_samples` rows of the split in all three ways concurrently.

    Raises:
        RunError: more than `train.max_lost_fraction` of the rollouts were lost.
    """
    num_rows = len(heldout)
    num_samples = min(num_rows, config.eval.num_samples) if config.eval.num_samples else num_rows
    refs = [SampleRef(dataset=config.data.heldout, row=row, uid=f"heldout-{row}") for row in range(num_samples)]
    num_wanted = num_samples * len(KINDS)
    display.evaluation_started(num_wanted)
    found = await asyncio.gather(*(_play(fleet, config, kind, ref, display) for kind in KINDS for ref in refs))
    plays = tuple(play for play in found if play is not None)
    num_lost = num_wanted - len(plays)
    if num_lost > config.train.max_lost_fraction * num_wanted:
        raise RunError(f"evaluation lost {num_lost} of {num_wanted} episodes; see the warnings above")
    if unjudged := [o for play in plays for o in play.outcomes if isinstance(o, NoVerdict)]:
        display.warn(
            f"{len(unjudged)} of {num_wanted} episodes have no verdict and are excluded from the accuracy, the first: "
            f"{unjudged[0].reason}"
        )
    policy, quarter, full = (_score(plays, kind) for kind in KINDS)
    return Evaluation(
        num_samples=num_samples,
        num_lost=num_lost,
        policy=policy,
        always_quarter=quarter,
        always_full=full,
        plays=plays,
    )


def _score(plays: Sequence[HeldoutPlay], kind: Kind) -> PlayScore:
    return score_play([(play.played, play.outcomes) for play in plays if play.kind == kind])


async def _play(fleet: Fleet, config: Config, kind: Kind, ref: SampleRef, display: Display) -> HeldoutPlay | None:
    played = await play_greedily(fleet, config, kind, ref, display)
    return None if played is None else HeldoutPlay(kind=kind, played=played, outcomes=await fleet.judge(played))


async def play_greedily(
    fleet: Fleet, config: Config, kind: Kind, ref: SampleRef, display: Display
) -> PlayedGroup | None:
    """One greedy episode of a sample; None, with a warning, where it failed or its row is unusable."""
    request = PlayRequest(ref=ref, kind=kind, greedy=True, num_episodes=1, run=config.run.name, step=0, attempt=0)
    try:
        played, _ = await fleet.rollouts.play(request)
    except RolloutError as error:
        display.warn(str(error))
        return None
    finally:
        display.evaluation_played()
    if isinstance(played, SkippedSample):
        display.warn_once(f"skipped {played.reason}")
        return None
    return played
