"""Decides who drives a run, from what is seen of the claims in its folder. Pure.

Each claim has a token, higher than that of all before it; whoever made the claim with the highest token drives the run.
A living driver changes its claim every `RENEW_S`. Another one may take the run when the claim was released, when its
process is known to be dead, or when it did not change for `TAKEOVER_S` of the observer's own monotonic clock: times of
two machines are never compared.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, Self

RENEW_S = 3.0
"""Seconds between two signs of life."""
TAKEOVER_S = 20.0
"""A driver of another machine without a sign of life for this long may be replaced."""
NUM_BYTES = 1024
"""Size of a claim on disk, always the same: it is renewed in place, also on a full disk."""

Pulse = Literal["alive", "dead", "unknown"]
"""Of the process that made a claim: `unknown` unless it is one of this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a driver says of itself. `since` is for people and never compared."""

    driver: str
    """Unique per driver."""
    host: str
    pid: int
    machine: str
    """Machine, boot and process namespace: where `pid` means the same."""
    started: int
    """Start of the process in clock ticks since boot; with `pid` it identifies a process. 0 if not known."""
    since: str
    beat: int = 0
    """Signs of life so far."""
    is_released: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode().ljust(NUM_BYTES - 1) + b"\n"

    @classmethod
    def parse(cls, text: bytes) -> Self | None:
        """None for a claim that is half written."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"the driver on {self.host} (pid {self.pid}, since {self.since})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The claim with the highest token, as seen once."""

    token: int
    text: bytes
    pulse: Pulse = "unknown"

    @property
    def claim(self) -> Claim | None:
        return Claim.parse(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """The run is free: claim it with this token."""

    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Its driver is alive."""

    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Not known yet."""

    owner: str


class ClaimWatch:
    """One driver's view of a run that it wants to drive."""

    def __init__(self) -> None:
        self._first: Seen | None = None
        self._since = 0.0

    def decide(self, seen: Seen | None, now: float) -> Take | Held | Wait:
        """Args: seen: the newest claim, None without one; now: monotonic seconds."""
        if seen is None:
            return Take(token=1)
        claim = seen.claim or (self._first.claim if self._first else None)  # read while its driver wrote it
        owner = str(claim) if claim else "an unknown driver"
        if seen.pulse == "dead" or (seen.claim is not None and seen.claim.is_released):
            return Take(token=seen.token + 1)
        if seen.pulse == "alive":
            return Held(owner=owner)
        if self._first is None:
            self._first, self._since = seen, now
        if (seen.token, seen.text) != (self._first.token, self._first.text):
            return Held(owner=owner)
        return Take(token=seen.token + 1) if now - self._since >= TAKEOVER_S else Wait(owner=owner)
