"""What a run says about itself: its members, what it does, and what it waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from pydantic import FiniteFloat, TypeAdapter, ValidationError

from configs.ranges import Range

Role = Literal["rollouts", "learner", "judges"]
RunState = Literal["starting", "running", "ended", "stopped", "failed"]
WORKING = "serving"
"""State of members that do their work."""
WAITING = ("pending", "starting", "syncing", "spare")
"""States of members that are not there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """One member of a run, as its driver sees it."""

    name: str
    """Such as `rollout worker 2`; unique in the run."""
    role: Role
    state: str
    """`pending` is asked of Ray, but has no place on the cluster yet."""
    version: int | None = None
    """Of the weights that it serves or holds; None where it has none yet."""
    node: str = ""
    in_flight: int | None = None
    """Groups that it plays; None where that is not known, or for no rollout worker."""
    since: FiniteFloat | None = None
    """Wall-clock time at which it came into this state; None if unknown."""
    detail: str = ""
    """Why it is in this state, for one that does not work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAnswer:
    """What the driver answered to the last `visionthink scale`."""

    id: str
    requested: Mapping[str, str]
    """Role to size, as in `2..6`."""
    is_accepted: bool
    reason: str = ""
    """Why it was refused; for an accepted one what it still waits for, if anything."""

    def line(self) -> str:
        """As in `rollouts=2..6 accepted`, with the reason after a colon."""
        sizes = " ".join(f"{role}={size}" for role, size in self.requested.items())
        verdict = "accepted" if self.is_accepted else "refused"
        return f"{sizes} {verdict}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run at one moment. Two of them are equal as long as nothing happened."""

    run: str
    state: RunState
    cause: str = ""
    """Why the run ended, for one that failed or was stopped."""
    step: int
    """Last finished step."""
    num_steps: int
    phase: str = ""
    """What the run does now."""
    eta_s: FiniteFloat | None = None
    """Estimated seconds from the last finished step to the end; None before the first one."""
    version: int | None = None
    """Of the weights published last."""
    members: tuple[MemberView, ...] = ()
    wanted: Mapping[str, str]
    """Size in force of each role that can change, as in `2..6`."""
    num_judges: int | None = None
    """Judge replicas that are up; None where Serve runs none or does not say."""
    scale: ScaleAnswer | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ("ended", "stopped", "failed")

    def of(self, role: Role) -> list[MemberView]:
        return [member for member in self.members if member.role == role]

    @property
    def waiting(self) -> list[MemberView]:
        """Members that are not there yet."""
        return [member for member in self.members if member.state in WAITING]


def encode_status(status: RunStatus) -> dict[str, Any]:
    """For JSON. Members may be a thousand, every second: `asdict` would copy each of their fields deeply."""
    fields = _shallow(status)
    fields["members"] = [_shallow(member) for member in status.members]
    fields["scale"] = None if status.scale is None else _shallow(status.scale)
    return fields


def _shallow(view: Any) -> dict[str, Any]:
    return {name: getattr(view, name) for name in view.__dataclass_fields__}


def decode_status(fields: Mapping[str, Any]) -> RunStatus:
    """The inverse of `encode_status`. Unknown fields are ignored: another version may have written them.

    Raises:
        ValueError: a field is missing or of the wrong type.
    """
    try:
        return _checker().validate_python(dict(fields))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()[:3])
        raise ValueError(f"not the status of a run: {wrong}") from error


@lru_cache(maxsize=1)
def _checker() -> TypeAdapter[RunStatus]:
    return TypeAdapter(RunStatus)


def members_line(members: Sequence[MemberView], wanted: Mapping[str, Range], num_judges: int | None = None) -> str:
    """Such as `rollouts 3/4 serving, 1 pending; learner 2 ranks`; empty without members."""
    parts = []
    for role, noun in (("rollouts", "serving"), ("learner", "ranks")):
        states = Counter(member.state for member in members if member.role == role)
        if not states:
            continue
        working = states[WORKING]
        most = wanted[role].maximum if role in wanted else states.total()
        size = str(working) if role == "learner" and working == most else f"{working}/{most}"
        noun = "rank" if size == "1" and role == "learner" else noun
        others = [f"{num} {state}" for state, num in sorted(states.items()) if state != WORKING]
        parts.append(", ".join([f"{role} {size} {noun}", *others]))
    if num_judges is not None:
        parts.append(f"judges {num_judges}")
    return "; ".join(parts)
