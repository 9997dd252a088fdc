"""How the tensors of a model lie in buckets, and what both ends of a transfer tell each other.

Learner and engines work the layout out once, when they are connected. A version is then a few buckets of raw bytes with
one digest each, whatever carries them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

TENSOR_ALIGNMENT = 256
"""A tensor starts at a multiple of this many bytes, so that views of any dtype and wide copies are possible."""
BUCKET_ALIGNMENT = 4096
"""The size of a bucket is a multiple of this many bytes: whole pages, and whole rows of `actors.weights.digest`."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per element of the dtypes that a policy may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor of the model."""

    name: str
    """As in the Hugging Face checkpoint."""
    dtype: str
    """PyTorch's name: float32, bfloat16."""
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A tensor's place in a bucket."""

    tensor: TensorSpec
    bucket: int
    offset: int
    """Byte at which it starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLayout:
    """All tensors of a model in a fixed order, bucket by bucket, and the sizes of the buckets in bytes."""

    slots: tuple[Slot, ...]
    bucket_sizes: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return sum(self.bucket_sizes)

    def slots_of(self, bucket: int) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.bucket == bucket)

    def to_plain(self) -> dict[str, Any]:
        """Plain types, for the way into the engine's process."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> WeightLayout:
        slots = tuple(
            Slot(
                tensor=TensorSpec(
                    name=slot["tensor"]["name"], dtype=slot["tensor"]["dtype"], shape=tuple(slot["tensor"]["shape"])
                ),
                bucket=slot["bucket"],
                offset=slot["offset"],
            )
            for slot in plain["slots"]
        )
        return cls(slots=slots, bucket_sizes=tuple(plain["bucket_sizes"]))


def lay_out(tensors: Iterable[TensorSpec], *, bucket_bytes: int) -> WeightLayout:
    """Place tensors one after the other in buckets of at most `bucket_bytes`; a larger tensor has one of its own."""
    slots: list[Slot] = []
    sizes: list[int] = []
    end = 0
    for tensor in tensors:
        start = _round_up(end, TENSOR_ALIGNMENT)
        if slots and start + tensor.num_bytes > bucket_bytes:
            sizes.append(_round_up(end, BUCKET_ALIGNMENT))
            start = 0
        slots.append(Slot(tensor=tensor, bucket=len(sizes), offset=start))
        end = start + tensor.num_bytes
    assert slots, "a model has tensors"
    return WeightLayout(slots=tuple(slots), bucket_sizes=(*sizes, _round_up(end, BUCKET_ALIGNMENT)))


def _round_up(size: int, unit: int) -> int:
    return -(-size // unit) * unit


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightLink:
    """What a rollout worker needs in order to take weights from the learner: made once per set of workers."""

    transport: str
    """Name of the transport (`configs.learner.Transport`)."""
    is_rendezvous: bool
    """Whether sending and receiving meet, as in a collective; otherwise what was sent waits to be fetched."""
    layout: WeightLayout
    settings: dict[str, Any]
    """For the receiving end of the transport alone; plain types."""
    timeout_s: float
    """After which a receiver gives up what it waits for."""
    keeps_last: bool = False
    """Whether the version sent last can be fetched until the next one is sent, by receivers that were not there."""
    is_followed: bool = False
    """Whether receivers that reach the learner's memory can take a version while it is being sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightOffer:
    """One version that can be taken."""

    version: int
    """The learner's optimizer step."""
    num_buckets: int
    delivery: dict[str, Any]
    """For the receiving end of the transport alone; plain types. Empty before the version was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWeights:
    """What the learner has sent, or laid out to be fetched."""

    offer: WeightOffer
    digests: tuple[int, ...]
    """Of each bucket, as it left the learner."""
    seconds: float
    """In the learner."""
