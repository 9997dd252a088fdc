"""The receiving end of weight sync: a manifest with a checksum per tensor, and buckets of raw bytes.

A sync is prepare, transfer under a deadline, verify, commit (rule E of the reliability rules): whoever receives is
wholly on the old version or wholly on the new one, and one that is neither says STALE and plays no group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from blake3 import blake3

from actors.errors import WeightSyncError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One tensor inside a bucket."""

    name: str
    """As in the Hugging Face checkpoint."""
    dtype: str
    """PyTorch's name: float32, bfloat16."""
    shape: tuple[int, ...]
    bucket: int
    offset: int
    """Byte at which it starts in its bucket."""
    num_bytes: int
    digest: str
    """blake3 of the bytes, in hex."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightManifest:
    """All tensors of one version. `version` is the learner's optimizer step."""

    version: int
    tensors: tuple[TensorSpec, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def digest(self) -> str:
        """One checksum of the whole version: names, shapes and contents."""
        total = blake3()
        for tensor in self.tensors:
            total.update(f"{tensor.name} {tensor.dtype} {tensor.shape} {tensor.digest}\n".encode())
        return total.hexdigest()


def bytes_digest(content: bytes | memoryview) -> str:
    """blake3 in hex of raw bytes."""
    return blake3(content).hexdigest()


def verified_tensors(
    manifest: WeightManifest, buckets: Sequence[np.ndarray]
) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Each tensor's bytes (uint8 [num_bytes], a view into its bucket), its checksum compared.

    Raises:
        WeightSyncError: a bucket is missing or short, or bytes differ from what the learner sent.
    """
    for tensor in manifest.tensors:
        if tensor.bucket >= len(buckets):
            raise WeightSyncError(
                f"version {manifest.version}: {tensor.name} is in bucket {tensor.bucket}, got {len(buckets)} buckets"
            )
        content = buckets[tensor.bucket][tensor.offset : tensor.offset + tensor.num_bytes]
        if content.nbytes != tensor.num_bytes:
            raise WeightSyncError(
                f"version {manifest.version}: {tensor.name} has {content.nbytes} bytes, expected {tensor.num_bytes}"
            )
        found = bytes_digest(content.data)
        if found != tensor.digest:
            raise WeightSyncError(
                f"version {manifest.version}: checksum of {tensor.name} is {found[:12]}, expected {tensor.digest[:12]}"
            )
        yield tensor, content


def verify(manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
    """Raise WeightSyncError unless the buckets hold the manifest's bytes."""
    for _ in verified_tensors(manifest, buckets):
        pass


class SyncState(StrEnum):
    STALE = "stale"
    """Has no verified version: generates nothing until a sync succeeds."""
    CURRENT = "current"
    """Has the complete, verified `version`."""


class WeightTarget(Protocol):
    """The part of an engine that weight sync needs."""

    async def stage_weights(self, manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
        """Stage verified weights next to the ones in use, without affecting generation."""

    async def commit_weights(self, manifest: WeightManifest) -> None:
        """Swap in the staged weights between turns and compare the engine's weights with the manifest.

        Raises WeightSyncError if anything differs; no turn is sampled from then on until another commit succeeds.
        """


class WeightReceiver:
    """Updates one engine from version to version."""

    def __init__(self, target: WeightTarget) -> None:
        self._target = target
        self._staged: WeightManifest | None = None
        self._committed: WeightManifest | None = None
        self.state = SyncState.STALE
        self.version = -1

    def accept_loaded_weights(self) -> None:
        """Accept the weights that the engine loaded from disk as version 0."""
        self.state, self.version = SyncState.CURRENT, 0

    async def prepare(self, manifest: WeightManifest, buckets: Sequence[np.ndarray]) -> None:
        """Verify and stage a version. On failure the current version stays in use.

        Checksums are computed in a thread: gigabytes of them would hold up every turn of the engine.
        """
        self._staged = None
        await asyncio.to_thread(verify, manifest, buckets)
        await self._target.stage_weights(manifest, buckets)
        self._staged = manifest

    async def commit(self, version: int) -> str:
        """Switch to the staged version and compare the engine's weights with what was sent.

        Returns the version's digest, also where it was committed before: a caller that missed the answer asks again.
        Raises WeightSyncError and turns STALE if anything differs.
        """
        manifest = self._staged
        if manifest is None and self._committed is not None and self._committed.version == version:
            return self._committed.digest
        if manifest is None or manifest.version != version:
            held = "none" if manifest is None else manifest.version
            raise WeightSyncError(f"commit of version {version}, but the staged version is {held}")
        self._staged = self._committed = None
        state = SyncState.STALE
        try:
            # Groups keep arriving while turns in flight finish; the engine holds their turns back, so none is rejected.
            await self._target.commit_weights(manifest)
            state, self.version, self._committed = SyncState.CURRENT, version, manifest
        finally:
            self.state = state
        return manifest.digest


def check_engine_digests(manifest: WeightManifest, digests: dict[str, str]) -> None:
    """Raise WeightSyncError unless the engine holds every tensor of the manifest bit for bit."""
    wrong = [tensor.name for tensor in manifest.tensors if digests.get(tensor.name) != tensor.digest]
    if wrong:
        raise WeightSyncError(
            f"version {manifest.version}: {len(wrong)} of {len(manifest.tensors)} tensors differ in the engine, "
            f"first {wrong[0]}"
        )


def manifest_to_json(manifest: WeightManifest) -> dict[str, Any]:
    """Plain types, for passing it to the engine's process."""
    return {
        "version": manifest.version,
        "tensors": [
            [t.name, t.dtype, list(t.shape), t.bucket, t.offset, t.num_bytes, t.digest] for t in manifest.tensors
        ],
    }


def manifest_from_json(plain: dict[str, Any]) -> WeightManifest:
    return WeightManifest(
        version=plain["version"],
        tensors=tuple(
            TensorSpec(name=n, dtype=d, shape=tuple(s), bucket=b, offset=o, num_bytes=c, digest=h)
            for n, d, s, b, o, c, h in plain["tensors"]
        ),
    )
