"""The sending end of weight sync: fills buckets with the learner's parameters and hands them to a transport.

Names are those that the library gives the parameters in memory. vLLM knows them beside those of the published files.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from actors.weights.buckets import parts, slot_tensor
from actors.weights.digest import RunningDigest, bucket_digest
from actors.weights.layout import SentWeights, TensorSpec, WeightLayout, WeightLink, WeightOffer, lay_out
from configs.learner import Transport
from learner.sync.resident import ResidentWeights, find_resident
from learner.sync.transports import SendingEnd, open_end

FOLLOWED_BYTES = 16 << 20
"""Maximum size of a bucket in shared memory: an engine on a GPU takes each of them once it is whole."""


class WeightSender:
    """Sends versions of one model to a set of receivers.

    `shapes` are those of the parameters, by their name in memory and in the order in which they are sent.
    """

    def __init__(
        self, shapes: Mapping[str, Sequence[int]], *, dtype: torch.dtype, device: torch.device, bucket_bytes: int
    ) -> None:
        self._device = device
        self._bucket_bytes = bucket_bytes
        kind = str(dtype).removeprefix("torch.")
        self._tensors = [
            TensorSpec(name=name, dtype=kind, shape=tuple(map(int, shape))) for name, shape in shapes.items()
        ]
        self._end: SendingEnd | None = None
        self._resident: ResidentWeights | None = None
        self._ahead: tuple[int, list[Tensor]] | None = None
        """Version and digests of the parameters that are read in place."""

    def open(
        self, transport: Transport, *, num_receivers: int, timeout_s: float, parameters: Sequence[Tensor] | None = None
    ) -> WeightLink:
        """Prepare for this number of receiving processes; an earlier set of them is left.

        Args:
            parameters: the model's, in order, if they are whole and stay where they are.

        Raises:
            WeightSyncError: no room for it.
        """
        self.close()
        most = min(self._bucket_bytes, FOLLOWED_BYTES) if transport == "shared_memory" else self._bucket_bytes
        self._resident = None
        if transport != "shared_memory" and parameters:
            self._resident = find_resident(self._tensors, parameters, bucket_bytes=most)
        self._layout = self._resident.layout if self._resident else lay_out(self._tensors, bucket_bytes=most)
        end = self._end = open_end(
            transport,
            self._layout,
            resident=self._resident,
            device=self._device,
            num_receivers=num_receivers,
            timeout_s=timeout_s,
        )
        self.forget_digests()
        return WeightLink(
            transport=transport,
            is_rendezvous=end.is_rendezvous,
            layout=self._layout,
            settings=end.settings(),
            timeout_s=timeout_s,
            keeps_last=end.keeps_last,
            is_followed=end.is_followed,
        )

    @property
    def is_in_place(self) -> bool:
        """Whether the parameters are sent from where they lie: `send` then takes none."""
        return self._resident is not None

    def join(self) -> None:
        """Meet the receivers, which connect at the same time."""
        self._opened.join()

    def send(self, parameters: Iterable[tuple[str, Tensor]], version: int) -> SentWeights:
        """Send one version; returns what receivers need, and the digests to compare theirs with.

        Raises:
            WeightSyncError: the receivers did not take it in time.
        """
        started, end = time.monotonic(), self._opened
        end.begin(version)
        if self._resident is not None:
            self._resident.check()
            for bucket in range(len(self._resident.buckets)):
                end.deliver(bucket)
            self.digest_ahead(version)  # while they travel
            assert self._ahead is not None, "of this version"
            digests = self._ahead[1]
        else:
            digests = _fill(parameters, self._layout, end)
        offer = WeightOffer(version=version, num_buckets=len(self._layout.bucket_sizes), delivery=end.finish())
        found = torch.stack(digests).cpu().tolist()
        return SentWeights(offer=offer, digests=tuple(found), seconds=time.monotonic() - started)

    def digest_ahead(self, version: int) -> None:
        """Start to compute the digests of parameters that are sent in place, before they are asked for."""
        if self._resident is not None and (self._ahead is None or self._ahead[0] != version):
            self._ahead = version, [bucket_digest(bucket) for bucket in self._resident.buckets]

    def forget_digests(self) -> None:
        """The parameters were written, under whatever version."""
        self._ahead = None

    def release(self) -> None:
        """Free what the receivers have fetched."""
        self._opened.release()

    def read(self, bucket: int) -> Tensor:
        """A bucket of the version sent last, uint8 [num_bytes], for receivers that do not share its memory."""
        return self._opened.bucket(bucket)

    def close(self) -> None:
        """Leave the receivers, whatever is under way."""
        if self._end is not None:
            self._end.close()
            self._end = None

    @property
    def _opened(self) -> SendingEnd:
        assert self._end is not None, "opened"
        return self._end


def _fill(parameters: Iterable[tuple[str, Tensor]], layout: WeightLayout, end: SendingEnd) -> list[Tensor]:
    """Fill and deliver all buckets; returns their digests. What the iterable gives is read at once."""
    digests: list[Tensor] = []
    index, bucket = 0, end.bucket(0)
    running = RunningDigest(bucket)

    def deliver() -> None:
        digests.append(running.finish())
        end.deliver(index)

    for slot, (name, parameter) in zip(layout.slots, parameters, strict=True):
        assert name == slot.tensor.name, "parameters come in the order of the layout"
        if slot.bucket != index:
            deliver()
            index, bucket = slot.bucket, end.bucket(slot.bucket)
            running = RunningDigest(bucket)
        filled = slot.offset
        for target, source in parts(slot_tensor(bucket, slot), parameter.detach()):
            target.copy_(source, non_blocking=True)
            filled += target.nbytes
            running.extend(filled)
            end.advance(index, filled)
    deliver()
    return digests
