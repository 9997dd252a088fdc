"""The sending ends of the weights, one per transport. `actors.engine.transfer` has the receiving ones.

A transport gives out the memory of a bucket, and delivers it once it is filled. On the learner this is rank 0 alone.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from actors.engine.cuda_ipc import export_handle
from actors.engine.nccl_group import NcclGroup, free_port
from actors.errors import WeightSyncError
from actors.weights.layout import WeightLayout
from actors.weights.staging import PREFIX, check_room, staging_root
from configs.schema import Transport
from learner.host import own_address


class SendingEnd(Protocol):
    """One transport, for as long as the set of receivers stays the same."""

    is_rendezvous: bool
    """Whether `deliver` waits for the receivers; otherwise what was delivered waits to be fetched."""

    def settings(self) -> dict[str, Any]:
        """What the receiving ends need in order to connect; plain types."""

    def join(self) -> None:
        """Meet the receivers, which connect at the same time."""

    def begin(self) -> None:
        """Start a version; memory of earlier ones may be used again."""

    def bucket(self, index: int) -> Tensor:
        """Memory of a bucket, uint8 [num_bytes] on the learner's device or the host."""

    def deliver(self, index: int) -> None:
        """Pass on a filled bucket."""

    def finish(self) -> dict[str, Any]:
        """Wait until the version is delivered; returns what receivers need to fetch it."""

    def release(self) -> None:
        """Free what receivers have fetched."""

    def close(self) -> None:
        """Leave the receivers, whatever is under way, and free all memory. Never fails."""


class SharedMemoryEnd:
    """Files that every process of the machine maps. Two take turns, so that the last version stays there to be read."""

    is_rendezvous = False

    def __init__(self, layout: WeightLayout) -> None:
        self._layout = layout
        self._folder = staging_root() / f"{PREFIX}{secrets.token_hex(6)}"
        self._current = 0
        check_room(2 * layout.num_bytes, staging_root())
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self.close)
            try:
                self._folder.mkdir(mode=0o700)
                self._files = [self._create(self._folder / str(number)) for number in range(2)]
            except OSError as error:
                raise WeightSyncError(f"no room for two versions of the weights in {self._folder}: {error}") from error
            on_failure.pop_all()

    def _create(self, path: Path) -> list[Tensor]:
        with path.open("xb+") as file:
            file.truncate(self._layout.num_bytes)
            # Ahead of time: a full file system is an error here, and would be a signal at the first write.
            os.posix_fallocate(file.fileno(), 0, self._layout.num_bytes)
            memory = torch.frombuffer(mmap.mmap(file.fileno(), self._layout.num_bytes), dtype=torch.uint8)
        return list(torch.split(memory, list(self._layout.bucket_sizes)))

    def settings(self) -> dict[str, Any]:
        return {"folder": str(self._folder)}

    def join(self) -> None: ...

    def begin(self) -> None:
        self._current = 1 - self._current

    def bucket(self, index: int) -> Tensor:
        return self._files[self._current][index]

    def deliver(self, index: int) -> None: ...

    def finish(self) -> dict[str, Any]:
        return {"file": str(self._folder / str(self._current))}

    def release(self) -> None: ...

    def close(self) -> None:
        self._files = []
        for number in range(2):
            (self._folder / str(number)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class NcclEnd:
    """Broadcasts, on a thread: whatever they wait for, this process gives up in time."""

    is_rendezvous = True

    def __init__(self, layout: WeightLayout, *, device: torch.device, num_receivers: int, timeout_s: float) -> None:
        self._sizes = layout.bucket_sizes
        self._device = torch.device(device.type, torch.cuda.current_device())
        self._timeout_s = timeout_s
        self._address, self._port = own_address(), free_port()
        self._world_size = 1 + num_receivers
        self._group: NcclGroup | None = None
        self._memory: list[Tensor] = []
        self._sending: dict[int, _Deadline] = {}

    def settings(self) -> dict[str, Any]:
        return {"master_address": self._address, "master_port": self._port, "world_size": self._world_size}

    def join(self) -> None:
        def join() -> NcclGroup:
            return NcclGroup(self._address, self._port, world_size=self._world_size, device=self._device)

        self._group = _Deadline(join, self._device).wait(self._timeout_s, "joining the rollout workers")

    def begin(self) -> None:
        largest = max(self._sizes)
        self._memory = [torch.empty(largest, dtype=torch.uint8, device=self._device) for _ in range(2)]
        self._sending = {}

    def bucket(self, index: int) -> Tensor:
        self._wait(index - 2)
        return self._memory[index % 2][: self._sizes[index]]

    def deliver(self, index: int) -> None:
        self._wait(index - 1)  # broadcasts keep their order
        filled = torch.cuda.current_stream(self._device).record_event()
        bucket, group = self._memory[index % 2][: self._sizes[index]], self._group
        assert group is not None, "joined"
        self._sending[index] = _Deadline(lambda: group.broadcast(bucket, after=filled), self._device)

    def finish(self) -> dict[str, Any]:
        self._wait(len(self._sizes) - 1)
        return {}

    def _wait(self, index: int) -> None:
        sending = self._sending.get(index)
        if sending is not None:
            sending.wait(self._timeout_s, "broadcasting weights")

    def release(self) -> None:
        self._memory = []

    def close(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group = None
        self.release()


class IpcEnd:
    """Buckets on the GPU that learner and engines share, opened by the engines."""

    is_rendezvous = False

    def __init__(self, layout: WeightLayout, *, device: torch.device) -> None:
        self._sizes = layout.bucket_sizes
        self._device = device
        self._buckets: list[Tensor] = []

    def settings(self) -> dict[str, Any]:
        return {}

    def join(self) -> None: ...

    def begin(self) -> None:
        self._buckets = [torch.empty(size, dtype=torch.uint8, device=self._device) for size in self._sizes]

    def bucket(self, index: int) -> Tensor:
        return self._buckets[index]

    def deliver(self, index: int) -> None: ...

    def finish(self) -> dict[str, Any]:
        torch.cuda.synchronize(self._device)
        return {"handles": [export_handle(bucket) for bucket in self._buckets]}

    def release(self) -> None:
        self._buckets = []
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self.release()


def open_end(
    transport: Transport, layout: WeightLayout, *, device: torch.device, num_receivers: int, timeout_s: float
) -> SendingEnd:
    """The sending end for this number of receiving processes.

    Raises:
        WeightSyncError: no room for it.
    """
    match transport:
        case "shared_memory":
            return SharedMemoryEnd(layout)
        case "nccl":
            return NcclEnd(layout, device=device, num_receivers=num_receivers, timeout_s=timeout_s)
        case "ipc":
            return IpcEnd(layout, device=device)


class _Deadline:
    """One call on a daemon thread."""

    def __init__(self, call: Callable[[], Any], device: torch.device) -> None:
        self._call = call
        self._device = device
        self._result: Any = None
        self._failure: RuntimeError | OSError | None = RuntimeError("it ended without a result")
        self._thread = threading.Thread(target=self._run, name="send-weights", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            self._result = self._call()
            self._failure = None
        except (RuntimeError, OSError) as error:  # NCCL's and CUDA's are RuntimeErrors
            self._failure = error

    def wait(self, seconds: float, what: str) -> Any:
        """The call's result.

        Raises:
            WeightSyncError: it failed, or is still under way after `seconds`.
        """
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise WeightSyncError(f"{what} did not end within weights.timeout_s={seconds:g}")
        if self._failure is not None:
            raise WeightSyncError(f"{what}: {self._failure}") from self._failure
        return self._result
