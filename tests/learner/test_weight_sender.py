"""The learner's end: what it puts into buckets, in which order, and what it says about them."""

import contextlib
import itertools

import pytest
import torch

from actors.weights.buckets import slot_tensor
from actors.weights.digest import bucket_digest
from learner.sync.sender import WeightSender
from tests.learner.builders import small_model


def shapes_of(model):
    return {name: parameter.shape for name, parameter in model.named_parameters()}


@pytest.fixture
def connect():
    """Makes a sender for a model and opens it over shared memory."""
    with contextlib.ExitStack() as senders:

        def connect(model, *, dtype=torch.float32, bucket_bytes=1 << 16):
            sender = WeightSender(shapes_of(model), dtype=dtype, device=torch.device("cpu"), bucket_bytes=bucket_bytes)
            senders.callback(sender.close)
            return sender, sender.open("shared_memory", num_receivers=1, timeout_s=5)

        yield connect


def sent_tensors(sender, layout):
    """What lies in the buckets of the version sent last, by name."""
    return {slot.tensor.name: slot_tensor(sender.read(slot.bucket), slot) for slot in layout.slots}


def by_name(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_a_link_says_what_receivers_need(connect):
    model = small_model()
    _, link = connect(model)
    assert (link.transport, link.is_rendezvous, link.timeout_s) == ("shared_memory", False, 5)
    assert [slot.tensor.name for slot in link.layout.slots] == list(by_name(model))
    assert [slot.tensor.shape for slot in link.layout.slots] == [tuple(each.shape) for each in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bucket_bytes", [1 << 12, 1 << 16, 1 << 30])
def test_buckets_hold_every_tensor_whole_and_have_their_digests(connect, dtype, bucket_bytes):
    model = small_model().to(dtype)
    sender, link = connect(model, dtype=dtype, bucket_bytes=bucket_bytes)
    sent = sender.send(model.named_parameters(), 3)
    assert (sent.offer.version, sent.offer.num_buckets) == (3, len(link.layout.bucket_sizes))
    expected = by_name(model)
    for name, found in sent_tensors(sender, link.layout).items():
        assert found.dtype == dtype
        assert torch.equal(found, expected[name]), name
    assert len({slot.bucket for slot in link.layout.slots}) == sent.offer.num_buckets
    for index, size in enumerate(link.layout.bucket_sizes):
        assert sender.read(index).nbytes == size
        assert sent.digests[index] == int(bucket_digest(sender.read(index)))


def test_another_version_has_other_digests_and_the_same_one_the_same(connect):
    model = small_model()
    sender, _ = connect(model)
    first, again = (sender.send(model.named_parameters(), 1).digests for _ in range(2))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-6
    changed = sender.send(model.named_parameters(), 2).digests
    assert first == again
    assert [one == other for one, other in zip(first, changed, strict=True)] == [False, *[True] * (len(first) - 1)]


def test_what_was_sent_stays_as_it_was_when_the_model_goes_on(connect):
    model = small_model()
    sender, link = connect(model)
    sent = sender.send(model.named_parameters(), 1)
    expected = {name: parameter.clone() for name, parameter in by_name(model).items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(found, expected[name]) for name, found in sent_tensors(sender, link.layout).items())
    assert [int(bucket_digest(sender.read(index))) for index in range(sent.offer.num_buckets)] == list(sent.digests)


def test_a_parameter_is_read_before_the_next_one_is_asked_for(connect):
    """Under ZeRO-3 it is whole only until then."""
    model = small_model()
    sender, link = connect(model)
    expected = by_name(model)

    def gathered():
        for name, parameter in model.named_parameters():
            whole = parameter.detach().clone()
            yield name, whole
            whole.fill_(float("nan"))

    sender.send(gathered(), 1)
    for name, found in sent_tensors(sender, link.layout).items():
        assert torch.equal(found, expected[name]), name


def test_each_bucket_is_delivered_once_it_is_full_and_not_later(connect, monkeypatch):
    model = small_model()
    sender, link = connect(model, bucket_bytes=1 << 14)
    log = []
    monkeypatch.setattr(sender._end, "deliver", lambda index: log.append(f"bucket {index}"))

    def parameters():
        for name, parameter in model.named_parameters():
            log.append(name)
            yield name, parameter

    sender.send(parameters(), 1)
    expected = []
    for bucket, slots in itertools.groupby(link.layout.slots, key=lambda slot: slot.bucket):
        names = [slot.tensor.name for slot in slots]
        # The first tensor of the next bucket is what shows that this one is full.
        expected += [names[0], *([f"bucket {bucket - 1}"] if bucket else []), *names[1:]]
    assert log == [*expected, f"bucket {len(link.layout.bucket_sizes) - 1}"]


@pytest.mark.parametrize("edit", [lambda named: named[:-1], lambda named: [*named, named[0]]])
def test_more_or_fewer_parameters_than_the_layout_has_are_a_bug(connect, edit):
    model = small_model()
    sender, _ = connect(model)
    with pytest.raises(ValueError, match="argument"):
        sender.send(edit(list(model.named_parameters())), 1)


def test_parameters_in_another_order_are_a_bug(connect):
    model = small_model()
    sender, _ = connect(model)
    with pytest.raises(AssertionError, match="order of the layout"):
        sender.send(reversed(list(model.named_parameters())), 1)


def test_opened_anew_the_sender_leaves_its_earlier_receivers(connect):
    model = small_model()
    sender, link = connect(model)
    anew = sender.open("shared_memory", num_receivers=2, timeout_s=5)
    assert anew.layout == link.layout
    assert anew.settings != link.settings
    sender.close()
    sender.close()
