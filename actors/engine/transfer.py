"""The receiving ends of the weights inside vLLM's worker: three of vLLM's `WeightTransferEngine`s, one per transport.

All receive the buckets of `actors.weights.layout`, compute a digest of each where it arrives, and write the tensors
into the model's own parameters. Where the memory allows it the buckets arrive beside the weights in use (staged), so
that generation goes on until they are copied in; otherwise they are written as they come, and the engine has to stand
still meanwhile. vLLM's layerwise reloading is not used: it takes the model apart and builds it up again, which only
quantised layers need.
"""

from __future__ import annotations

import mmap
from abc import abstractmethod
from collections.abc import Iterable, Iterator
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
from actors.engine.parameters import ParameterViews
from actors.engine.vllm_versions import WithoutSendingHalf, known_fields
from actors.errors import WeightSyncError
from actors.weights.digest import bucket_digest
from actors.weights.layout import WeightLayout

SPARE_BYTES = 1 << 30
"""Device memory left free beside staged buckets."""


@dataclass
class BucketUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What the sender delivered. Mutable because vLLM's base class is."""

    delivery: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Memory of a bucket. Where every version comes to the same memory, it is made once."""

    content: Tensor
    """uint8 [num_bytes]."""
    tensors: list[Tensor]


class BucketReceiver(WithoutSendingHalf, WeightTransferEngine[Any, Any]):  # type: ignore[misc]
    """The part of a receiving end that does not depend on the transport."""

    update_info_cls = BucketUpdate
    _layout: WeightLayout
    _views: ParameterViews

    def connect(self, layout: WeightLayout, settings: dict[str, Any]) -> None:
        """Prepare for versions of this layout.

        Raises:
            WeightSyncError: the engine's model has other parameters.
        """
        self._layout = layout
        self._views = ParameterViews(self.model, layout)
        self._is_proven = False
        self.shutdown()  # of an earlier set of receivers
        self.init_transfer_engine(self.parse_init_info(known_fields(self.init_info_cls, settings)))

    @property
    def is_staged(self) -> bool:
        """Whether a version arrives beside the weights in use, so that the engine generates meanwhile."""
        return True

    def start_weight_update(self) -> None:
        self._digests: list[Tensor] = []
        self._arrived: list[list[Tensor]] = []

    def receive_weights(self, update_info: BucketUpdate) -> None:
        """Receive one version. What is not staged is written into the parameters as it comes."""
        is_staged = self.is_staged  # whoever leaves meanwhile must not make this write into weights in use
        for index, bucket in enumerate(self._arriving(update_info.delivery)):
            self._digests.append(bucket_digest(bucket.content))
            if is_staged:
                self._arrived.append(bucket.tensors)
            else:
                self._views.load(index, bucket.tensors)

    @abstractmethod
    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        """The buckets of a version in their order. If not staged, one may overwrite another."""

    def _bucket(self, index: int, content: Tensor) -> Bucket:
        return Bucket(content, self._views.tensors(index, content))

    def _buckets(self, contents: Iterable[Tensor]) -> list[Bucket]:
        return [self._bucket(index, content) for index, content in enumerate(contents)]

    def digests(self) -> list[int]:
        """Of the buckets as they arrived. Waits for the device."""
        return [int(each) for each in torch.stack(self._digests).cpu()]

    def finish_weight_update(self) -> None:
        """Write a staged version into the parameters.

        Raises:
            WeightSyncError: the parameters do not hold what arrived. Compared tensor by tensor for the first version;
                from then on the same copies are made.
        """
        for index, tensors in enumerate(self._arrived):
            self._views.load(index, tensors)
        if not self._is_proven:
            for index, tensors in enumerate(self._arrived):
                self._views.prove(index, tensors)
            self._is_proven = bool(self._arrived)
        self._arrived = []


@dataclass
class FilesInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """The files that versions come in by turns. Mutable because vLLM's base class is."""

    files: list[str] = field(default_factory=list)


class SharedMemoryReceiver(BucketReceiver):
    """Maps the file that the learner wrote: nothing is copied before the parameters are written."""

    init_info_cls = FilesInfo

    def init_transfer_engine(self, init_info: FilesInfo) -> None:
        self._files = init_info.files
        self._mapped: dict[str, list[Bucket]] = {}
        """By file. A mapping is kept, because touching its pages for the first time costs as much as copying them."""

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        path = delivery["file"]
        buckets = self._mapped.get(path)
        if buckets is None:
            file = map_file(Path(path), self._layout.num_bytes)
            buckets = self._buckets(torch.split(file, list(self._layout.bucket_sizes)))
            if path in self._files and self.device.type == "cpu":
                self._mapped[path] = buckets
        for index, bucket in enumerate(buckets):
            is_here = self.device.type == "cpu"
            yield bucket if is_here else self._bucket(index, bucket.content.to(self.device, non_blocking=True))

    def shutdown(self) -> None:
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
    """Takes part in the learner's broadcasts, in the process group that vLLM's own engine forms."""

    model_update_group: Any
    _staging: list[Bucket] | None = None
    """Device memory for a whole version; None where there is no room, and buckets are written as they come."""

    def init_transfer_engine(self, init_info: Any) -> None:
        NCCLWeightTransferEngine.init_transfer_engine(self, init_info)
        free, _ = torch.cuda.mem_get_info(self.device)
        if self._views.is_whole and free >= self._layout.num_bytes + SPARE_BYTES:
            self._staging = self._buckets(self._empty(size) for size in self._layout.bucket_sizes)

    def _empty(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    @property
    def is_staged(self) -> bool:
        return self._staging is not None

    def receive_weights(self, update_info: BucketUpdate) -> None:
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            super().receive_weights(update_info)
        stream.synchronize()

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Bucket]:
        group, staging = self.model_update_group, self._staging
        passing = self._empty(0 if staging else max(self._layout.bucket_sizes))
        for index, size in enumerate(self._layout.bucket_sizes):
            bucket = staging[index] if staging else self._bucket(index, passing[:size])
            group.broadcast(bucket.content, src=0, stream=torch.cuda.current_stream())
            yield bucket

    def shutdown(self) -> None:
        """Leave the group, also in the middle of a broadcast that never ends."""
        self._staging = None
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
