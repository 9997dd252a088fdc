import asyncio
import dataclasses
import threading

import numpy as np
import pytest

from actors.engine import weight_receiver
from actors.engine.weight_receiver import (
    SyncState,
    TensorSpec,
    WeightManifest,
    WeightReceiver,
    bytes_digest,
    check_engine_digests,
    manifest_from_json,
    manifest_to_json,
    verified_tensors,
)
from actors.errors import WeightSyncError


def make_version(version: int) -> tuple[WeightManifest, list[np.ndarray]]:
    bucket = np.arange(48, dtype=np.uint8) + version
    specs = tuple(
        TensorSpec(
            name=name,
            dtype="float32",
            shape=(3, 2),
            bucket=0,
            offset=offset,
            num_bytes=24,
            digest=bytes_digest(bucket[offset : offset + 24].tobytes()),
        )
        for name, offset in (("a", 0), ("b", 24))
    )
    return WeightManifest(version=version, tensors=specs), [bucket]


class FakeTarget:
    def __init__(self) -> None:
        self.spoils: str | None = None

    async def stage_weights(self, manifest, buckets) -> None:
        self.staged = buckets

    async def commit_weights(self, manifest) -> None:
        held = {t.name: "bad" if t.name == self.spoils else t.digest for t in manifest.tensors}
        check_engine_digests(manifest, held)


async def test_a_receiver_serves_only_what_it_verified():
    receiver = WeightReceiver(FakeTarget())
    assert receiver.state is SyncState.STALE
    manifest, buckets = make_version(3)
    await receiver.prepare(manifest, buckets)
    assert receiver.version == -1
    assert await receiver.commit(3) == manifest.digest
    assert (receiver.state, receiver.version) == (SyncState.CURRENT, 3)


@pytest.mark.parametrize("position", range(48))
async def test_one_flipped_byte_anywhere_is_refused_and_the_old_version_stays(position):
    receiver = WeightReceiver(FakeTarget())
    await receiver.prepare(*make_version(1))
    await receiver.commit(1)
    manifest, (bucket,) = make_version(2)
    bucket[position] ^= 1
    with pytest.raises(WeightSyncError, match="checksum"):
        await receiver.prepare(manifest, [bucket])
    assert (receiver.state, receiver.version) == (SyncState.CURRENT, 1)
    with pytest.raises(WeightSyncError, match="staged version is none"):
        await receiver.commit(2)


async def test_an_engine_that_holds_something_else_turns_stale():
    target = FakeTarget()
    receiver = WeightReceiver(target)
    await receiver.prepare(*make_version(1))
    target.spoils = "b"
    with pytest.raises(WeightSyncError, match="1 of 2 tensors differ"):
        await receiver.commit(1)
    assert receiver.state is SyncState.STALE


async def test_only_the_staged_version_can_be_committed():
    receiver = WeightReceiver(FakeTarget())
    await receiver.prepare(*make_version(1))
    with pytest.raises(WeightSyncError, match="staged version is 1"):
        await receiver.commit(2)


def test_short_and_missing_buckets_are_named():
    manifest, (bucket,) = make_version(1)
    with pytest.raises(WeightSyncError, match="got 0 buckets"):
        list(verified_tensors(manifest, []))
    with pytest.raises(WeightSyncError, match="has 23 bytes, expected 24"):
        list(verified_tensors(manifest, [bucket[:-1]]))


def test_reordered_tensors_change_the_digest_of_the_version():
    manifest, _ = make_version(1)
    swapped = dataclasses.replace(manifest, tensors=manifest.tensors[::-1])
    assert swapped.digest != manifest.digest


def test_a_manifest_survives_the_hop_into_the_engine():
    manifest, _ = make_version(1)
    assert manifest_from_json(manifest_to_json(manifest)) == manifest


async def test_a_worker_goes_on_taking_groups_while_a_commit_waits_for_turns_in_flight():
    """Look-ahead: with turns in flight a commit takes a while, and nothing is refused meanwhile."""
    turns_ended = asyncio.Event()

    class Busy(FakeTarget):
        async def commit_weights(self, manifest) -> None:
            await turns_ended.wait()

    receiver = WeightReceiver(Busy())
    receiver.accept_loaded_weights()
    await receiver.prepare(*make_version(1))
    commit = asyncio.create_task(receiver.commit(1))
    await asyncio.sleep(0.01)
    assert (receiver.state, receiver.version) == (SyncState.CURRENT, 0)
    turns_ended.set()
    await commit
    assert (receiver.state, receiver.version) == (SyncState.CURRENT, 1)


async def test_the_event_loop_goes_on_while_checksums_are_computed(monkeypatch):
    """On the loop itself this would wait for ticks that never come."""
    started, go_on = threading.Event(), threading.Event()

    def stuck(manifest, buckets):
        started.set()
        assert go_on.wait(30)

    monkeypatch.setattr(weight_receiver, "verify", stuck)
    preparing = asyncio.create_task(WeightReceiver(FakeTarget()).prepare(*make_version(1)))
    async with asyncio.timeout(30):
        while not started.is_set():
            await asyncio.sleep(0.001)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not preparing.done()
    go_on.set()
    await preparing


async def test_a_commit_whose_answer_was_missed_can_be_asked_for_again():
    receiver = WeightReceiver(FakeTarget())
    manifest, buckets = make_version(3)
    await receiver.prepare(manifest, buckets)
    assert [await receiver.commit(3) for _ in range(3)] == [manifest.digest] * 3
    await receiver.prepare(*make_version(4))
    with pytest.raises(WeightSyncError, match="the staged version is 4"):
        await receiver.commit(3)
