"""Parameters that are sent from where they lie."""

import pytest
import torch

from actors.errors import WeightSyncError
from actors.weights.buckets import slot_tensor
from actors.weights.layout import TensorSpec
from learner.sync.resident import MAX_BUCKETS, find_resident

SHAPES = {"a": (50, 30), "b": (7,), "c": (), "d": (4, 3)}
SPECS = [TensorSpec(name=name, dtype="bfloat16", shape=shape) for name, shape in SHAPES.items()]


def in_groups(groups, padding=0):
    """Parameters that lie in one flat buffer per group of names."""
    made = {}
    for names in groups:
        sizes = [torch.Size(SHAPES[name]).numel() for name in names]
        flat = torch.randn(sum(sizes) + padding).bfloat16()
        for name, part in zip(names, flat[: sum(sizes)].split(sizes), strict=True):
            made[name] = part.view(SHAPES[name])
    return [made[name] for name in SHAPES]


@pytest.mark.parametrize("groups", [["abcd"], ["dcba"], ["ac", "bd"], ["a", "b", "c", "d"]])
def test_the_memory_of_each_group_is_a_bucket_and_holds_its_tensors(groups):
    parameters = in_groups(groups)
    found = find_resident(SPECS, parameters, bucket_bytes=1 << 20)
    assert len(found.buckets) == len(groups)
    assert found.layout.bucket_sizes == tuple(bucket.nbytes for bucket in found.buckets)
    assert [slot.bucket for slot in found.layout.slots] == sorted(slot.bucket for slot in found.layout.slots)
    by_name = dict(zip(SHAPES, parameters, strict=True))
    assert sorted(slot.tensor.name for slot in found.layout.slots) == sorted(SHAPES)
    for slot in found.layout.slots:
        tensor = slot_tensor(found.buckets[slot.bucket], slot)
        assert torch.equal(tensor, by_name[slot.tensor.name])
        assert tensor.data_ptr() == by_name[slot.tensor.name].data_ptr(), "nothing is copied"


@pytest.mark.parametrize("bucket_bytes", [1, 30, 3000, 3010, 3020])
def test_the_memory_is_cut_between_tensors_where_words_are_aligned(bucket_bytes):
    parameters = in_groups(["adbc"])
    found = find_resident(SPECS, parameters, bucket_bytes=bucket_bytes)
    starts = [bucket.data_ptr() for bucket in found.buckets]
    ends = [start + size for start, size in zip(starts, found.layout.bucket_sizes, strict=True)]
    assert starts[0] == parameters[0].untyped_storage().data_ptr()
    assert starts[1:] == ends[:-1], "nothing is left out"
    assert found.layout.num_bytes == parameters[0].untyped_storage().nbytes()
    assert all((start - starts[0]) % 8 == 0 for start in starts)
    by_name = dict(zip(SHAPES, parameters, strict=True))
    for slot in found.layout.slots:
        tensor = slot_tensor(found.buckets[slot.bucket], slot)
        assert tensor.data_ptr() == by_name[slot.tensor.name].data_ptr()
        assert torch.equal(tensor, by_name[slot.tensor.name])
    # a takes 3000 bytes and d 24: d starts at 3000, and b at 3024, the first multiple of 16 bytes.
    assert len(found.buckets) == (1 if bucket_bytes > 3038 else 2)


def test_parameters_that_lie_apart_are_sent_as_they_lie_only_if_they_are_few():
    specs = [TensorSpec(name=str(index), dtype="bfloat16", shape=(8,)) for index in range(MAX_BUCKETS + 1)]
    parameters = [torch.zeros(8).bfloat16() for _ in specs]
    assert find_resident(specs, parameters, bucket_bytes=1 << 20) is None
    assert find_resident(specs[1:], parameters[1:], bucket_bytes=1 << 20) is not None


def test_what_the_learner_writes_is_in_the_bucket():
    parameters = in_groups(["abcd"])
    found = find_resident(SPECS, parameters, bucket_bytes=1 << 20)
    parameters[1].fill_(3)
    (slot,) = (slot for slot in found.layout.slots if slot.tensor.name == "b")
    assert torch.equal(slot_tensor(found.buckets[0], slot), parameters[1])


def wide(parameters):
    return [parameters[0].float(), *parameters[1:]]


def turned(parameters):
    return [torch.randn(30, 50).bfloat16().T, *parameters[1:]]


def sharded(parameters):
    return [parameters[0][:0], *parameters[1:]]


def in_a_large_buffer(parameters):
    return in_groups(["abcd"], padding=1000)


@pytest.mark.parametrize("edit", [wide, turned, sharded, in_a_large_buffer])
def test_what_cannot_be_sent_as_it_lies_is_not(edit):
    assert find_resident(SPECS, edit(in_groups(["abcd"])), bucket_bytes=1 << 20) is None


def test_parameters_that_moved_are_not_sent():
    parameters = in_groups(["abcd"])
    found = find_resident(SPECS, parameters, bucket_bytes=1 << 20)
    found.check()
    parameters[2].data = torch.zeros(()).bfloat16()
    with pytest.raises(WeightSyncError, match="have moved in memory"):
        found.check()
