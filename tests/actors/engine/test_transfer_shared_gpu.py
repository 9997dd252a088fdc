"""Weights from a learner on the same GPU, whose memory the receiver opens."""

from types import SimpleNamespace

import pytest
import torch

from learner.sync import transports
from tests.actors.engine.received import CPU, SHAPES, PlainModel, drawn, failure_of, holds, receive

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("root")]


@pytest.fixture
def shared_gpu(monkeypatch):
    """Handles of memory in this process, as if learner and engine shared a GPU; returns the opened ones."""
    from actors.engine import transfer

    exported, opened = [], []

    def export(bucket):
        exported.append(bucket)
        return [len(exported) - 1]

    def open_again(handle, num_bytes, device):
        assert exported[handle[0]].nbytes == num_bytes
        opened.append(handle[0])
        return exported[handle[0]]

    monkeypatch.setattr(transports, "export_handle", export)
    monkeypatch.setattr(transfer, "open_handle", open_again)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    return opened


@pytest.fixture
def sharing(extension):
    """What runs in the worker of an engine that shares a GPU with the learner."""
    from actors.engine import transfer

    extension.weight_transfer_engine = transfer.IpcReceiver(
        SimpleNamespace(), SimpleNamespace(parallel_config=None, model_config=None), CPU, PlainModel()
    )
    return extension


def flat_parameters():
    """Parameters in one buffer, as DeepSpeed keeps them."""
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    parts = torch.zeros(sum(sizes)).split(sizes)
    return {name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def test_on_a_shared_gpu_the_learners_own_parameters_are_opened_once_and_read_at_each_version(
    sharing, sender, shared_gpu
):
    parameters = flat_parameters()
    link = sender.open("ipc", num_receivers=1, timeout_s=5, parameters=list(parameters.values()))
    assert link.is_rendezvous, "a receiver waits for nothing that the sender makes"
    sharing.connect_weights(link.layout.to_plain(), {**link.settings, "rank_offset": 1})
    assert failure_of(sharing) == ""
    for number in range(3):
        for name, tensor in drawn(number).items():
            parameters[name].copy_(tensor)
        sharing.receive_weights({})
        sent = sender.send((), number)
        assert failure_of(sharing) == ""
        assert sharing.commit_weights(list(sent.digests)) == ""
        assert holds(sharing, drawn(number))
    assert shared_gpu == [0, 1], "one per bucket"
    sharing.disconnect_weights()
    assert sharing.weight_transfer_engine._resident == [], "nothing is held open"


def test_digests_in_place_may_be_computed_before_and_parameters_that_changed_since_are_found_out(
    sharing, sender, shared_gpu
):
    parameters = flat_parameters()
    link = sender.open("ipc", num_receivers=1, timeout_s=5, parameters=list(parameters.values()))
    sharing.connect_weights(link.layout.to_plain(), link.settings)
    assert failure_of(sharing) == ""
    sender.digest_ahead(1)
    parameters["b.weight"][5] += 1
    receive(sharing, sender.send((), 1))
    problem = sharing.commit_weights(list(sender.send((), 1).digests))
    assert problem == "the checksum of bucket 1 differs from what the learner sent"
    sender.forget_digests()
    receive(sharing, sender.send((), 1))
    assert sharing.commit_weights(list(sender.send((), 1).digests)) == ""
    assert holds(sharing, parameters)


def test_a_learner_that_goes_on_too_early_is_found_out_by_the_checksum(sharing, sender, shared_gpu):
    parameters = flat_parameters()
    link = sender.open("ipc", num_receivers=1, timeout_s=5, parameters=list(parameters.values()))
    sharing.connect_weights(link.layout.to_plain(), link.settings)
    assert failure_of(sharing) == ""
    sharing.receive_weights({})
    assert failure_of(sharing) == ""
    parameters["b.weight"][5] += 1
    problem = sharing.commit_weights(list(sender.send((), 1).digests))
    assert problem == "the checksum of bucket 1 differs from what the learner sent"


def test_on_a_shared_gpu_parameters_that_are_not_whole_travel_in_buckets(sharing, sender, shared_gpu):
    link = sender.open("ipc", num_receivers=1, timeout_s=5)
    assert not link.is_rendezvous
    sharing.connect_weights(link.layout.to_plain(), link.settings)
    assert failure_of(sharing) == ""
    for number in range(2):
        sent = sender.send(drawn(number).items(), number)
        receive(sharing, sent)
        assert sharing.commit_weights(list(sent.digests)) == ""
        assert holds(sharing, drawn(number))
    assert len(shared_gpu) == 2 * len(link.layout.bucket_sizes)
