"""Plays the samples of a suite in the three ways, scores the answers and records both, but nothing twice.

One way after the other, the policy first: what the engine still has of its pictures only makes the baselines faster.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

from actors.episode import Episode, PlayedGroup, SampleRef
from actors.errors import RunError
from actors.play import Kind
from cluster.display import Display
from cluster.evaluation.suites import Suite
from cluster.evaluation.transcript import Play, Transcript
from cluster.fleet import FORMAT_RULE, Fleet
from cluster.heldout import KINDS, HeldoutPlay, play_greedily
from configs.schema import Config
from judge.benchmarks.grading import Graded
from judge.verdict import Outcome, Verdict


def missing(suite: Suite, transcript: Transcript, kind: Kind) -> list[SampleRef]:
    """Samples that are not recorded."""
    return [ref for ref in suite.refs if (kind, ref.uid) not in transcript.plays]


def unjudged(suite: Suite, transcript: Transcript, num_judgements: int) -> list[Play]:
    """Recorded answers that want more judgements: none has come yet, or an LLM is to be asked again."""
    wanted = num_judgements if suite.is_judged else 1
    samples = {ref.uid for ref in suite.refs}
    return [
        play
        for play in transcript.plays.values()
        if play.sample in samples and play.answer is not None and len(play.scores) < wanted
    ]


def is_complete(suite: Suite, transcript: Transcript, num_judgements: int) -> bool:
    return not (any(missing(suite, transcript, k) for k in KINDS) or unjudged(suite, transcript, num_judgements))


async def play_suite(
    fleet: Fleet, suite: Suite, config: Config, transcript: Transcript, num_judgements: int, display: Display
) -> None:
    """Play, score and record what is missing.

    Raises:
        RunError: more than `train.max_lost_fraction` of the rollouts were lost. What was recorded stays.
        JudgeError: an outage of the judges outlasted its limit.
    """
    todo = {kind: missing(suite, transcript, kind) for kind in KINDS}
    display.evaluation_started(sum(map(len, todo.values())))
    try:
        for kind, refs in todo.items():
            # As many as the workers take: a time is then that of the episode, not of a queue.
            limit = asyncio.Semaphore(max(1, fleet.rollouts.num_workers) * config.rollout.max_groups_in_flight)
            await _all([_play(fleet, suite, config, kind, ref, transcript, display, limit) for ref in refs])
            transcript.flush()
        again = unjudged(suite, transcript, num_judgements)
        await _all([_judge_again(fleet, suite, play, transcript, num_judgements) for play in again])
    finally:
        transcript.flush()
    num_lost = sum(len(missing(suite, transcript, kind)) for kind in KINDS)
    if num_lost > config.train.max_lost_fraction * len(suite.refs) * len(KINDS):
        raise RunError(
            f"{suite.name} lost {num_lost} of {len(suite.refs) * len(KINDS)} episodes; see the warnings above"
        )


async def _all(calls: list[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call)


async def _play(
    fleet: Fleet,
    suite: Suite,
    config: Config,
    kind: Kind,
    ref: SampleRef,
    transcript: Transcript,
    display: Display,
    limit: asyncio.Semaphore,
) -> None:
    async with limit:
        started = time.monotonic()
        played = await play_greedily(fleet, config, kind, ref, display)
        seconds = time.monotonic() - started
    if played is None:
        return
    (episode,) = played.episodes
    graded = await _grade(fleet, suite, played, episode)
    scores = () if graded.score is None else (graded.score,)
    outcomes: tuple[Outcome, ...] = (graded.outcome,)
    transcript.add(HeldoutPlay(kind=kind, played=played, outcomes=outcomes, scores=scores, seconds=seconds))


async def _grade(fleet: Fleet, suite: Suite, played: PlayedGroup, episode: Episode) -> Graded:
    if episode.answer is None:
        reason = f"no answer: {episode.status.value}"
        return Graded(outcome=Verdict(is_correct=False, judge=FORMAT_RULE, reason=reason), score=0.0)
    row = suite.row_at(played.ref.row, played.question, played.answer)
    return await suite.grade(row, episode.answer, fleet.judges, 0)


async def _judge_again(fleet: Fleet, suite: Suite, play: Play, transcript: Transcript, num_judgements: int) -> None:
    """Up to the wanted number of judgements; the first that fails ends it, so that scores stay those of runs 0, 1, …"""
    assert play.answer is not None
    row, scores = suite.row_at(play.row, play.question, play.reference), list(play.scores)
    first: Outcome | None = None
    for run in range(len(scores), num_judgements if suite.is_judged else 1):
        graded = await suite.grade(row, play.answer, fleet.judges, run)
        if graded.score is None:
            break
        first = first or graded.outcome
        scores.append(graded.score)
    if first is not None:
        transcript.add_scores(play, scores, first)
