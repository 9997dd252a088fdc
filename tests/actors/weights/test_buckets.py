"""Tensors in raw bytes, as the ends of a transfer copy them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors.weights import buckets
from actors.weights.buckets import as_words, parts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_words_are_the_same_memory(dtype):
    tensors = [torch.zeros(3, 8, dtype=dtype), torch.zeros(16, dtype=dtype)[8:]]
    words = as_words(tensors)
    assert [each.numel() * 8 for each in words] == [tensor.nbytes for tensor in tensors]
    drawn = [torch.randn(tensor.shape).to(dtype) for tensor in tensors]
    torch._foreach_copy_(words, as_words(drawn))
    assert all(torch.equal(one, other) for one, other in zip(tensors, drawn, strict=True))


@pytest.mark.parametrize("odd", [torch.zeros(3), torch.zeros(9)[1:], torch.zeros(6, dtype=torch.bfloat16)])
def test_a_tensor_that_is_no_whole_number_of_words_is_left_as_it_is(odd):
    assert as_words([torch.zeros(8), odd]) is None


def test_values_that_are_not_finite_stay_bit_by_bit():
    bits = torch.tensor([0x7FF8000000000001, 0x7FF0000000000001, -1, 1], dtype=torch.int64)
    target = torch.zeros(8)
    torch._foreach_copy_(as_words([target]), as_words([bits.view(torch.float32)]))
    assert torch.equal(target.view(torch.int64), bits)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.sampled_from([4, 8, 12, 1 << 20]))
def test_parts_are_all_of_it_in_order(shape, cached_bytes):
    source = torch.randn(shape)
    target = torch.zeros(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CACHED_BYTES", cached_bytes)
        sizes = []
        for one, other in parts(target, source):
            one.copy_(other)
            sizes.append(one.nbytes)
    assert torch.equal(target, source)
    assert max(sizes) <= cached_bytes


def test_a_parameter_that_is_no_contiguous_tensor_is_copied_as_it_reads():
    source = torch.arange(12.0).reshape(3, 4).T
    target = torch.zeros(4, 3)
    for one, other in parts(target, source):
        one.copy_(other)
    assert torch.equal(target, source)
