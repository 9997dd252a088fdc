"""Where tensors lie in buckets."""

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.weights.layout import BUCKET_ALIGNMENT, ITEM_BYTES, TENSOR_ALIGNMENT, TensorSpec, WeightLayout, lay_out

MODELS = st.lists(
    st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(1, 40), max_size=3)), min_size=1, max_size=30
).map(
    lambda tensors: [
        TensorSpec(name=f"t{number}", dtype=dtype, shape=tuple(shape)) for number, (dtype, shape) in enumerate(tensors)
    ]
)
BUCKET_BYTES = st.integers(1, 20).map(lambda pages: pages * BUCKET_ALIGNMENT)


def end_of(slot):
    return slot.offset + slot.tensor.num_bytes


@given(MODELS, BUCKET_BYTES)
def test_tensors_keep_their_order_are_aligned_and_never_overlap(tensors, bucket_bytes):
    layout = lay_out(tensors, bucket_bytes=bucket_bytes)
    assert [slot.tensor for slot in layout.slots] == tensors
    for index, size in enumerate(layout.bucket_sizes):
        slots = layout.slots_of(index)
        assert slots[0].offset == 0
        assert end_of(slots[-1]) <= size
        assert all(slot.offset % TENSOR_ALIGNMENT == 0 for slot in slots)
        assert all(end_of(slot) <= after.offset for slot, after in itertools.pairwise(slots))
    assert [slot for index in range(len(layout.bucket_sizes)) for slot in layout.slots_of(index)] == list(layout.slots)


@given(MODELS, BUCKET_BYTES)
def test_buckets_are_as_full_as_their_size_allows(tensors, bucket_bytes):
    layout = lay_out(tensors, bucket_bytes=bucket_bytes)
    for index, size in enumerate(layout.bucket_sizes):
        slots = layout.slots_of(index)
        assert size % BUCKET_ALIGNMENT == 0
        assert size - end_of(slots[-1]) < BUCKET_ALIGNMENT, "no more padding than it takes"
        assert size <= bucket_bytes or len(slots) == 1, "only a tensor that is larger has a larger bucket"
        for following in layout.slots_of(index + 1)[:1]:
            start = math.ceil(end_of(slots[-1]) / TENSOR_ALIGNMENT) * TENSOR_ALIGNMENT
            assert start + following.tensor.num_bytes > bucket_bytes, "the next one did not fit"
    assert layout.num_bytes == sum(layout.bucket_sizes)


@given(MODELS, BUCKET_BYTES)
def test_a_layout_survives_the_way_into_the_engines_process(tensors, bucket_bytes):
    layout = lay_out(tensors, bucket_bytes=bucket_bytes)
    assert WeightLayout.from_plain(layout.to_plain()) == layout
    assert WeightLayout.from_plain(json.loads(json.dumps(layout.to_plain()))) == layout, "lists or tuples alike"


@pytest.mark.parametrize(
    ("dtype", "shape", "num_bytes"), [("float32", (2, 3), 24), ("bfloat16", (5,), 10), ("float32", (), 4)]
)
def test_a_tensor_takes_the_bytes_of_its_elements(dtype, shape, num_bytes):
    assert TensorSpec(name="t", dtype=dtype, shape=shape).num_bytes == num_bytes


def test_a_bucket_is_filled_to_its_last_byte():
    tensors = [TensorSpec(name=f"t{number}", dtype="float32", shape=(512,)) for number in range(3)]
    layout = lay_out([*tensors, TensorSpec(name="large", dtype="bfloat16", shape=(3, 1000))], bucket_bytes=4096)
    assert [(slot.bucket, slot.offset) for slot in layout.slots] == [(0, 0), (0, 2048), (1, 0), (2, 0)]
    assert layout.bucket_sizes == (4096, 4096, 8192)
