"""Which kernel attends, and that another one gets the same segments."""

import sys
from types import ModuleType

import pytest
import torch

from learner import attention
from learner.batches.segments import segments_of

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FAMILIES = [(3, (2, 0, 4)), (0, (5,)), (6, ())]


@pytest.fixture
def installed(monkeypatch):
    """A package `flash-attn-4` whose function attends segment by segment in plain PyTorch."""

    def attend(query, key, value, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal):
        assert max_seqlen_q == int(cu_seqlens_q.diff().max())
        assert max_seqlen_k == int(cu_seqlens_k.diff().max())
        outputs = []
        for q, k, v in zip(
            *(
                torch.split(rows, starts.diff().tolist())
                for rows, starts in ((query, cu_seqlens_q), (key, cu_seqlens_k), (value, cu_seqlens_k))
            ),
            strict=True,
        ):
            mask = torch.ones(len(q), len(k), dtype=torch.bool).tril(len(k) - len(q)) if causal else None
            q, k, v = (each.transpose(0, 1) for each in (q, k, v))
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=mask, scale=softmax_scale, enable_gqa=True
            )
            outputs.append(attended[0].transpose(0, 1))
        return torch.cat(outputs), None

    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    cute.flash_attn_varlen_func = attend
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    forget = attention.flash_attention_4.cache_clear
    forget()
    yield attend
    forget()


def test_it_is_used_on_a_gpu_that_it_has_kernels_for(installed, monkeypatch):
    assert attention.flash_attention_4(CUDA, 128) is installed
    assert attention.flash_attention_4(CUDA, 80) is None, "the tower's heads"
    assert attention.flash_attention_4(CPU, 128) is None
    attention.flash_attention_4.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert attention.flash_attention_4(CUDA, 64) is None


def test_without_the_package_pytorchs_own_is_used(installed, monkeypatch):
    monkeypatch.setitem(sys.modules, "flash_attn.cute", None)
    attention.flash_attention_4.cache_clear()
    assert attention.flash_attention_4(CUDA, 128) is None


def test_it_gets_the_segments_of_the_families(installed, monkeypatch):
    """Loss and gradients are those of the padded path."""
    monkeypatch.setattr(attention, "flash_attention_4", lambda device, width: installed)
    num_tokens = sum(shared + sum(lengths) for shared, lengths in FAMILIES)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, num_tokens, 8, generator=generator) for heads in (4, 2, 2))
    found = []
    for kernel in ("varlen", "padded"):
        given = [each.clone().requires_grad_() for each in (query, key, value)]
        attended, _ = attention.packed_attention(None, *given, None, segments=segments_of(FAMILIES, kernel))
        attended.square().sum().backward()
        found.append([attended.detach(), *(each.grad for each in given)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
