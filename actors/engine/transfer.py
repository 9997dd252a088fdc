"""The receiving ends of the weights inside vLLM's worker: three of vLLM's `WeightTransferEngine`s, one per transport.

All receive the buckets of `actors.weights.layout`, compute a digest of each on the engine's device, and write the
tensors in the layout of the model's parameters. Where the memory allows it into a second set of them, so that
generation goes on until the model changes over to it. Otherwise into the parameters themselves: at the commit where the
learner keeps in reach what it delivered, and as it comes where not, with the engine standing still meanwhile. vLLM's
layerwise reloading is not used: it takes the model apart and builds it up again, which only quantised layers need.
"""

from __future__ import annotations

import itertools
import mmap
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from actors.engine.cuda_ipc import open_handle
from actors.engine.parameters import ParameterViews, Places, fixed_parameters
from actors.engine.vllm_versions import WithoutSendingHalf, known_fields
from actors.errors import WeightSyncError
from actors.weights.digest import RunningDigest, bucket_digest
from actors.weights.layout import WeightLayout
from actors.weights.progress import PAGE_BYTES, Follower, Progress

FREE_BYTES = 1 << 30
"""Device memory left free beside a second set of parameters."""


@dataclass
class BucketUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What the sender delivered. Mutable because vLLM's base class is."""

    delivery: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Memory of a bucket. Where every version comes to the same memory, it is made once."""

    content: Tensor
    """uint8 [num_bytes]."""
    places: Places


class BucketReceiver(WithoutSendingHalf, WeightTransferEngine[Any, Any]):  # type: ignore[misc]
    """The part of a receiving end that does not depend on the transport."""

    update_info_cls = BucketUpdate
    stays_in_reach = False
    """Whether the device reaches what the learner delivered until the commit, without memory of its own."""
    passing_buckets = 0
    """Buckets of device memory that versions come through."""
    _layout: WeightLayout
    _views: ParameterViews
    _fixed: set[str] | None = None
    """Names of parameters that cannot move."""

    def connect(self, layout: WeightLayout, settings: dict[str, Any], *, may_move: bool) -> None:
        """Prepare for versions of this layout.

        Args:
            may_move: no captured graph holds the addresses of the parameters.

        Raises:
            WeightSyncError: the engine's model has other parameters.
        """
        if self._fixed is None:
            self._fixed = fixed_parameters(self.model, may_move=may_move)
        self.shutdown()  # of an earlier set of receivers
        self._layout = layout
        self._views = ParameterViews(self.model, layout)
        if self._views.is_whole and self._has_room():
            self._views.make_spare(self._fixed)
        self._is_proven = False
        self.init_transfer_engine(self.parse_init_info(known_fields(self.init_info_cls, settings)))

    def _has_room(self) -> bool:
        """Whether a second set of parameters fits beside the weights in use."""
        if self.device.type == "cpu":
            return True
        torch.cuda.empty_cache()  # what an earlier set has left
        passing = self.passing_buckets * max(self._layout.bucket_sizes)
        return torch.cuda.mem_get_info(self.device)[0] >= self._layout.num_bytes + passing + FREE_BYTES

    @property
    def is_staged(self) -> bool:
        """Whether the weights in use stay whole until the commit, so that the engine generates meanwhile."""
        return self.stays_in_reach or self._views.has_spare

    def start_weight_update(self) -> None:
        self._digests: list[int] = []
        self._in_reach: list[tuple[Bucket, Tensor]] = []

    def receive_weights(self, update_info: BucketUpdate) -> None:
        """Receive one version. What stays in reach is not written yet, and its digests may still be under way."""
        arriving = self._arriving(update_info.delivery)
        if self._views.has_spare or not self.stays_in_reach:
            self._digests = self._write(arriving, self._load)
        else:
            self._in_reach = [(bucket, bucket_digest(bucket.content)) for bucket in arriving]

    def _write(self, buckets: Iterable[Bucket], load: Callable[[int, Bucket], Tensor]) -> list[int]:
        """Let `load` write the tensors where the next version belongs and return the digest of each bucket. Waits for
        the device.

        Raises:
            WeightSyncError: other values are there than came. Compared for the first version; from then on the same
                copies are made.
        """
        digests = []
        for index, bucket in enumerate(buckets):
            digests.append(load(index, bucket))
            if not self._is_proven:
                self._views.prove(index, bucket.places.tensors)
        self._is_proven = True
        return [int(digest) for digest in torch.stack(digests).cpu()]

    def _load(self, index: int, bucket: Bucket) -> Tensor:
        digest = bucket_digest(bucket.content)
        self._views.load(index, bucket.places)
        return digest

    @abstractmethod
    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        """The buckets of a version in their order. If they do not stay in reach, one may overwrite another."""

    def _bucket(self, index: int, content: Tensor) -> Bucket:
        return Bucket(content, self._views.places(index, content))

    def _buckets(self, contents: Iterable[Tensor]) -> list[Bucket]:
        return [self._bucket(index, content) for index, content in enumerate(contents)]

    def digests(self) -> list[int]:
        """Of the buckets as they arrived. What stayed in reach is written into the parameters now."""
        if self._in_reach:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the digests were asked for by another thread
            buckets, digests = zip(*self._in_reach, strict=True)

            def load(index: int, bucket: Bucket) -> Tensor:
                self._views.load(index, bucket.places)
                digest: Tensor = digests[index]
                return digest

            self._digests, self._in_reach = self._write(buckets, load), []
        return self._digests

    def finish_weight_update(self) -> None:
        """Let the model use what arrived."""
        self._views.take_over()


@dataclass
class FilesInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The files that versions come in by turns. Mutable because vLLM's base class is."""

    files: list[str] = field(default_factory=list)
    timeout_s: float = 0.0
    """For a version that is read while the learner writes it."""


class SharedMemoryReceiver(BucketReceiver):
    """Maps the file that the learner writes: nothing is copied before the parameters are written.

    A version is read while it is written, or from a file that holds all of it.
    """

    init_info_cls = FilesInfo
    _leave: threading.Event | None = None
    """Set when the receivers are left: nobody waits for the learner any more."""

    @property
    def stays_in_reach(self) -> bool:  # type: ignore[override]
        return bool(self.device.type == "cpu")

    def init_transfer_engine(self, init_info: FilesInfo) -> None:
        self._files = init_info.files
        self._timeout_s = init_info.timeout_s
        self._starts = [0, *itertools.accumulate(self._layout.bucket_sizes)]
        self._leave = threading.Event()
        self._mapped: dict[str, tuple[list[Bucket], Progress]] = {}
        """By file. A mapping is kept, because touching its pages for the first time costs as much as copying them."""

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        buckets, self._wait = self._open(delivery)
        for index, bucket in enumerate(buckets):
            if not self._is_read_in_parts:
                self._wait(self._starts[index + 1])
            is_here = self.device.type == "cpu"
            yield bucket if is_here else self._bucket(index, bucket.content.to(self.device, non_blocking=True))

    def _open(self, delivery: dict[str, Any]) -> tuple[list[Bucket], Callable[[int], None]]:
        """The buckets of a version, and what waits until so many bytes of the file are there."""
        if "file" in delivery:
            path = delivery["file"]
            if path in self._files:
                return self._map(path)[0], lambda num_bytes: None
            return self._split(map_file(Path(path), self._layout.num_bytes)), lambda num_bytes: None
        assert self._leave is not None, "connected"
        progress = {path: self._map(path)[1] for path in self._files}
        follower = Follower(progress, delivery["version"], timeout_s=self._timeout_s, leave=self._leave)
        path = follower.find()
        return self._map(path)[0], lambda num_bytes: follower.wait(path, num_bytes)

    def _map(self, path: str) -> tuple[list[Bucket], Progress]:
        """A file of the learner's."""
        if path not in self._mapped:
            size = self._layout.num_bytes
            file = map_file(Path(path), size + PAGE_BYTES)
            self._mapped[path] = self._split(file[:size]), Progress(file[size:])
        return self._mapped[path]

    def _split(self, content: Tensor) -> list[Bucket]:
        return self._buckets(torch.split(content, list(self._layout.bucket_sizes)))

    @property
    def _is_read_in_parts(self) -> bool:
        return self.device.type == "cpu" and self._views.has_spare

    @torch.no_grad()
    def _load(self, index: int, bucket: Bucket) -> Tensor:
        if not self._is_read_in_parts:
            return super()._load(index, bucket)
        start, digest = self._starts[index], RunningDigest(bucket.content)
        for end, target, source in self._views.parts(index, bucket.places.tensors):
            self._wait(start + end)
            target.copy_(source)
            digest.extend(end)  # after the copy: a learner that is ahead by two versions is then found out
        self._wait(self._starts[index + 1])
        return digest.finish()

    def shutdown(self) -> None:
        if self._leave is not None:
            self._leave.set()
        self._mapped = {}


def map_file(path: Path, num_bytes: int) -> Tensor:
    """The bytes of a file in shared memory, uint8 [num_bytes], mapped and not copied.

    Raises:
        WeightSyncError: it is not there, or not as long.
    """
    try:
        with path.open("rb") as file:
            # Copied on write, which never happens: what the learner writes later is seen here.
            mapped = mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise WeightSyncError(f"weights in {path} cannot be read: {error}") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)


class NcclReceiver(BucketReceiver, NCCLWeightTransferEngine):  # type: ignore[misc]
    """Takes part in the learner's broadcasts, in the process group that vLLM's own engine forms.

    While one bucket is read, the next one arrives.
    """

    passing_buckets = 2
    model_update_group: Any

    def init_transfer_engine(self, init_info: Any) -> None:
        NCCLWeightTransferEngine.init_transfer_engine(self, init_info)
        sizes = self._layout.bucket_sizes
        memory = torch.empty(self.passing_buckets, max(sizes), dtype=torch.uint8, device=self.device)
        self._passing = self._buckets(memory[index % len(memory)][:size] for index, size in enumerate(sizes))
        self._network = torch.cuda.Stream(self.device, priority=-1)  # type: ignore[no-untyped-call]
        self._reading = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def receive_weights(self, update_info: BucketUpdate) -> None:
        with torch.cuda.stream(self._reading):
            super().receive_weights(update_info)

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        group, network, passing = self.model_update_group, self._network, self._passing
        read: list[torch.cuda.Event] = []
        for index, bucket in enumerate(passing):
            if index >= self.passing_buckets:
                network.wait_event(read[index - self.passing_buckets])
            group.broadcast(bucket.content, src=0, stream=network)
            self._reading.wait_stream(network)
            yield bucket
            read.append(self._reading.record_event())

    def shutdown(self) -> None:
        """Leave the group, also in the middle of a broadcast that never ends."""
        self._passing = []
        group, self.model_update_group = self.model_update_group, None
        if group is not None:
            group.destroy()


@dataclass
class HandlesInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The learner's own parameters, if every version is read there. Mutable because vLLM's base class is."""

    handles: list[list[Any]] = field(default_factory=list)


class IpcReceiver(BucketReceiver):
    """Opens the learner's memory on the GPU that both share: once, or else the buckets of each version."""

    init_info_cls = HandlesInfo
    stays_in_reach = True

    def _has_room(self) -> bool:
        return False  # the learner needs it more; where the engine sleeps, its parameters must stay in their place

    def init_transfer_engine(self, init_info: HandlesInfo) -> None:
        self._resident = list(self._opened(init_info.handles)) if init_info.handles else []

    def _opened(self, handles: list[list[Any]]) -> Iterator[Bucket]:
        for index, (handle, size) in enumerate(zip(handles, self._layout.bucket_sizes, strict=True)):
            yield self._bucket(index, open_handle(handle, size, self.device))

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        return iter(self._resident) if self._resident else self._opened(delivery["handles"])

    def shutdown(self) -> None:
        self._resident = []


RECEIVERS: dict[str, type[BucketReceiver]] = {
    "shared_memory": SharedMemoryReceiver,
    "nccl": NcclReceiver,
    "ipc": IpcReceiver,
}


def backend(transport: str) -> str:
    """vLLM's name of the receiving end of a transport; registers it in this process."""
    name = f"visionthink_{transport}"
    if name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(name, RECEIVERS[transport])
    return name
