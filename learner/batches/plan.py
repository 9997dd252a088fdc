"""Plans an update: which rank computes what, in which passes. Pure, without tensors.

    groups --weight_episodes--> rows --share--> families --balance--> ranks --pack--> micro-batches

A mini-batch is one optimizer step. Its groups go to the ranks whole, by cost; a group is split only where it exceeds
the token budget of a micro-batch or where the ranks would differ by more than `IMBALANCE`, because each part computes
the shared beginning again. Every rank gets the same number of micro-batches and of vision passes, because each may
contain collectives; the i-th micro-batches of the ranks cost about the same.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from configs.objectives import GRPO, Objective
from learner.batches.batch import PlannedEpisode, TrainingGroup, weight_episodes
from learner.batches.family import Family, ViewKey, share, view_order
from learner.batches.rounds import num_visual_tokens, split_rounds

IMBALANCE = 1.05
"""Cost of the busiest rank over the mean above which a group is split."""

MicroBatchPlan = tuple[Family, ...]
"""Computed as one sequence without padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionPassPlan:
    """Views that the vision tower encodes together."""

    views: tuple[ViewKey, ...]
    """None where another rank has more passes."""
    recomputes_blocks: bool
    """Whether only the inputs of blocks are kept for the backward pass: a view of some rank exceeds the budget alone.
    The same on every rank, because under ZeRO-3 a recomputed block gathers its weights again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PiecePlan:
    """One rank's share of some or all groups of a mini-batch; the losses and gradients of pieces add up."""

    micro_batches: tuple[MicroBatchPlan, ...]
    """Equally many on every rank."""
    vision_passes: tuple[VisionPassPlan, ...]
    """The distinct views; equally many passes on every rank."""
    stops: tuple[tuple[int, int], ...] = ()
    """(vision passes, micro-batches) after which a round ends; the same on every rank. The micro-batches of a round
    show the views of its own passes alone. Without any, all is one round."""

    @property
    def num_visual_tokens(self) -> int:
        """Of the distinct views."""
        return num_visual_tokens(itertools.chain(*self.micro_batches))

    @property
    def most_tokens(self) -> int:
        """Of the largest micro-batch."""
        return max(map(_tokens, self.micro_batches))

    def rounds(self) -> list[PiecePlan]:
        """The rounds one after the other."""
        stops = self.stops or ((len(self.vision_passes), len(self.micro_batches)),)
        return [
            PiecePlan(
                micro_batches=self.micro_batches[start[1] : stop[1]],
                vision_passes=self.vision_passes[start[0] : stop[0]],
            )
            for start, stop in itertools.pairwise(((0, 0), *stops))
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What pieces cost. Adds up over pieces and plans."""

    num_tokens: int = 0
    """Of the episodes, on all ranks."""
    num_computed: int = 0
    """Tokens that the language model computes, on all ranks."""
    mean_cost: float = 0.0
    """Of a rank."""
    most_cost: float = 0.0
    """Of the busiest rank of each piece, which the others wait for."""

    def __add__(self, other: Workload) -> Workload:
        return Workload(
            num_tokens=self.num_tokens + other.num_tokens,
            num_computed=self.num_computed + other.num_computed,
            mean_cost=self.mean_cost + other.mean_cost,
            most_cost=self.most_cost + other.most_cost,
        )

    @property
    def imbalance(self) -> float:
        """Cost of the busiest ranks over that of a mean one."""
        return self.most_cost / self.mean_cost

    @property
    def computed_share(self) -> float:
        """Tokens that are computed over tokens of the episodes: below 1 through sharing."""
        return self.num_computed / self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlan:
    """One rank's share of an update, or of a part of one."""

    mini_batches: tuple[PiecePlan, ...]
    """The piece of each mini-batch. An optimizer step follows each of them, but not a last one that `is_open`."""
    is_open: bool
    """Whether the last mini-batch has room for further groups."""
    image_groups: tuple[int, ...]
    """For each image of the plan, the index of its group."""
    workload: Workload
    """On all ranks."""


def plan_mini_batches(
    groups: Sequence[TrainingGroup],
    *,
    prompts_per_mini_batch: int,
    num_ranks: int,
    max_tokens_per_micro_batch: int,
    max_tokens_per_vision_pass: int,
    num_before: int = 0,
    in_rounds: bool = True,
    objective: Objective = GRPO,
) -> tuple[RankPlan, ...]:
    """Plan one update, or the next part of one: a RankPlan for each of `num_ranks` ranks.

    Groups fill mini-batches of `prompts_per_mini_batch` in order, so that an update in parts has the mini-batches of
    one in a single part; the last of an update may remain smaller. With the token weights, the loss summed over the
    rows of a mini-batch depends neither on the number of ranks, nor on the token budget, nor on the parts.

    The loss of a mini-batch with fewer groups is still divided by `prompts_per_mini_batch`, as if the missing groups
    were zero-variance groups without a gradient. Divided by the actual number of groups, the gradient of a single group
    would be as large as that of 32, and so would its noise.

    Args:
        num_before: groups that the first mini-batch already has, from earlier parts.
        in_rounds: whether activations of the vision tower may stay during micro-batches (`learner.batches.rounds`).
    """
    assert groups, "an update needs at least one group"
    assert num_before < prompts_per_mini_batch, "a full mini-batch takes no more"
    assert not (num_before and objective.aggregation == "batch_tokens"), "its tokens are counted over the whole of it"
    pieces: list[list[PiecePlan]] = [[] for _ in range(num_ranks)]
    workload, start = Workload(), 0
    for stop in (*range(prompts_per_mini_batch - num_before, len(groups), prompts_per_mini_batch), len(groups)):
        numbered = [(index, groups[index]) for index in range(start, stop)]
        rows = weight_episodes(numbered, prompts_per_mini_batch, objective)
        shares = balance(families_of(rows, max_tokens_per_micro_batch), num_ranks)
        visual = max_tokens_per_vision_pass
        split = split_rounds(shares, max_tokens_per_micro_batch, visual) if in_rounds else [shares]
        rounds = [(pack_ranks(each, max_tokens_per_micro_batch), split_views(each, visual)) for each in split]
        for rank, planned in enumerate(pieces):
            planned.append(_joined([(packed[rank], passes[rank]) for packed, passes in rounds]))
        workload += _workload(rows, shares)
        start = stop
    is_open = (num_before + len(groups)) % prompts_per_mini_batch > 0
    return tuple(_with_local_images(planned, is_open, workload) for planned in pieces)


def _joined(rounds: Sequence[tuple[tuple[MicroBatchPlan, ...], tuple[VisionPassPlan, ...]]]) -> PiecePlan:
    """One rank's piece of a mini-batch that is computed in these rounds."""
    counts = [(len(passes), len(micro_batches)) for micro_batches, passes in rounds]
    return PiecePlan(
        micro_batches=tuple(each for micro_batches, _ in rounds for each in micro_batches),
        vision_passes=tuple(each for _, passes in rounds for each in passes),
        stops=tuple(itertools.accumulate(counts, lambda one, other: (one[0] + other[0], one[1] + other[1]))),
    )


def _workload(rows: Sequence[PlannedEpisode], shares: Sequence[Sequence[Family]]) -> Workload:
    loads = [_cost(families) for families in shares]
    return Workload(
        num_tokens=sum(row.num_tokens for row in rows),
        num_computed=sum(_tokens(families) for families in shares),
        mean_cost=sum(loads) / len(loads),
        most_cost=max(loads),
    )


def families_of(rows: Iterable[PlannedEpisode], max_tokens: int) -> list[Family]:
    """A family per image, or several where one would exceed `max_tokens` (a longer row is a family of its own)."""
    by_image: dict[int, list[PlannedEpisode]] = {}
    for row in rows:
        by_image.setdefault(row.image, []).append(row)
    return [part for siblings in by_image.values() for part in _parts(share(siblings), max_tokens)]


def _parts(family: Family, max_tokens: int) -> list[Family]:
    if family.num_tokens <= max_tokens or len(family.rows) == 1:
        return [family]
    parts: list[list[PlannedEpisode]] = []
    room = 0
    for row, length in zip(family.rows, family.remainders, strict=True):
        if length > room:
            parts.append([])
            room = max_tokens - family.num_shared
        parts[-1].append(row)
        room -= length
    return [share(part) for part in parts]


def balance(families: Sequence[Family], num_ranks: int) -> list[list[Family]]:
    """Distribute families over ranks by cost, splitting some where whole ones leave the ranks unequal."""
    shares = _distribute(families, num_ranks)
    mean = _cost(families) / num_ranks
    for _ in range(2 * num_ranks):
        loads = [_cost(each) for each in shares]
        busiest, idlest = loads.index(max(loads)), loads.index(min(loads))
        if loads[busiest] <= IMBALANCE * mean:
            break
        largest = max(shares[busiest], key=lambda family: family.cost)
        halves = _split(largest, loads[busiest] - loads[idlest])
        if halves is None:
            break
        kept, moved = halves
        if max(loads[busiest] - largest.cost + kept.cost, loads[idlest] + moved.cost) >= loads[busiest]:
            break
        shares[busiest] = [kept if family is largest else family for family in shares[busiest]]
        shares[idlest].append(moved)
    return shares


def _distribute(families: Iterable[Family], num_bins: int) -> list[list[Family]]:
    """Longest first, each to the bin with the least cost so far."""
    bins: list[list[Family]] = [[] for _ in range(num_bins)]
    loads = [(0.0, index) for index in range(num_bins)]
    for family in sorted(families, key=lambda family: -family.cost):
        load, index = loads[0]
        bins[index].append(family)
        heapq.heapreplace(loads, (load + family.cost, index))
    return bins


def _split(family: Family, gap: float) -> tuple[Family, Family] | None:
    """Two parts, the second of about the cost whose move closes a gap between two ranks; None for a single row."""
    if len(family.rows) == 1:
        return None
    repeated = family.cost - sum(family.remainders)
    wanted, moved = (gap - repeated) / 2, 0
    num_moved = 0
    for length in reversed(family.remainders[1:]):
        if num_moved and moved + length / 2 > wanted:
            break
        moved += length
        num_moved += 1
    return share(family.rows[:-num_moved]), share(family.rows[-num_moved:])


def pack_ranks(shares: Sequence[Sequence[Family]], max_tokens: int) -> list[tuple[MicroBatchPlan, ...]]:
    """Micro-batches per rank: as few as the fullest rank needs, on every rank as many, the costly ones first."""
    filled = [_fill(families, max_tokens) for families in shares]
    most = max(len(micro_batches) for micro_batches in filled)
    packed = []
    for families, tight in zip(shares, filled, strict=True):
        even = _distribute(families, most)
        fits = all(len(each) == 1 or _tokens(each) <= max_tokens for each in even)
        chosen = [each for each in (even if fits else tight) if each]
        chosen.sort(key=_cost, reverse=True)
        packed.append((*map(tuple, chosen), *[(dummy_family(),)] * (most - len(chosen))))
    return packed


def _fill(families: Iterable[Family], max_tokens: int) -> list[list[Family]]:
    """Best fit, longest first: each family to the fullest micro-batch that has room for it."""
    filled: list[list[Family]] = []
    room: list[tuple[int, int]] = []
    for family in sorted(families, key=lambda family: -family.num_tokens):
        at = bisect.bisect_left(room, (family.num_tokens, -1))
        if at == len(room):
            left, index = max_tokens, len(filled)
            filled.append([])
        else:
            left, index = room.pop(at)
        filled[index].append(family)
        bisect.insort(room, (left - family.num_tokens, index))
    return filled


def piece_without_a_finite_loss() -> PiecePlan:
    """Two tokens: whatever they are added to is not finite either, and its optimizer step is skipped."""
    return PiecePlan(
        micro_batches=((dummy_family(token_weight=math.nan),),),
        vision_passes=(VisionPassPlan(views=(), recomputes_blocks=False),),
    )


def dummy_family(*, token_weight: float = 0.0) -> Family:
    """Two tokens of weight 0 unless told otherwise, without a picture."""
    row = PlannedEpisode(
        token_ids=np.zeros(2, np.int64),
        generated_at=np.ones(1, np.int64),
        sampler_logprobs=np.zeros(1, np.float32),
        prompts=(),
        image=-1,
        advantages=np.zeros(1),
        token_weights=np.full(1, token_weight),
    )
    return share([row])


def split_views(shares: Sequence[Iterable[Family]], max_tokens: int) -> list[tuple[VisionPassPlan, ...]]:
    """Passes of the vision tower per rank, of at most `max_tokens` visual tokens (a larger view has one of its own)."""
    sizes = [{key: size for family in families for key, size in family.visual_tokens.items()} for families in shares]
    split = [_fill_passes(each, max_tokens) for each in sizes]
    most = max(len(passes) for passes in split)
    padded: list[list[list[ViewKey]]] = [[*passes, *[[]] * (most - len(passes))] for passes in split]
    exceeds = [
        any(sum(size[key] for key in views) > max_tokens for size, views in zip(sizes, same, strict=True))
        for same in zip(*padded, strict=True)
    ]
    return [
        tuple(
            VisionPassPlan(views=tuple(views), recomputes_blocks=recomputes)
            for views, recomputes in zip(passes, exceeds, strict=True)
        )
        for passes in padded
    ]


def _fill_passes(sizes: Mapping[ViewKey, int], max_tokens: int) -> list[list[ViewKey]]:
    passes: list[list[ViewKey]] = []
    room = 0
    for key, size in sorted(sizes.items(), key=lambda each: view_order(each[0])):
        if not passes or size > room:
            passes.append([])
            room = max_tokens
        passes[-1].append(key)
        room -= size
    return passes


def _tokens(families: Iterable[Family]) -> int:
    return sum(family.num_tokens for family in families)


def _cost(families: Iterable[Family]) -> float:
    return sum(family.cost for family in families)


def _with_local_images(pieces: Sequence[PiecePlan], is_open: bool, workload: Workload) -> RankPlan:
    """Renumber the images of one rank from 0."""
    used = sorted({image for piece in pieces for each in piece.vision_passes for image, _ in each.views})
    local = {group: number for number, group in enumerate(used)} | {-1: -1}

    def renumbered(family: Family) -> Family:
        return replace(family, rows=tuple(replace(row, image=local[row.image]) for row in family.rows))

    return RankPlan(
        mini_batches=tuple(
            replace(
                piece,
                micro_batches=tuple(tuple(map(renumbered, families)) for families in piece.micro_batches),
                vision_passes=tuple(
                    replace(each, views=tuple((local[image], view) for image, view in each.views))
                    for each in piece.vision_passes
                ),
            )
            for piece in pieces
        ),
        is_open=is_open,
        image_groups=tuple(used),
        workload=workload,
    )
