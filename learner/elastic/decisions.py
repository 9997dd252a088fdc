"""Decisions about a learner whose ranks come and go. Pure: observations in, decisions out.

    pending --up--> spare --form--> serving --lost, wedged, or no longer wanted--> gone

An update is attempted by the serving ranks. If one of them is lost, all drop what they did, form a group of those that
are there, restore the state of the last finished update and replay the groups since. Which rank computes what is
planned anew for each size (`learner.batches.plan`), so the results do not depend on it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from configs.ranges import Range

MAX_ATTEMPTS = 5
"""Failed attempts at one update before the run ends: what kills its ranks is then probably the update itself."""
FIRST_FACTOR = 5.0
"""How much longer than `stall_timeout_s` a pass may take in the first update of a group, for compilation."""
MAX_START_FAILURES = 3
"""Times in a row that a process may die before it is up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One rank's share of the learner's state in the memory of some process."""

    snapshot: int
    """Snapshots count up; the shares of one belong together."""
    index: int
    num_shares: int
    """Of the whole state."""
    place: str
    """The process that holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where to read a whole state."""

    snapshot: int
    places: tuple[str, ...]
    """For each share, the process to ask."""


def newest_whole(held: Iterable[Held], living: Collection[str]) -> Source | None:
    """The newest snapshot of which every share lies in a living process; of two places the one named first in `living`.

    None if no snapshot is whole.
    """
    order = {place: number for number, place in enumerate(living)}
    by_snapshot: dict[int, dict[int, Held]] = {}
    for share in held:
        if share.place in order:
            shares = by_snapshot.setdefault(share.snapshot, {})
            known = shares.get(share.index)
            if known is None or order[share.place] < order[known.place]:
                shares[share.index] = share
    for snapshot in sorted(by_snapshot, reverse=True):
        shares = by_snapshot[snapshot]
        if len(shares) == next(iter(shares.values())).num_shares:
            return Source(snapshot=snapshot, places=tuple(shares[index].place for index in sorted(shares)))
    return None


def holder_node(own: str, rank_nodes: Sequence[str], all_nodes: Sequence[str]) -> str:
    """The node whose memory takes the copy of a rank on node `own`: the next node with a rank, else any other node."""
    ring = sorted(set(rank_nodes) | {own})
    following = ring[(ring.index(own) + 1) % len(ring)]
    if following != own:
        return following
    return min((node for node in all_nodes if node != own), default=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The last sign of life of a rank that works on a call."""

    answered_at: float
    """When it last answered a question about its progress."""
    num_passes: int
    """Passes over micro-batches that it has finished. Ranks do the same number of them."""
    moved_at: float
    """When that number last changed."""


def wedged(
    beats: Mapping[int, Beat], working: Collection[int], *, now: float, timeout_s: float, is_first: bool
) -> dict[int, str]:
    """Members to be killed, with the reason. Others wait for them in a collective, and are free once they are gone.

    Args:
        beats: of all members of the group.
        working: members whose call has not returned and must make progress.
        is_first: whether it is the first update of the group.
    """
    silent = {
        member: f"no answer for {now - beat.answered_at:.1f} s"
        for member, beat in beats.items()
        if now - beat.answered_at > timeout_s
    }
    if silent or not working:
        return silent
    patience_s = timeout_s * (FIRST_FACTOR if is_first else 1.0)
    if any(now - beats[member].moved_at <= patience_s for member in working):
        return {}
    # Whoever is ahead waits for the others. If nobody is, each of them may be the one.
    behind = min(beats[member].num_passes for member in working)
    return {
        member: f"no progress for {now - beats[member].moved_at:.1f} s after {behind} passes"
        for member in working
        if beats[member].num_passes == behind
    }


def choose(up: Collection[int], serving: Sequence[int], maximum: int) -> tuple[int, ...]:
    """The next group: serving members that are still up, in their order, then newcomers."""
    stayed = [member for member in serving if member in up]
    return tuple([*stayed, *sorted(set(up) - set(stayed))][:maximum])


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What is known between two attempts."""

    up: tuple[int, ...]
    """Members whose process is there, whether they serve or not."""
    serving: tuple[int, ...]
    """Members of the present group, by rank."""
    desired: Range
    is_sound: bool
    """Whether all serving members hold the state after the last call."""
    has_state: bool
    """Whether a whole state can be read somewhere."""
    num_attempts: int
    """Failed ones at the present update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Go:
    """The present group goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """These members discard what they did, form a group in this order, and restore the state."""

    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Too few are up."""

    num_missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The run ends."""

    reason: str


Decision = Go | Form | Wait | GiveUp


def decide(seen: Observation) -> Decision:
    """What to do before the next call; resizes are for the time between two updates."""
    members = choose(seen.up, seen.serving, seen.desired.maximum)
    if seen.is_sound and set(seen.serving) <= set(seen.up):
        is_resize = len(members) != len(seen.serving) and len(members) in seen.desired
        return Form(members=members) if is_resize and seen.has_state else Go()
    if not seen.has_state:
        return GiveUp(
            reason="the state since the newest checkpoint is lost: no process holds all of its parts. Start the run "
            "again with --resume; learner.copy_state=true, and ranks on several nodes, keep it in memory"
        )
    if seen.num_attempts >= MAX_ATTEMPTS:
        return GiveUp(reason=f"the same update failed {seen.num_attempts} times")
    if len(members) < seen.desired.minimum:
        return Wait(num_missing=seen.desired.minimum - len(members))
    return Form(members=members)


State = Literal["pending", "spare", "serving"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankView:
    """One member of the learner, for `visionthink status`."""

    number: int
    state: State
    rank: int | None
    """Of a serving one."""
    node: str
    """Empty while pending."""
