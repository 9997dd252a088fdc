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
from collections.abc import Iterator
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
            self._digests.append(bucket_digest(bucket))
            tensors = self._views.tensors(index, bucket)
            if is_staged:
                self._arrived.append(tensors)
            else:
                self._views.load(index, tensors)

    @abstractmethod
    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Tensor]:
        """The buckets of a version in their order, uint8 [num_bytes] each. If not staged, one may overwrite another."""

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
class NoInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Of a transport that has nothing to connect. Mutable because vLLM's base class is."""


class MappingReceiver(BucketReceiver):
    """Maps the learner's own memory: nothing is copied before the parameters are written, and nothing is held open."""

    init_info_cls = NoInfo

    def init_transfer_engine(self, init_info: NoInfo) -> None: ...

    def shutdown(self) -> None: ...


class SharedMemoryReceiver(MappingReceiver):
    """Maps the file that the learner wrote."""

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Tensor]:
        file = map_file(Path(delivery["file"]), self._layout.num_bytes)
        for bucket in torch.split(file, list(self._layout.bucket_sizes)):
            yield bucket.to(self.device, non_blocking=True)


def map_file(path: Path, num_bytes: int) -> Tensor:
    """The bytes of a file in shared memory, uint8 [num_bytes], mapped and not copied.

    Raises:
        WeightSyncError: it is not there, or not as long.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise WeightSyncError(f"weights in {path} cannot be read: {error}") from error
    return torch.frombuffer(mapped, dtype=torch.uint8)


class NcclReceiver(BucketReceiver, NCCLWeightTransferEngine):  # type: ignore[misc]
    """Takes part in the learner's broadcasts, in the process group that vLLM's own engine forms."""

    model_update_group: Any
    _staging: list[Tensor] | None = None
    """Device memory for a whole version; None where there is no room, and buckets are written as they come."""

    def init_transfer_engine(self, init_info: Any) -> None:
        NCCLWeightTransferEngine.init_transfer_engine(self, init_info)
        free, _ = torch.cuda.mem_get_info(self.device)
        if self._views.is_whole and free >= self._layout.num_bytes + SPARE_BYTES:
            self._staging = [self._empty(size) for size in self._layout.bucket_sizes]

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

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Tensor]:
        group, staging = self.model_update_group, self._staging
        passing = self._empty(0 if staging else max(self._layout.bucket_sizes))
        for index, size in enumerate(self._layout.bucket_sizes):
            bucket = staging[index] if staging else passing[:size]
            group.broadcast(bucket, src=0, stream=torch.cuda.current_stream())
            yield bucket

    def shutdown(self) -> None:
        """Leave the group, also in the middle of a broadcast that never ends."""
        self._staging = None
        group, self.model_update_group = self.model_update_group, None
        if group is not None:
            group.destroy()


class IpcReceiver(MappingReceiver):
    """Opens the learner's buckets on the GPU that both share."""

    def _arriving(self, delivery: dict[str, Any]) -> Iterator[Tensor]:
        for handle, size in zip(delivery["handles"], self._layout.bucket_sizes, strict=True):
            yield open_handle(handle, size, self.device)


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
