"""Who joins, serves, drains, is killed and started again: observations in, decisions out. Pure.

    starting -> syncing -> serving -> draining -> gone

`reconcile` is asked again and again, at every change and at least once a second, and keeps nothing in between: what it
needs is in the observations. A member serves only under the version that is current at that moment. Whoever is dead,
wedged or late is killed, which frees its slot, and the slot is filled again as its restart budget allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from configs.ranges import Range

FIRST_PAUSE_S = 2.0
"""Before the second restart within a window, as the first one comes at once; each further one doubles it."""
MAX_PAUSE_S = 60.0


class State(StrEnum):
    STARTING = "starting"
    """Its process is asked for, waits for resources, or loads the model."""
    SYNCING = "syncing"
    """Ready, but for the current version of the weights."""
    SERVING = "serving"
    DRAINING = "draining"
    """Gets no new groups, and may finish those that it has."""


UP = frozenset({State.SYNCING, State.SERVING})
"""Ready to play, or as soon as the weights are there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What is seen of one member. Times are those of a monotonic clock, in seconds."""

    slot: int
    """Its place in the fleet, from 0; at most one member has it at a time."""
    state: State
    since: float
    """When it came into this state; while it waits for resources, when it was asked for; while it is syncing, when the
    current version was announced, if that was later."""
    is_placed: bool = True
    """Whether the cluster has found room for it."""
    is_ready: bool = False
    """Whether its engine has generated something, or is known to be able to."""
    version: int | None = None
    """Of the weights that it has confirmed."""
    num_groups: int = 0
    """In flight."""
    progress_at: float = 0.0
    """When it last generated something, or got its first group."""
    death: str | None = None
    """Why it is dead or faulty; None if it is not."""
    is_broken: bool = False
    """Whether its own code raised an error while it started, which another start is likely to repeat."""
    leaves_at: float | None = None
    """By when it is gone, if its node is being drained; the deadline of a draining member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The history of one place in the fleet."""

    restarts: tuple[float, ...] = ()
    """When its members were started to replace one that failed, oldest first."""
    is_replacement: bool = False
    """Whether the next member replaces one that failed."""
    freed_at: float = 0.0
    """When the last one failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """All that a decision depends on."""

    now: float
    desired: Range
    version: int | None
    """The current version of the weights; None before the first."""
    members: tuple[Member, ...]
    slots: tuple[Slot, ...]
    """By slot; those beyond its length have no history."""
    is_running: bool
    """Whether the run has begun, for which `desired.minimum` members must have been up."""
    has_been_up: bool
    """Whether any member has ever come up."""
    lacking_since: float | None
    """Since when `is_lacking`; None if it is not."""
    cause: str = ""
    """Of the last failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Deadlines and budgets (`configs.schema.RolloutConfig`), in seconds."""

    start_timeout_s: float
    progress_timeout_s: float
    drain_timeout_s: float
    max_restarts: int
    restart_window_s: float
    waits_when_none_left: bool
    wait_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Ask for a member in a free slot."""

    slot: int
    is_restart: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """Bring a ready member to the current version of the weights."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    """Give it groups."""

    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Give it no more groups."""

    slot: int
    reason: str
    deadline: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End its process, and play its groups elsewhere."""

    slot: int
    reason: str
    is_failure: bool
    """Whether it failed, so that the next start in its slot costs one of the restart budget."""
    is_wedged: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nobody is up and nobody may be started now."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The run cannot continue."""

    reason: str


Decision = Start | Sync | Admit | Drain | Kill | Wait | GiveUp


def reconcile(seen: Observed, policy: Policy) -> tuple[Decision, ...]:
    """What to do now. At most one decision per member and free slot."""
    broken = next((m.death for m in seen.members if m.is_broken and m.death is not None), None)
    if broken is not None and not seen.has_been_up:
        return (GiveUp(reason=broken),)
    decisions = [found for m in seen.members if (found := _of_member(m, seen, policy)) is not None]
    touched = {d.slot for d in decisions if isinstance(d, Kill | Drain)}
    leaving = touched | {m.slot for m in seen.members if m.state is State.DRAINING}
    surplus = _surplus([m for m in seen.members if m.slot not in leaving], seen, policy)
    dismissed = {d.slot for d in surplus}
    decisions = [d for d in decisions if d.slot not in dismissed]
    starts = _starts(seen, policy)
    staying = [m for m in seen.members if m.slot not in leaving | dismissed]
    return (*decisions, *surplus, *starts, *_stalemate(seen, policy, staying, starts))


def is_lacking(members: Sequence[Member], needed: int) -> bool:
    """Whether fewer members than needed are up or on their way, not counting those that wait for resources."""
    coming = sum(m.death is None and m.state is not State.DRAINING and m.is_placed for m in members)
    return coming < needed


def num_up(members: Sequence[Member]) -> int:
    return sum(m.state in UP and m.death is None for m in members)


def restart_at(slot: Slot, now: float, policy: Policy) -> float | None:
    """When the next member of a slot may be started; None if its budget is spent for now."""
    if not slot.is_replacement:
        return now
    recent = [at for at in slot.restarts if at > now - policy.restart_window_s]
    if len(recent) >= policy.max_restarts:
        return None
    if not recent:
        return slot.freed_at
    return slot.freed_at + min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (len(recent) - 1))


def _of_member(member: Member, seen: Observed, policy: Policy) -> Sync | Admit | Drain | Kill | None:
    slot, now = member.slot, seen.now
    if member.death is not None:
        return Kill(slot=slot, reason=member.death, is_failure=True)
    if member.state is State.DRAINING:
        return _of_draining(member, now)
    if member.state is State.STARTING and member.is_placed and now - member.since > policy.start_timeout_s:
        late = f"it did not start within rollout.start_timeout_s={policy.start_timeout_s:g}"
        return Kill(slot=slot, reason=late, is_failure=True)
    silent_s = now - member.progress_at
    if member.state is State.SERVING and member.num_groups and silent_s > policy.progress_timeout_s:
        reason = f"it generated nothing for rollout.progress_timeout_s={policy.progress_timeout_s:g}"
        return Kill(slot=slot, reason=reason, is_failure=True, is_wedged=True)
    if member.leaves_at is not None:
        deadline = min(member.leaves_at, now + policy.drain_timeout_s)
        return Drain(slot=slot, reason="its node is being drained", deadline=deadline)
    if member.state is State.STARTING and member.is_ready:
        return Sync(slot=slot)
    if member.state is State.SYNCING:
        is_current = seen.version is not None and member.version == seen.version
        return Admit(slot=slot) if is_current else Sync(slot=slot)
    return None


def _of_draining(member: Member, now: float) -> Kill | None:
    if member.num_groups == 0:
        return Kill(slot=member.slot, reason="drained", is_failure=False)
    if member.leaves_at is not None and now >= member.leaves_at:
        reason = f"drained up to its deadline, with {member.num_groups} groups left"
        return Kill(slot=member.slot, reason=reason, is_failure=False)
    return None


def _surplus(staying: list[Member], seen: Observed, policy: Policy) -> list[Drain | Kill]:
    """Who leaves where there are more than desired: those first that do least, and then the youngest slots."""
    if len(staying) <= seen.desired.maximum:
        return []
    order = {State.STARTING: 0, State.SYNCING: 1, State.SERVING: 2}
    leaving = sorted(staying, key=lambda m: (order[m.state], m.is_placed, -m.slot))
    reason = f"the fleet shrinks to {seen.desired.maximum}"
    return [
        Drain(slot=m.slot, reason=reason, deadline=seen.now + policy.drain_timeout_s)
        if m.state is State.SERVING
        else Kill(slot=m.slot, reason=reason, is_failure=False)
        for m in leaving[: len(staying) - seen.desired.maximum]
    ]


def _starts(seen: Observed, policy: Policy) -> list[Start]:
    """Fill free slots. Whoever is there counts until it is gone, so that there are never more than desired."""
    room = max(0, seen.desired.maximum - len(seen.members))
    due = [number for number in _free_slots(seen) if _is_due(_slot(seen, number), seen.now, policy)]
    return [Start(slot=number, is_restart=_slot(seen, number).is_replacement) for number in due[:room]]


def _free_slots(seen: Observed) -> list[int]:
    taken = {m.slot for m in seen.members}
    return [number for number in range(seen.desired.maximum) if number not in taken]


def _slot(seen: Observed, number: int) -> Slot:
    return seen.slots[number] if number < len(seen.slots) else Slot()


def _is_due(slot: Slot, now: float, policy: Policy) -> bool:
    at = restart_at(slot, now, policy)
    return at is not None and at <= now


def _stalemate(seen: Observed, policy: Policy, staying: list[Member], starts: list[Start]) -> list[Wait | GiveUp]:
    """Wait or give up where members are lacking and none of them is on its way."""
    if (stuck := _stuck(seen, policy)) is not None:
        return [stuck]
    needed = 1 if seen.is_running else seen.desired.minimum
    if seen.lacking_since is None or not is_lacking(staying, needed):
        return []
    cause = f": {seen.cause}" if seen.cause else ""
    if seen.now - seen.lacking_since > policy.wait_timeout_s:
        there = sum(m.is_placed for m in staying)
        what = f"{there} of {needed} rollout workers are there after rollout.wait_timeout_s={policy.wait_timeout_s:g}"
        return [GiveUp(reason=f"{what}{cause}")]
    may_start_soon = any(restart_at(_slot(seen, number), seen.now, policy) is not None for number in _free_slots(seen))
    if starts or seen.members or may_start_soon:
        return []
    if not policy.waits_when_none_left:
        spent = f"each was restarted rollout.max_restarts={policy.max_restarts} times"
        return [GiveUp(reason=f"no rollout worker is left, and {spent} within {policy.restart_window_s:g} s{cause}")]
    return [Wait(reason=f"no rollout worker is left; a restart is allowed later{cause}")]


def _stuck(seen: Observed, policy: Policy) -> GiveUp | None:
    """Members that are up and get no weights, while the run waits for their groups."""
    syncing = [m.since for m in seen.members if m.state is State.SYNCING]
    serves = any(m.state is State.SERVING for m in seen.members)
    if serves or not syncing or seen.version is None or seen.now - min(syncing) <= policy.wait_timeout_s:
        return None
    what = f"{len(syncing)} rollout workers are up, and version {seen.version} of the weights did not reach them"
    return GiveUp(reason=f"{what} within rollout.wait_timeout_s={policy.wait_timeout_s:g}")
