"""Plans an update: which rank computes which micro-batches. Pure, without tensors.

    groups --plan_mini_batches--> one RankPlan per rank: mini-batches of micro-batches of episodes

A mini-batch is one optimizer step. Its episodes, ordered by group, are split into one contiguous piece of equal
token cost per rank, so at most num_ranks - 1 groups have episodes on two ranks. A rank's piece is packed into
micro-batches under a token budget that counts padding. Every rank gets the same number of micro-batches, because
each forward and backward pass may contain collectives.

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
"""Fixed cost of a micro-batch, in tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """The episodes of one prompt with everything the update needs."""

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
        assert all((reward is None) == (advantage is None) for reward, advantage in pairs), "both or neither"


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
    """Views in order of appearance."""
    image: int
    """Index of their image in the plan."""
    num_visual_tokens: int
    advantage: float
    token_weight: float
    """Weight of each generated token in the mean over a full mini-batch (Eq. 3); 0 in a dummy."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


MicroBatchPlan = tuple[PlannedEpisode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share of an update."""

    mini_batches: tuple[tuple[MicroBatchPlan, ...], ...]
    """The micro-batches of each optimizer step; equally many on every rank."""
    image_groups: tuple[int, ...]
    """For each image of the plan, the index of its group."""


def plan_mini_batches(
    groups: Sequence[TrainingGroup], *, prompts_per_mini_batch: int, num_ranks: int, max_tokens_per_micro_batch: int
) -> tuple[RankPlan, ...]:
    """Plan one update: a RankPlan for each of `num_ranks` ranks.

    Groups are distributed over mini-batches in order and evenly, at most `prompts_per_mini_batch` each. With
    the token weights, the loss summed over the rows of a mini-batch depends neither on the number of ranks nor on the
    token budget.

    The loss of a mini-batch with fewer groups is still divided by `prompts_per_mini_batch`, as if the missing groups
    were zero-variance groups without a gradient. Divided by the actual number of groups, the gradient of a single group
    would be as large as that of 32, and so would its noise.
    """
    assert groups, "an update needs at least one group"
    num_mini_batches = math.ceil(len(groups) / prompts_per_mini_batch)
    shares: list[list[tuple[MicroBatchPlan, ...]]] = [[] for _ in range(num_ranks)]
    for chosen in np.array_split(np.arange(len(groups)), num_mini_batches):
        rows = weight_episodes([(int(index), groups[index]) for index in chosen], prompts_per_mini_batch)
        packed = [pack(piece, max_tokens_per_micro_batch) for piece in split_by_tokens(rows, num_ranks)]
        for share, micro_batches in zip(shares, add_dummy_micro_batches(packed, rows), strict=True):
            share.append(micro_batches)
    return tuple(_with_local_images(share) for share in shares)


def weight_episodes(groups: Sequence[tuple[int, TrainingGroup]], prompts_per_mini_batch: int) -> list[PlannedEpisode]:
    """Rows of one mini-batch: the scored episodes with their token weights.

    Eq. 3 takes the mean over an episode's generated tokens, then over the group's scored episodes, then over groups:
    weight = 1 / (prompts_per_mini_batch * num_scored_in_group * num_generated_tokens). An episode without generated
    tokens has no row, but counts among the group's episodes.
    """
    rows = []
    for index, group in groups:
        scored = [(e, a) for e, a in zip(group.played.episodes, group.advantages, strict=True) if a is not None]
        for episode, advantage in scored:
            if episode.num_generated_tokens:
                weight = 1.0 / (prompts_per_mini_batch * len(scored) * episode.num_generated_tokens)
                rows.append(_row(episode, image=index, advantage=advantage, token_weight=weight))
    assert rows, "a mini-batch needs a scored episode with generated tokens"
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


def split_by_tokens(rows: Sequence[PlannedEpisode], num_pieces: int) -> list[list[PlannedEpisode]]:
    """Split rows into contiguous pieces whose token counts differ by less than the longest row."""
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

    Keeping a group together encodes its images once; sorting by length and smaller micro-batches reduce padding. Which
    matters more depends on the batch, so several packings are compared by cost.
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
    """Tokens that the language model processes, padding included."""
    return len(micro_batch) * max(row.num_tokens for row in micro_batch)


def computed_tokens(micro_batch: MicroBatchPlan) -> int:
    """Padded tokens plus the visual tokens that the vision tower encodes: both cost about the same."""
    most_views: dict[int, int] = {}
    for row in micro_batch:
        most_views[row.image] = max(most_views.get(row.image, 0), row.num_visual_tokens)
    return padded_tokens(micro_batch) + sum(most_views.values())


def add_dummy_micro_batches(
    packed: Sequence[Sequence[MicroBatchPlan]], rows: Sequence[PlannedEpisode]
) -> list[tuple[MicroBatchPlan, ...]]:
    """Give every rank as many micro-batches as the one with most, by adding dummies: the shortest row with weight 0."""
    most = max(len(micro_batches) for micro_batches in packed)
    dummy = (replace(min(rows, key=lambda row: row.num_tokens), token_weight=0.0),)
    return [(*micro_batches, *[dummy] * (most - len(micro_batches))) for micro_batches in packed]


def _with_local_images(mini_batches: Sequence[tuple[MicroBatchPlan, ...]]) -> RankPlan:
    """Renumber the images of one rank from 0."""
    used = sorted({row.image for micro_batches in mini_batches for each in micro_batches for row in each})
    local = {group: number for number, group in enumerate(used)}
    renumbered = tuple(
        tuple(tuple(replace(row, image=local[row.image]) for row in each) for each in micro_batches)
        for micro_batches in mini_batches
    )
    return RankPlan(mini_batches=renumbered, image_groups=tuple(used))
