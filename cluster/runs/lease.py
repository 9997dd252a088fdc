"""The lease on a run: at most one driver, on any node (fault 23). Needs no locks of the file system.

    RUN/lease/00000007.json     the claim of the seventh driver, renewed in place every few seconds

A claim is made by one atomic operation that fails if the token is taken. A driver that was cut off and comes back finds
a higher token and stops. It looks before each weight sync, record and checkpoint, so at most the one write under way at
that moment is its last; all of them replace whole files or add whole lines.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from actors.errors import RunError
from cluster.records.events import Event, OnEvent
from cluster.runs.claims import NUM_BYTES, RENEW_S, TAKEOVER_S, Claim, ClaimWatch, Held, Pulse, Seen, Wait

FOLDER = "lease"
CLAIM_NAME = re.compile(r"(\d{8,})\.json")
LOOK_S = 0.5
NUM_LOOKS = 20
"""At a claim that is listed but not there."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class Lease:
    """Held by the driver of a run; renewed by a thread until `release`."""

    def __init__(self, folder: Path, token: int, claim: Claim) -> None:
        self.token = token
        self._folder = folder
        self._claim = claim
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="lease", daemon=True)
        self._on_event: OnEvent | None = None
        self._thread.start()

    def report_to(self, on_event: OnEvent) -> None:
        """Where a loss is reported, once there is an event log."""
        self._on_event = on_event

    def check(self) -> None:
        """Stop this driver if another one has taken the run.

        Raises:
            RunError: it has, or the folder cannot be read.
        """
        try:
            newest = max(_tokens(self._folder), default=0)
        except OSError as error:
            raise RunError(f"{self._folder} cannot be read: {error.strerror}; is its file system mounted?") from error
        if newest == self.token:
            return
        seen = look(self._folder)
        owner = seen.claim if seen else None
        detail = f"{self._folder.parent} is driven by {owner or 'another driver'}: this driver stops"
        if self._on_event:
            self._on_event(Event(kind="fenced", who="driver", detail=detail))
            self._on_event = None  # told once
        raise RunError(detail)

    def release(self) -> None:
        """Give the run back. Without it, a successor on another machine would wait for a sign of life."""
        self._ended.set()
        self._thread.join(timeout=RENEW_S)
        with contextlib.suppress(OSError):
            self._write(replace(self._claim, is_released=True))

    def _keep_alive(self) -> None:
        while not self._ended.wait(RENEW_S):
            self._claim = replace(self._claim, beat=self._claim.beat + 1)
            try:
                self._write(self._claim)
            except FileNotFoundError:
                return  # a successor has removed it; `check` says so
            except OSError:
                continue  # a disk that is full or away for a while: the next sign of life may come in time

    def _write(self, claim: Claim) -> None:
        """In place: others see the change of one file earlier than that of a folder, and it needs no space."""
        handle = os.open(_path(self._folder, self.token), os.O_WRONLY)
        try:
            os.pwrite(handle, claim.to_bytes(), 0)
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """How another folder is chosen, to complete a message."""

    if_unwritable: str
    if_in_use: str


RUN = Elsewhere(if_unwritable="set run.dir to a folder that can be", if_in_use="set run.name to another name")


@contextlib.contextmanager
def lease(run: Path, *, say: Callable[[str], None], elsewhere: Elsewhere = RUN) -> Iterator[Lease]:
    """Hold the lease on a run in the body, taking it over from a driver that is dead.

    A successor on the same machine takes over at once, one on another machine after `TAKEOVER_S` of silence.

    Args:
        elsewhere: how another folder is chosen, for messages.

    Raises:
        RunError: the run has a living driver, which the message names.
    """
    taken = take_lease(run, say=say, elsewhere=elsewhere)
    try:
        yield taken
    finally:
        taken.release()


def take_lease(run: Path, *, say: Callable[[str], None], elsewhere: Elsewhere = RUN) -> Lease:
    """As `lease`, until `release`."""
    folder = run / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _take(folder, own_claim(), say, elsewhere)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; {elsewhere.if_unwritable}") from error


def _take(folder: Path, claim: Claim, say: Callable[[str], None], elsewhere: Elsewhere) -> Lease:
    watch, is_told = ClaimWatch(), False
    while True:
        seen = look(folder)
        decision = watch.decide(seen, time.monotonic())
        if isinstance(decision, Held):
            raise RunError(
                f"{folder.parent} is in use by {decision.owner}: wait for it, stop it, or {elsewhere.if_in_use}"
            )
        if isinstance(decision, Wait):
            if not is_told:
                say(f"waiting up to {TAKEOVER_S:g} s for a sign of life of {decision.owner}")
            is_told = True
            time.sleep(LOOK_S)
        elif make_claim(folder, decision.token, claim):
            if seen is not None and seen.claim is not None and not seen.claim.is_released:
                say(f"this driver replaces {seen.claim}, which gives no sign of life")
            return Lease(folder, decision.token, claim)


def look(folder: Path) -> Seen | None:
    """The newest claim; None without one.

    Raises:
        RunError: it is listed, but cannot be found.
    """
    for _ in range(NUM_LOOKS):
        token = max(_tokens(folder), default=0)
        if not token:
            return None
        path = _path(folder, token)
        try:
            text, user = path.read_bytes()[:NUM_BYTES], path.stat().st_uid
        except FileNotFoundError:  # a newer one has replaced it, which a network file system may show late
            time.sleep(LOOK_S)
            continue
        claim = Claim.parse(text)
        # Processes of other users may be hidden.
        return Seen(token=token, text=text, pulse=_pulse(claim) if claim and user == os.getuid() else "unknown")
    raise RunError(f"{folder} has claims that cannot be read: check its file system")


def make_claim(folder: Path, token: int, claim: Claim) -> bool:
    """Claim the run with this token; False if another driver was faster. Older claims are removed."""
    if not _create(folder, token, claim):
        return False
    if max(_tokens(folder)) > token:  # decided long ago: two have come since, and this token's file was removed
        _path(folder, token).unlink(missing_ok=True)
        return False
    for older in _tokens(folder):
        if older < token:
            _path(folder, older).unlink(missing_ok=True)
    return True


def _create(folder: Path, token: int, claim: Claim) -> bool:
    """Create a claim with its content at once by a hard link, also on NFS; an exclusive file where there are none."""
    path, partial = _path(folder, token), folder / f".{claim.driver}.tmp"
    try:
        with partial.open("wb") as file:
            file.write(claim.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        os.link(partial, path)
    except FileExistsError:
        pass  # or the reply to an earlier try was lost: what the file says counts
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(claim.to_bytes())
    finally:
        partial.unlink(missing_ok=True)
    try:
        made = Claim.parse(path.read_bytes()[:NUM_BYTES])
    except FileNotFoundError:
        return False
    return made is not None and made.driver == claim.driver


def _tokens(folder: Path) -> list[int]:
    return [int(match[1]) for name in os.listdir(folder) if (match := CLAIM_NAME.fullmatch(name))]


def _path(folder: Path, token: int) -> Path:
    return folder / f"{token:08d}.json"


def own_claim() -> Claim:
    """Of this process."""
    pid = os.getpid()
    return Claim(
        driver=secrets.token_hex(8),
        host=socket.gethostname(),
        pid=pid,
        machine=_machine(),
        started=_start_of(pid) or 0,
        since=f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}",
    )


def _machine() -> str:
    """Containers may share a host name, and have process numbers of their own."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _pulse(claim: Claim) -> Pulse:
    machine = _machine()
    if not machine or claim.machine != machine:
        return "unknown"
    return "alive" if _start_of(claim.pid) == claim.started else "dead"


def _start_of(pid: int) -> int | None:
    """Start of a running process in ticks since boot, which no change of the clock moves; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
