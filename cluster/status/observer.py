"""Everything of a run that somebody outside of it sees: status, events, sizes, metrics of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cluster.records.events import Event, EventLog
from cluster.status.readings import Reading, StatusReadings, event_readings, step_readings
from cluster.status.repeats import Repeats
from cluster.status.scaling import SizeDesk
from cluster.status.views import MemberView, Role, RunState, RunStatus, members_line
from cluster.status.writer import StatusWriter
from configs.ranges import Range
from configs.schema import Config

Publish = Callable[[Iterable[Reading]], None]
"""Takes readings to where the cluster's metrics are collected."""


class Screen(Protocol):
    """The part of `cluster.display.Display` that is observed and told."""

    @property
    def eta_s(self) -> float | None: ...

    @property
    def phase(self) -> str: ...

    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def show_members(self, line: str) -> None: ...


class Observer:
    """One per run; a context that begins before anything starts and ends after everything has.

    Args:
        desk: the sizes in force.
        publish: for readings of the cluster's metrics.
    """

    def __init__(self, folder: Path, config: Config, *, desk: SizeDesk, screen: Screen, publish: Publish) -> None:
        self._config = config
        self._desk = desk
        self._screen = screen
        self._publish = publish
        self._step = 0
        self._version: int | None = None
        self._members: Callable[[], Sequence[MemberView]] = tuple
        self._num_judges: Callable[[], int | None] = lambda: None
        self._repeats = Repeats(say=screen.say, warn=screen.warn)
        self._series = StatusReadings()
        self.events = EventLog(folder, say=self._repeats.say, warn=self._repeats.warn)
        self._writer = StatusWriter(
            folder,
            assemble=self._assemble,
            desk=desk,
            on_event=self.add_event,
            on_status=self._on_status,
            warn=screen.warn,
        )

    async def __aenter__(self) -> Self:
        await self._writer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._repeats.flush()
        await self._writer.__aexit__(kind, error, trace)

    def watch(
        self,
        members: Callable[[], Sequence[MemberView]],
        *,
        num_judges: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Whom to ask from now on, about once a second; neither may block."""
        self._members, self._num_judges = members, num_judges

    def desired(self, role: Role) -> Range:
        """The size in force of a role: by the config, or by the last `visionthink scale`."""
        return self._desk.desired(role)

    def started(self, step: int) -> None:
        """All components are up, with `step` as the last finished step."""
        self._step, self._writer.state = step, "running"

    def add_event(self, event: Event) -> None:
        """Log, show, count and publish an event; without a step it belongs to the one in progress."""
        event = event if event.step is not None else replace(event, step=self._step + 1)
        self.events.add(event)
        self._publish(event_readings(event))

    def step_done(self, step: int, figures: Mapping[str, float]) -> None:
        """Take over the metrics of a finished step."""
        self._writer.check()
        self._step = step
        if "policy/version" in figures:
            self._version = int(figures["policy/version"])
        self._repeats.flush()
        self._publish(step_readings(step, figures))

    def _assemble(self, state: RunState, cause: str) -> RunStatus:
        is_over = state not in ("starting", "running")
        return RunStatus(
            run=self._config.run.name,
            state=state,
            cause=cause,
            step=self._step,
            num_steps=self._config.train.num_steps,
            phase="" if is_over else self._screen.phase,
            eta_s=None if is_over else self._screen.eta_s,
            version=self._version,
            members=() if is_over else tuple(self._members()),
            wanted={role: str(size) for role, size in self._desk.sizes.items()},
            num_judges=None if is_over else self._num_judges(),
            scale=self._desk.answer,
        )

    def _on_status(self, status: RunStatus) -> None:
        self._screen.show_members(members_line(status.members, self._desk.sizes, status.num_judges))
        self._publish(self._series.of(status))
