import logging

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from learner import fusing
from learner.fusing import allow_fusing, fuse, run_compiled
from learner.layers import gated, gated_gradients
from learner.scoring import _logit_gradient, _scores
from learner.vision import _rotated

FORBIDDEN = torch.arange(20) == 3


def drawn(*shape):
    return torch.randn(*shape)


def heads(tokens, num_heads):
    return drawn(1, tokens, num_heads * 8).view(1, tokens, num_heads, 8).transpose(1, 2)


CASES = {
    "gated": (gated, (-2, -2), lambda t: [drawn(1, t, 12), drawn(1, t, 12)]),
    "gated_gradients": (gated_gradients, (-2, -2, -2), lambda t: [*drawn(3, t, 12)]),
    "rotary": (
        apply_rotary_pos_emb,
        (-2, -2, -2, -2),
        lambda t: [heads(t, 4), heads(t, 2), drawn(1, t, 8), drawn(1, t, 8)],
    ),
    "rotation": (_rotated, (0, 0, 0), lambda t: [drawn(t, 3, 2, 8).split([2, 1], 1)[0], drawn(t, 8), drawn(t, 8)]),
    "scores": (_scores, (0, 0), lambda t: [drawn(t, 20), torch.randint(4, 20, (t,)), FORBIDDEN, 0.7]),
    "logit_gradient": (
        _logit_gradient,
        (0,) * 6,
        lambda t: [drawn(t, 20), torch.randint(4, 20, (t,)), *drawn(4, t), FORBIDDEN, 0.7],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_are_compiled_once_for_all_numbers_of_tokens_and_give_the_same(name, monkeypatch):
    function, tokens_at, make = CASES[name]
    torch.manual_seed(0)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(fusing, "_compiled", lambda each: torch.compile(each, backend=counter, dynamic=False))
    for num_tokens in (33, 50, 7):
        given = make(num_tokens)
        copied = [each.clone() if isinstance(each, torch.Tensor) else each for each in given]
        torch.testing.assert_close(run_compiled(function, given, tokens_at), function(*copied))
    assert counter.frame_count == 1


def test_on_a_cpu_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(fusing, "_compiled", None)
    assert fuse(gated, tokens_at=(0, 0))(torch.zeros(2, 3), torch.ones(2, 3)).sum() == 0


@pytest.mark.parametrize(
    ("has_triton", "found", "told"), [(False, "/usr/bin/gcc", "Triton"), (True, None, "a C compiler"), (True, "cc", "")]
)
def test_without_a_compiler_a_warning_says_what_is_missing(has_triton, found, told, monkeypatch, caplog):
    stances = []
    monkeypatch.setattr(torch.compiler, "set_stance", stances.append)
    monkeypatch.setattr(torch.utils._triton, "has_triton", lambda: has_triton)
    monkeypatch.setattr(fusing.shutil, "which", lambda name: found)
    with caplog.at_level(logging.WARNING):
        allow_fusing(True)
    assert stances == ["force_eager" if told else "default"]
    assert told in caplog.text
    allow_fusing(False)
    assert stances[1:] == ["force_eager"]
