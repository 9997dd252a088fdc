"""Weights over shared memory end to end without an engine: the learner's sender, vLLM's worker, a model.

Takes vLLM's classes, and nothing of it runs.
"""

import contextlib
import os
import threading

import pytest
import torch

from actors.weights.staging import write_version
from learner.sync.sender import WeightSender
from tests.actors.engine.received import CPU, SHAPES, connect, drawn, failure_of, held, holds, receive

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("root")]


def test_versions_come_one_after_the_other_and_each_is_whole(extension, sender):
    connect(extension, sender)
    for number in range(5):
        version = drawn(number)
        sent = sender.send(version.items(), number)
        assert len(sent.digests) > 1, "several buckets travel"
        receive(extension, sent)
        assert extension.commit_weights(list(sent.digests)) == ""
        assert holds(extension, version)


def test_the_version_in_use_stays_until_the_commit(extension, sender):
    connect(extension, sender)
    assert extension.weights_are_staged()
    before = held(extension)
    sent = sender.send(drawn(1).items(), 1)
    receive(extension, sent)
    assert holds(extension, before)
    extension.commit_weights(list(sent.digests))
    assert holds(extension, drawn(1))


def test_the_older_of_two_versions_can_still_be_committed(extension, sender):
    """The learner fills the other file; it goes on before a slow engine has committed."""
    connect(extension, sender)
    sent = sender.send(drawn(1).items(), 1)
    receive(extension, sent)
    sender.send(drawn(2).items(), 2)
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


def test_what_was_received_is_there_although_the_learner_has_left(extension, sender):
    connect(extension, sender)
    sent = sender.send(drawn(1).items(), 1)
    receive(extension, sent)
    sender.close()
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


@pytest.mark.parametrize("bucket", [0, 1])
def test_a_bit_that_flips_on_the_way_is_found_and_nothing_is_written(extension, sender, bucket):
    connect(extension, sender)
    sent = sender.send(drawn(1).items(), 1)
    sender.read(bucket)[7] ^= 1
    receive(extension, sent)
    problem = extension.commit_weights(list(sent.digests))
    assert problem == f"the checksum of bucket {bucket} differs from what the learner sent"
    assert not any(tensor.any() for tensor in held(extension).values())


def test_the_first_version_is_compared_tensor_by_tensor_with_what_the_model_holds(extension, sender, monkeypatch):
    """A model that keeps its values elsewhere would generate with the old ones, whatever was copied."""
    connect(extension, sender)
    monkeypatch.setattr(extension.weight_transfer_engine._views, "parts", lambda bucket, tensors: [])
    extension.receive_weights(sender.send(drawn(1).items(), 1).offer.delivery)
    assert failure_of(extension) == "WeightSyncError: a.weight differs in the engine from what was received"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda sender, file: sender.close(), "No such file"),
        (lambda sender, file: os.truncate(file, 5), "mmap length is greater"),
    ],
    ids=["gone", "cut"],
)
def test_a_file_that_is_not_whole_is_a_failed_transfer(extension, sender, damage, reason):
    connect(extension, sender)
    sent = sender.send(drawn(1).items(), 1)
    damage(sender, sent.offer.delivery["file"])
    extension.receive_weights(sent.offer.delivery)
    assert failure_of(extension).startswith("WeightSyncError: weights in ")
    assert reason in failure_of(extension)


def test_a_model_with_other_parameters_refuses_to_connect(extension):
    with contextlib.closing(
        WeightSender({**SHAPES, "c.weight": (3,)}, dtype=torch.float32, device=CPU, bucket_bytes=8192)
    ) as sender:
        link = sender.open("shared_memory", num_receivers=1, timeout_s=5)
        extension.connect_weights(link.layout.to_plain(), link.settings)
        assert failure_of(extension) == "WeightSyncError: c.weight has no parameter c.weight in the engine's model"


def test_a_copy_of_the_bytes_will_do_where_the_learners_memory_cannot_be_reached(extension, sender, tmp_path):
    link = connect(extension, sender)
    sent = sender.send(drawn(1).items(), 1)
    copy = write_version([sender.read(index).numpy() for index in range(sent.offer.num_buckets)], tmp_path)
    assert copy.stat().st_size == link.layout.num_bytes
    sender.close()
    extension.receive_weights({"file": str(copy)})
    assert failure_of(extension) == ""
    copy.unlink()
    assert extension.commit_weights(list(sent.digests)) == ""
    assert holds(extension, drawn(1))


def test_a_transfer_waits_for_an_earlier_one_that_was_left_behind(extension, sender, monkeypatch):
    connect(extension, sender)
    receiver, go_on, order = extension.weight_transfer_engine, threading.Event(), []
    arriving = receiver._arriving

    def slow(delivery):
        order.append("begun")
        assert go_on.wait(10)
        yield from arriving(delivery)
        order.append("ended")

    monkeypatch.setattr(receiver, "_arriving", slow)
    sent = sender.send(drawn(1).items(), 1)
    extension.receive_weights(sent.offer.delivery)
    extension.disconnect_weights()
    extension.receive_weights(sent.offer.delivery)
    assert not extension.weights_arrived()[0]
    assert order == ["begun"]
    go_on.set()
    assert failure_of(extension) == ""
    assert order == ["begun", "ended"] * 2
    assert extension.commit_weights(list(sent.digests)) == ""


def test_leaving_in_the_middle_writes_nothing_into_the_weights_in_use(extension, sender, monkeypatch):
    connect(extension, sender)
    receiver = extension.weight_transfer_engine
    arriving = receiver._arriving

    def leaves_after_the_first(delivery):
        for bucket in arriving(delivery):
            yield bucket
            extension.disconnect_weights()

    monkeypatch.setattr(receiver, "_arriving", leaves_after_the_first)
    extension.receive_weights(sender.send(drawn(1).items(), 1).offer.delivery)
    assert failure_of(extension) == ""
    assert not any(tensor.any() for tensor in held(extension).values())


def test_without_room_beside_them_the_weights_in_use_are_written_as_the_buckets_come(extension, sender, monkeypatch):
    receiver = extension.weight_transfer_engine
    monkeypatch.setattr(receiver, "_has_room", lambda: False)
    monkeypatch.setattr(type(receiver), "stays_in_reach", False)
    connect(extension, sender)
    assert not extension.weights_are_staged()
    sent = sender.send(drawn(1).items(), 1)
    receive(extension, sent)
    assert holds(extension, drawn(1))
    assert extension.commit_weights(list(sent.digests)) == ""
    wrong = [digest + 1 for digest in sent.digests]
    assert extension.commit_weights(wrong) == "the checksum of bucket 0 differs from what the learner sent"


def test_without_room_beside_them_what_stays_where_it_is_is_written_at_the_commit(extension, sender, monkeypatch):
    monkeypatch.setattr(extension.weight_transfer_engine, "_has_room", lambda: False)
    connect(extension, sender)
    assert extension.weights_are_staged()
    before = held(extension)
    for number in range(2):
        sent = sender.send(drawn(number).items(), number)
        receive(extension, sent)
        assert holds(extension, before), "the engine generates with them"
        assert extension.commit_weights(list(sent.digests)) == ""
        assert holds(extension, before := drawn(number))
    sent = sender.send(drawn(2).items(), 2)
    sender.read(1)[7] ^= 1
    receive(extension, sent)
    problem = extension.commit_weights(list(sent.digests))
    assert problem == "the checksum of bucket 1 differs from what the learner sent"


@pytest.mark.parametrize("has_graphs", [False, True])
def test_the_model_moves_to_the_new_weights_unless_captured_graphs_hold_the_addresses(extension, sender, has_graphs):
    extension.model_config.enforce_eager = not has_graphs
    connect(extension, sender)
    addresses = [[parameter.data_ptr() for parameter in extension.weight_transfer_engine.model.parameters()]]
    for number in range(4):
        sent = sender.send(drawn(number).items(), number)
        receive(extension, sent)
        assert extension.commit_weights(list(sent.digests)) == ""
        assert holds(extension, drawn(number))
        addresses.append([parameter.data_ptr() for parameter in extension.weight_transfer_engine.model.parameters()])
    first, second, *later = addresses
    assert later == [first, second, first]
    assert all((one == other) == has_graphs for one, other in zip(first, second, strict=True))


def test_a_file_stays_mapped_from_version_to_version(extension, sender, monkeypatch):
    from actors.engine import transfer

    mapped, map_file = [], transfer.map_file

    def counted(path, num_bytes):
        mapped.append(path)
        return map_file(path, num_bytes)

    monkeypatch.setattr(transfer, "map_file", counted)
    connect(extension, sender)
    for number in range(6):
        sent = sender.send(drawn(number).items(), number)
        receive(extension, sent)
        assert extension.commit_weights(list(sent.digests)) == ""
    assert len(mapped) == 2, "one per file"
    connect(extension, sender)
    receive(extension, sender.send(drawn(9).items(), 9))
    assert len(mapped) == 3, "another learner's file of the same number is not this one"


def test_a_bug_in_a_transfer_is_not_taken_for_success(extension, sender, monkeypatch):
    connect(extension, sender)
    monkeypatch.setattr(extension.weight_transfer_engine, "_arriving", lambda delivery: delivery["nothing"])
    extension.receive_weights({})
    assert failure_of(extension) == "it ended without a result"


def test_settings_that_this_vllm_does_not_know_are_left_out():
    from actors.engine.transfer import FilesInfo
    from actors.engine.vllm_versions import known_fields

    assert known_fields(FilesInfo, {"file": "/a", "files": ["/a", "/b"], "rank_offset": 1}) == {"files": ["/a", "/b"]}
