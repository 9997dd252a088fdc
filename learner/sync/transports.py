"""The sending ends of the weights, one per transport. `actors.engine.transfer` has the receiving ones.

A transport gives out the memory of a bucket, and delivers it once it is filled. On the learner this is rank 0 alone.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import tempfile
import time
from abc import abstractmethod
from concurrent.futures import Future
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from actors.engine.cuda_ipc import export_handle
from actors.engine.nccl_group import NcclGroup
from actors.errors import WeightSyncError
from actors.weights.layout import WeightLayout
from actors.weights.progress import PAGE_BYTES, Progress
from actors.weights.staging import check_room, file_identity, staging_root
from configs.learner import Transport
from learner.host import free_port, own_address
from learner.sync.calls import CallThread, result_within
from learner.sync.resident import ResidentWeights

SENDING = "broadcasting weights"
POLL_S = 5e-5
"""Between two questions whether a broadcast has ended."""


class SendingEnd(Protocol):
    """One transport, for as long as the set of receivers stays the same. It overrides what it has work for."""

    is_rendezvous: bool = False
    """Whether receivers take part in what is sent; otherwise what was delivered waits to be fetched."""
    keeps_last: bool = False
    """Whether the last version can be fetched until the next one begins, by any number of receivers."""

    def settings(self) -> dict[str, Any]:
        """What the receiving ends need in order to connect; plain types."""
        return {}

    def join(self) -> None:
        """Meet the receivers, which connect at the same time."""
        return

    is_followed: bool = False
    """Whether receivers of this machine can take a version while it is being sent."""

    def begin(self, version: int) -> None:
        """Start a version; memory of earlier ones may be used again."""
        return

    @abstractmethod
    def bucket(self, index: int) -> Tensor:
        """Memory of a bucket, uint8 [num_bytes] on the learner's device or the host."""

    def advance(self, index: int, num_bytes: int) -> None:
        """The first `num_bytes` of a bucket are filled."""
        return

    def deliver(self, index: int) -> None:
        """Pass on a filled bucket."""
        return

    def finish(self) -> dict[str, Any]:
        """Wait until the version is delivered; returns what receivers need to fetch it."""
        return {}

    def release(self) -> None:
        """Free what receivers have fetched."""
        return

    def close(self) -> None:
        """Leave the receivers, whatever is under way, and free all memory. Never fails."""
        return


class SharedMemoryEnd(SendingEnd):
    """Files without a name, which processes of this machine open through /proc and map.

    Nothing of them is left when this process ends, however it ends. Two take turns, so that the last version stays
    there to be read. Receivers read a version while it is written (`actors.weights.progress`).
    """

    keeps_last = True
    is_followed = True

    def __init__(self, layout: WeightLayout, *, timeout_s: float) -> None:
        self._layout = layout
        self._timeout_s = timeout_s
        self._starts = [0, *itertools.accumulate(layout.bucket_sizes)]
        self._current = 0
        root = staging_root()
        check_room(2 * (layout.num_bytes + PAGE_BYTES), root)
        with contextlib.ExitStack() as files:
            try:
                self._files = [files.enter_context(tempfile.TemporaryFile(dir=root)) for _ in range(2)]
                memories = [self._reserve(file) for file in self._files]
            except OSError as error:
                raise WeightSyncError(f"no room for two versions of the weights in {root}: {error}") from error
            files.pop_all()
        self._buckets = [memory[:-1] for memory in memories]
        self._progress = [Progress(memory[-1]) for memory in memories]
        self.release()

    def _reserve(self, file: IO[bytes]) -> list[Tensor]:
        # Ahead of time: a full file system is an error here, and would be a signal at the first write.
        size = self._layout.num_bytes + PAGE_BYTES
        os.posix_fallocate(file.fileno(), 0, size)
        memory = torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        return list(torch.split(memory, [*self._layout.bucket_sizes, PAGE_BYTES]))

    def _path(self, index: int) -> str:
        return f"/proc/{os.getpid()}/fd/{self._files[index].fileno()}"

    def settings(self) -> dict[str, Any]:
        files = [self._path(index) for index in range(len(self._files))]
        return {
            "file": files[0],
            "identity": file_identity(files[0]),
            "files": files,
            "timeout_s": self._timeout_s,
        }

    def begin(self, version: int) -> None:
        self._current = 1 - self._current
        self._progress[self._current].begin(version)

    def bucket(self, index: int) -> Tensor:
        return self._buckets[self._current][index]

    def advance(self, index: int, num_bytes: int) -> None:
        self._progress[self._current].advance(self._starts[index] + num_bytes)

    def deliver(self, index: int) -> None:
        self.advance(index, self._layout.bucket_sizes[index])

    def finish(self) -> dict[str, Any]:
        return {"file": self._path(self._current)}

    def release(self) -> None:
        for progress in self._progress:
            progress.end()

    def close(self) -> None:
        self._buckets, self._progress = [], []
        for file in self._files:
            file.close()


class NcclEnd(SendingEnd):
    """Broadcasts, on a thread: whatever they wait for, this process gives up in time."""

    is_rendezvous = True

    def __init__(
        self,
        layout: WeightLayout,
        resident: ResidentWeights | None,
        *,
        device: torch.device,
        num_receivers: int,
        timeout_s: float,
    ) -> None:
        self._sizes = layout.bucket_sizes
        self._resident = resident
        self._device = torch.device(device.type, torch.cuda.current_device())
        self._timeout_s = timeout_s
        self._address, self._port = own_address(), free_port()
        self._world_size = 1 + num_receivers
        self._thread = CallThread(self._device)
        self._group: NcclGroup | None = None
        self._memory: list[Tensor] = []
        self._sending: dict[int, Future[Any]] = {}

    def settings(self) -> dict[str, Any]:
        return {"master_address": self._address, "master_port": self._port, "world_size": self._world_size}

    def join(self) -> None:
        def join() -> NcclGroup:
            return NcclGroup(self._address, self._port, world_size=self._world_size, device=self._device)

        self._group = result_within(self._thread.submit(join), self._timeout_s, "joining the rollout workers")

    def begin(self, version: int) -> None:
        if self._resident is None:
            self._memory = list(torch.empty(2, max(self._sizes), dtype=torch.uint8, device=self._device))
        self._sending = {}

    def bucket(self, index: int) -> Tensor:
        if index >= len(self._memory):
            self._wait(index - len(self._memory))
        return self._at(index)

    def _at(self, index: int) -> Tensor:
        if self._resident is not None:
            return self._resident.buckets[index]
        return self._memory[index % len(self._memory)][: self._sizes[index]]

    def deliver(self, index: int) -> None:
        filled = torch.cuda.current_stream(self._device).record_event()
        bucket, group = self._at(index), self._group
        assert group is not None, "joined"
        self._sending[index] = self._thread.submit(lambda: group.broadcast(bucket, after=filled))

    def finish(self) -> dict[str, Any]:
        self._wait(len(self._sizes) - 1)
        return {}

    def _wait(self, index: int) -> None:
        """Wait until the memory of a bucket has been read by all receivers."""
        give_up_at = time.monotonic() + self._timeout_s
        sent = result_within(self._sending[index], self._timeout_s, SENDING)
        while not sent.query():  # waiting for the event itself would have no deadline
            if time.monotonic() >= give_up_at:
                raise WeightSyncError(f"{SENDING} did not end within weights.timeout_s={self._timeout_s:g}")
            time.sleep(POLL_S)

    def release(self) -> None:
        self._memory = []

    def close(self) -> None:
        self._thread.stop()
        if self._group is not None:
            self._group.abort()
        self._group = None
        self.release()


class IpcEnd(SendingEnd):
    """Memory on the GPU that learner and engines share: a copy of each version, or else the parameters themselves.

    Engines open those once, and read what the sender reads. They must not change before the last engine has committed.
    """

    def __init__(self, layout: WeightLayout, resident: ResidentWeights | None, *, device: torch.device) -> None:
        self._sizes = layout.bucket_sizes
        self._device = device
        self.is_rendezvous = resident is not None
        self._buckets = list(resident.buckets) if resident is not None else []

    def settings(self) -> dict[str, Any]:
        return self._handles()  # none, where every version has its own

    def _handles(self) -> dict[str, Any]:
        return {"handles": [export_handle(bucket) for bucket in self._buckets]}

    def begin(self, version: int) -> None:
        if not self.is_rendezvous:
            self._buckets = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in self._sizes]

    def bucket(self, index: int) -> Tensor:
        return self._buckets[index]

    def finish(self) -> dict[str, Any]:
        if self.is_rendezvous:
            return {}
        torch.cuda.synchronize(self._device)
        return self._handles()

    def release(self) -> None:
        if not self.is_rendezvous:
            self.close()

    def close(self) -> None:
        self._buckets = []
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]


def open_end(
    transport: Transport,
    layout: WeightLayout,
    *,
    resident: ResidentWeights | None,
    device: torch.device,
    num_receivers: int,
    timeout_s: float,
) -> SendingEnd:
    """The sending end for this number of receiving processes. `resident`: parameters that are sent from where they lie.

    Raises:
        WeightSyncError: no room for it.
    """
    match transport:
        case "shared_memory":
            return SharedMemoryEnd(layout, timeout_s=timeout_s)
        case "nccl":
            return NcclEnd(layout, resident, device=device, num_receivers=num_receivers, timeout_s=timeout_s)
        case "ipc":
            return IpcEnd(layout, resident, device=device)
