"""A run's status for people: a few lines and a table of its members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.records.events import WARNINGS, LoggedEvent
from cluster.status.files import Snapshot
from cluster.status.views import WAITING, MemberView, encode_status
from cluster.visible import visible
from configs.ranges import parse_range

KILLED = "its driver stopped without reporting: it was killed, or its machine was lost"
NUM_EVENTS = 8
STYLES = {"serving": "green", "pending": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that `visionthink status` found."""

    snapshot: Snapshot
    is_alive: bool
    now: float
    owner: str
    """Who holds the lease; empty without one."""
    events: Sequence[LoggedEvent]
    """The last ones."""

    @property
    def age_s(self) -> float:
        """Of the snapshot."""
        return self.snapshot.age_s(self.now)

    @property
    def state(self) -> str:
        """`gone` for a run whose driver is no more, though its last word was that it runs."""
        status = self.snapshot.status
        return status.state if status.is_over or self.is_alive else "gone"

    @property
    def cause(self) -> str:
        """Why the run is not running; empty while it is, or ended as it should."""
        if self.snapshot.status.is_over or self.is_alive:
            return self.snapshot.status.cause
        stops = [logged.event.line() for logged in self.events if logged.event.kind in ("stop", "fenced", "preempted")]
        return "; ".join([KILLED, *stops[-1:]])


def as_json(look: Look) -> dict[str, Any]:
    """All of it under names that stay."""
    status = look.snapshot.status
    waiting = [member.name for member in status.waiting] if look.is_alive else []
    return {
        **encode_status(status),
        "state": look.state,
        "cause": look.cause,
        "is_running": look.is_alive,
        "age_s": round(look.age_s, 1),
        "waiting": waiting,
        "owner": look.owner,
        "host": look.snapshot.host,
        "pid": look.snapshot.pid,
        "events": [
            {"time": logged.time, "kind": logged.event.kind, "who": logged.event.who, "detail": logged.event.detail}
            for logged in look.events
        ],
    }


def render(look: Look) -> RenderableType:
    """Header, members and last events."""
    parts: list[RenderableType] = [_header(look)]
    if look.snapshot.status.members:
        parts += [Text(), _members(look)]
    if look.events:
        parts += [Text(), _events(look)]
    return Group(*parts)


def _header(look: Look) -> Text:
    status = look.snapshot.status
    style = "bold" if look.is_alive or look.state == "ended" else "bold red"
    lines = Text.assemble(
        (visible(f"run {status.run}: {look.state}"), style), f", step {status.step}/{status.num_steps}"
    )
    if status.version is not None:
        lines.append(f", version {status.version}")
    if look.is_alive and status.eta_s is not None:
        lines.append(f", ETA {timedelta(seconds=round(status.eta_s))}")
    if look.is_alive and status.phase:
        lines.append(visible(f"\n{status.phase}"))
    if look.cause:
        lines.append(visible(f"\n{look.cause}"), style="red")
    lines.append(visible(f"\nwritten {short_time(look.age_s)} ago on {look.snapshot.host}, pid {look.snapshot.pid}"))
    if look.owner:
        lines.append(visible(f"; held by {look.owner}"))
    wanted = ", ".join(f"{role} {size}" for role, size in status.wanted.items())
    lines.append(visible(f"\nsizes: {wanted}") if wanted else "")
    if status.num_judges is not None:
        lines.append(f"; judges up: {status.num_judges}")
    if status.scale is not None:
        lines.append(visible(f"\nlast scale: {status.scale.line()}"))
    if look.is_alive:
        lines.append(_missing(look))
    return lines


def _missing(look: Look) -> str:
    """A role with fewer members than its minimum."""
    status = look.snapshot.status
    lines = ""
    for role, size in status.wanted.items():
        present = [m for m in status.members if m.role == role and m.state not in WAITING]
        if status.members and len(present) < (least := parse_range(role, size).minimum):
            lines += f"\n{role}: {len(present)} of at least {least} are there"
    return lines


def _members(look: Look) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for head in ("member", "state", "for", "version", "groups", "node", "why"):
        is_number = head in ("for", "version", "groups")
        table.add_column(head, justify="right" if is_number else "left", no_wrap=head != "why", overflow="fold")
    order = {"rollouts": 0, "learner": 1, "judges": 2}
    for member in sorted(look.snapshot.status.members, key=lambda member: order.get(member.role, 3)):
        table.add_row(*_row(member, look.now))
    return table


def short_time(seconds: float) -> str:
    """Such as `45 s`, `12 min`, `3 h` or `2 d`."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _row(member: MemberView, now: float) -> tuple[RenderableType, ...]:
    since = "" if member.since is None else short_time(now - member.since)
    return (
        Text(visible(member.name)),
        Text(visible(member.state), style=STYLES.get(member.state, "")),
        since,
        "-" if member.version is None else str(member.version),
        "-" if member.in_flight is None else str(member.in_flight),
        Text(visible(member.node)),
        Text(visible(member.detail)),
    )


def _events(look: Look) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=False)
    for logged in look.events:
        style = "yellow" if logged.event.kind in WARNINGS else ""
        at = datetime.fromtimestamp(logged.time)
        table.add_row(f"{at:%H:%M:%S}", Text(visible(logged.event.line()), style=style, overflow="fold"))
    return table
