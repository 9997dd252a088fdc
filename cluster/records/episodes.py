"""Episodes as Parquet: the columns, and a row for each episode of a step or an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actors.episode import Episode, PlayedGroup
from actors.play import Kind
from cluster.heldout import HeldoutPlay
from cluster.records.files import replace_atomically
from cluster.records.needed import has_choice, least_tokens, needed_of, shows_the_needed
from cluster.step import ScoredGroup, StepBatch
from judge.reward import Reward
from judge.verdict import Outcome, Verdict

VERSION_SPAN = pa.struct([("version", pa.int64()), ("num_tokens", pa.int32())])
TURN = pa.struct(
    [
        ("text", pa.string()),
        ("view", pa.string()),
        ("num_visual_tokens", pa.int32()),
        ("num_prompt_tokens", pa.int32()),
        ("completion_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),
        ("version_spans", pa.list_(VERSION_SPAN)),
        ("finish_reason", pa.string()),
        ("tool", pa.string()),
        ("fault", pa.string()),
    ]
)
REWARD_PARTS = pa.struct(
    [(name, pa.float64()) for name in ("accuracy", "format", "box", "control", "area", "budget", "overlong")]
)
"""reward = accuracy + format + box - control - area - budget - overlong."""
EPISODES = pa.schema(
    [
        ("step", pa.int64()),
        ("kind", pa.string()),
        ("sample", pa.string()),
        ("index", pa.int32()),
        ("attempt", pa.int32()),
        ("dataset", pa.string()),
        ("row", pa.int64()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("needs_full", pa.bool_()),
        ("needed_view", pa.string()),
        ("is_right_tool", pa.bool_()),
        ("least_visual_tokens", pa.int32()),
        ("image_sha256", pa.string()),
        ("status", pa.string()),
        ("asked", pa.bool_()),
        ("answer", pa.string()),
        ("is_well_formed", pa.bool_()),
        ("is_correct", pa.bool_()),
        ("scores", pa.list_(pa.float64())),
        ("judge", pa.string()),
        ("reason", pa.string()),
        ("judge_version", pa.string()),
        ("judge_model", pa.string()),
        ("num_calls", pa.int32()),
        ("prompt_tokens", pa.int64()),
        ("reply_tokens", pa.int64()),
        ("reward", pa.float64()),
        ("reward_parts", REWARD_PARTS),
        ("advantage", pa.float64()),
        ("is_trained", pa.bool_()),
        ("oldest_version", pa.int64()),
        ("newest_version", pa.int64()),
        ("seconds", pa.float64()),
        ("turns", pa.list_(TURN)),
    ]
)


def write_episodes(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write episodes as one Parquet file, atomically."""
    table = pa.Table.from_pylist(list(rows), schema=EPISODES)
    with replace_atomically(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def rows_of_step(step: int, batch: StepBatch) -> Iterator[dict[str, Any]]:
    """All episodes of a step, including those without verdicts, so that another judge can score them."""
    unjudged = [lost.group for lost in batch.lost if lost.group is not None]
    for groups, is_trained in ((batch.trained, True), (batch.without_signal, False), (unjudged, False)):
        for group in groups:
            yield from _rows_of_group(step, group, is_trained=is_trained)


def rows_of_evaluation(step: int, plays: Sequence[HeldoutPlay]) -> Iterator[dict[str, Any]]:
    """All episodes of an evaluation; without a group there is no reward and no advantage."""
    for play in plays:
        for episode, outcome in zip(play.played.episodes, play.outcomes, strict=True):
            row = _row(step, play.kind, play.played, episode, outcome)
            yield row | {"scores": list(play.scores), "seconds": play.seconds}


def outcome_columns(outcome: Outcome) -> dict[str, Any]:
    """What a row says of the judgement."""
    verdict = outcome if isinstance(outcome, Verdict) else None
    return {
        "is_correct": verdict and verdict.is_correct,
        "judge": verdict and verdict.judge,
        "reason": outcome.reason,
        "judge_version": verdict and verdict.judge_version,
        "judge_model": verdict and verdict.model,
        "num_calls": outcome.usage.num_calls,
        "prompt_tokens": outcome.usage.prompt_tokens,
        "reply_tokens": outcome.usage.reply_tokens,
    }


def _rows_of_group(step: int, group: ScoredGroup, *, is_trained: bool) -> Iterator[dict[str, Any]]:
    for episode, outcome, reward, advantage in zip(
        group.played.episodes, group.outcomes, group.rewards, group.advantages, strict=True
    ):
        row = _row(step, "policy", group.played, episode, outcome)
        yield row | {
            "reward": None if reward is None else reward.total,
            "reward_parts": None if reward is None else _parts_of(reward),
            "advantage": advantage,
            "is_trained": is_trained,
        }


def _parts_of(reward: Reward) -> dict[str, float]:
    return {
        "accuracy": reward.accuracy,
        "format": reward.format,
        "box": reward.box,
        "control": reward.control,
        "area": reward.area,
        "budget": reward.budget,
        "overlong": reward.overlong,
    }


def _need_columns(played: PlayedGroup, episode: Episode) -> dict[str, Any]:
    """What the sample needs, where its data set says so, and whether the episode was shown just that."""
    needed = needed_of(played)
    if needed is None or not has_choice(episode):
        return {"needed_view": None if needed is None else str(needed)}
    return {
        "needed_view": str(needed),
        "is_right_tool": shows_the_needed(episode, needed),
        "least_visual_tokens": round(least_tokens(played, episode, needed)),
    }


def _row(step: int, kind: Kind, played: PlayedGroup, episode: Episode, outcome: Outcome) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "sample": played.ref.uid,
        "index": episode.id.index,
        "attempt": episode.id.attempt,
        "dataset": played.ref.dataset,
        "row": played.ref.row,
        "question": played.question,
        "reference": played.answer,
        "needs_full": played.needs_full,
        **_need_columns(played, episode),
        "image_sha256": played.image_sha256,
        "status": str(episode.status),
        "asked": episode.asked,
        "answer": episode.answer,
        "is_well_formed": episode.is_well_formed,
        **outcome_columns(outcome),
        "is_trained": False,
        "oldest_version": episode.oldest_version,
        "newest_version": episode.newest_version,
        "turns": [
            {
                "text": turn.text,
                "view": None if turn.view is None else str(turn.view),
                "num_visual_tokens": turn.num_visual_tokens,
                "num_prompt_tokens": len(turn.prompt_ids),
                "completion_ids": turn.completion_ids,
                "logprobs": turn.logprobs,
                "version_spans": [asdict(span) for span in turn.version_spans],
                "finish_reason": turn.finish_reason,
                "tool": turn.tool,
                "fault": turn.fault,
            }
            for turn in episode.turns
        ],
    }
