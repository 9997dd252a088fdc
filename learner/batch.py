"""What the learner trains on, and who computes which part of it: pure planning, without a tensor.

    groups --plan_mini_batches--> one RankPlan per rank: mini-batches of micro-batches of episodes

A mini-batch is one optimizer step. Its episodes lie in one line, group after group, and the line is cut into one piece
of equal token cost per rank: at most num_ranks - 1 groups have episodes on two ranks. A rank's piece is packed
into micro-batches under a token budget that counts padding. Every rank gets the same number of micro-batches, because
each forward and backward pass may hold collectives.

Legend: T tokens of an episode, N generated tokens of an episode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from actors.episode import Episode, PlayedGroup, View

BUDGET_DIVISORS = (1, 2, 4)
MICRO_BATCH_TOKENS = 256
"""What starting a micro-batch costs besides its tokens, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """One prompt's episodes with all that the update needs."""

    played: PlayedGroup
    rewards: tuple[float | None, ...]
    """[G] None where the verdict is missing."""
    advantages: tuple[float | None, ...]
    """[G] None where the reward is."""
    image: object
    """Handle of the full view uint8 [H, W, 3], as in `learner.pictures.Picture`."""

    def __post_init__(self) -> None:
        sizes = (len(self.played.episodes), len(self.rewards), len(self.advantages))
        assert len(set(sizes)) == 1, f"episodes, rewards and advantages differ in number: {sizes}"
        pairs = zip(self.rewards, self.advantages, strict=True)
        assert all((reward is None) == (advantage is None) for reward, advantage in pairs), "scored means both"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedEpisode:
    """One row of a micro-batch."""

    token_ids: NDArray[np.int64]
    """[T] the whole episode."""
    generated_at: NDArray[np.int64]
    """[N] positions of the generated tokens, from the spans of the turns."""
    sampler_logprobs: NDArray[np.float32]
    """[N] under the policy that sampled them."""
    views: tuple[View, ...]
    """Pictures in order of appearance."""
    image: int
    """Which of the plan's images they are views of."""
    num_visual_tokens: int
    advantage: float
    token_weight: float
    """Share of each generated token in the mean of a full mini-batch (Eq. 3); 0 in a dummy."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


MicroBatchPlan = tuple[PlannedEpisode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share of an update."""

    mini_batches: tuple[tuple[MicroBatchPlan, ...], ...]
    """Per optimizer step, the micro-batches; the same numbers on every rank."""
    image_groups: tuple[int, ...]
    """For each image that the plan refers to, the group that it belongs to."""


def plan_mini_batches(
    groups: Sequence[TrainingGroup], *, prompts_per_mini_batch: int, num_ranks: int, max_tokens_per_micro_batch: int
) -> tuple[RankPlan, ...]:
    """Plan one update: a RankPlan for each of `num_ranks` ranks.

    Groups go into mini-batches in their order, evenly filled, none above `prompts_per_mini_batch`. Whatever the number
    of ranks and the token budget, the sum over all of a mini-batch's rows is the same loss: the weights say so.

    A mini-batch with fewer groups weighs less: the loss is divided by `prompts_per_mini_batch`, as if the missing
    groups were there with equal rewards, and so without a gradient. Divided by the groups that are there, the gradient
    of a single group would be as large as that of 32, and its noise too.
    """
    assert groups, "an update needs a group"
    num_mini_batches = math.ceil(len(groups) / prompts_per_mini_batch)
    shares: list[list[tuple[MicroBatchPlan, ...]]] = [[] for _ in range(num_ranks)]
    for chosen in np.array_split(np.arange(len(groups)), num_mini_batches):
        rows = weigh_episodes([(int(index), groups[index]) for index in chosen], prompts_per_mini_batch)
        packed = [pack(piece, max_tokens_per_micro_batch) for piece in cut_evenly(rows, num_ranks)]
        for share, micro_batches in zip(shares, even_out(packed, rows), strict=True):
            share.append(micro_batches)
    return tuple(_with_local_images(share) for share in shares)


def weigh_episodes(groups: Sequence[tuple[int, TrainingGroup]], prompts_per_mini_batch: int) -> list[PlannedEpisode]:
    """Rows of one mini-batch: the scored episodes with their token weights.

    Eq. 3 takes the mean over an episode's generated tokens, then over the group's scored episodes, then over groups:
    weight = 1 / (prompts_per_mini_batch * num_scored_in_group * num_generated_tokens). An episode without a generated
    token has nothing to weigh, but counts among the group's episodes.
    """
    rows = []
    for index, group in groups:
        scored = [(e, a) for e, a in zip(group.played.episodes, group.advantages, strict=True) if a is not None]
        for episode, advantage in scored:
            if episode.num_generated_tokens:
                weight = 1.0 / (prompts_per_mini_batch * len(scored) * episode.num_generated_tokens)
                rows.append(_row(episode, image=index, advantage=advantage, token_weight=weight))
    assert rows, "a mini-batch needs a scored episode that said something"
    return rows


def _row(episode: Episode, *, image: int, advantage: float, token_weight: float) -> PlannedEpisode:
    spans = [np.arange(len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.completion_ids)) for turn in episode.turns]
    return PlannedEpisode(
        token_ids=np.asarray(episode.token_ids, np.int64),
        generated_at=np.concatenate(spans).astype(np.int64),
        sampler_logprobs=np.asarray([each for turn in episode.turns for each in turn.logprobs], np.float32),
        views=tuple(turn.view for turn in episode.turns),
        image=image,
        num_visual_tokens=episode.num_visual_tokens,
        advantage=advantage,
        token_weight=token_weight,
    )


def cut_evenly(rows: Sequence[PlannedEpisode], num_pieces: int) -> list[list[PlannedEpisode]]:
    """Cut the line of rows into pieces whose token counts differ by less than the longest row."""
    total = sum(row.num_tokens for row in rows)
    pieces: list[list[PlannedEpisode]] = [[] for _ in range(num_pieces)]
    before = 0
    for row in rows:
        middle = before + row.num_tokens / 2
        pieces[min(num_pieces - 1, int(middle * num_pieces / total))].append(row)
        before += row.num_tokens
    return pieces


def pack(rows: Sequence[PlannedEpisode], max_tokens: int) -> list[MicroBatchPlan]:
    """Pack rows into micro-batches of at most `max_tokens` padded tokens (a longer row gets one of its own).

    A group kept together has its pictures encoded once; rows of like length, and smaller micro-batches, leave little
    padding. What weighs more depends on the batch, so several ways are compared by what they cost.
    """
    orders: tuple[Callable[[PlannedEpisode], tuple[int, ...]], ...] = (
        lambda row: (row.image,),
        lambda row: (len(row.views), row.image),
        lambda row: (row.num_tokens, row.image),
    )
    candidates = [
        _fill(sorted(rows, key=order), max_tokens // divisor) for order in orders for divisor in BUDGET_DIVISORS
    ]
    return min(candidates, key=lambda found: sum(MICRO_BATCH_TOKENS + computed_tokens(each) for each in found))


def _fill(rows: Sequence[PlannedEpisode], max_tokens: int) -> list[MicroBatchPlan]:
    filled: list[list[PlannedEpisode]] = []
    longest = 0
    for row in rows:
        if filled and (len(filled[-1]) + 1) * max(longest, row.num_tokens) <= max_tokens:
            filled[-1].append(row)
            longest = max(longest, row.num_tokens)
        else:
            filled.append([row])
            longest = row.num_tokens
    return [tuple(each) for each in filled]


def padded_tokens(micro_batch: MicroBatchPlan) -> int:
    """Tokens that the language model computes, padding included."""
    return len(micro_batch) * max(row.num_tokens for row in micro_batch)


def computed_tokens(micro_batch: MicroBatchPlan) -> int:
    """Padded tokens, and the visual tokens that the tower encodes: one costs about as much as the other."""
    most_views: dict[int, int] = {}
    for row in micro_batch:
        most_views[row.image] = max(most_views.get(row.image, 0), row.num_visual_tokens)
    return padded_tokens(micro_batch) + sum(most_views.values())


def even_out(
    packed: Sequence[Sequence[MicroBatchPlan]], rows: Sequence[PlannedEpisode]
) -> list[tuple[MicroBatchPlan, ...]]:
    """Give every rank as many micro-batches as the one with most: the cheapest row, at weight 0, fills up the rest."""
    most = max(len(micro_batches) for micro_batches in packed)
    dummy = (replace(min(rows, key=lambda row: row.num_tokens), token_weight=0.0),)
    return [(*micro_batches, *[dummy] * (most - len(micro_batches))) for micro_batches in packed]


def _with_local_images(mini_batches: Sequence[tuple[MicroBatchPlan, ...]]) -> RankPlan:
    """Number the images that one rank needs from 0."""
    used = sorted({row.image for micro_batches in mini_batches for each in micro_batches for row in each})
    local = {group: number for number, group in enumerate(used)}
    renumbered = tuple(
        tuple(tuple(replace(row, image=local[row.image]) for row in each) for each in micro_batches)
        for micro_batches in mini_batches
    )
    return RankPlan(mini_batches=renumbered, image_groups=tuple(used))
