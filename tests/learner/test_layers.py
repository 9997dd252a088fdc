import pytest
import torch
from torch import nn
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from learner.layers import ALIGNMENT, FusedRMSNorm, NarrowLinear, WideLinear, use_fused_layers
from learner.vision import rotary_embeddings, rotate


class Settings:
    hidden_size, hidden_act = 24, "silu"

    def __init__(self, inner):
        self.intermediate_size = inner


def pair(inner, bias):
    """The library's MLP between two norms, twice with the same weights; the second with our layers."""
    torch.manual_seed(0)
    models = []
    for _ in range(2):
        mlp = qwen.Qwen2_5_VLMLP(Settings(inner), bias=bias)
        models.append(nn.Sequential(qwen.Qwen2_5_VLRMSNorm(24), mlp, qwen.Qwen2_5_VLRMSNorm(24)))
    models[0][0].weight.data.uniform_(0.5, 2)
    models[1].load_state_dict(models[0].state_dict())
    use_fused_layers(models[1], norms=(qwen.Qwen2_5_VLRMSNorm,), gated_mlps=(qwen.Qwen2_5_VLMLP,))
    return models


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inner", [20, ALIGNMENT, 100, 3 * ALIGNMENT])
def test_layers_give_the_librarys_values_and_gradients(inner, bias):
    theirs, ours = pair(inner, bias)
    given = torch.randn(7, 24)
    found, expected = ours(given), theirs(given)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    for (name, parameter), other in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_only_what_is_not_aligned_is_padded_and_the_state_keeps_its_shapes():
    theirs, ours = pair(100, bias=True)
    assert isinstance(ours[0], FusedRMSNorm)
    assert isinstance(ours[1].gate_proj, WideLinear)
    assert isinstance(ours[1].down_proj, NarrowLinear)
    assert ours[1].gate_proj(torch.zeros(3, 24)).shape == (3, 2 * ALIGNMENT)
    shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (theirs, ours)]
    assert shapes[0] == shapes[1]
    assert type(pair(ALIGNMENT, bias=True)[1][1].gate_proj) is nn.Linear


def test_the_rotation_gives_the_librarys_values_and_gradients():
    torch.manual_seed(0)
    cos, sin = rotary_embeddings(torch.randint(0, 9, (11, 2)), 16)
    ours = torch.randn(11, 2, 3, 16, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found = rotate(ours, cos, sin)
    expected = torch.stack(qwen.apply_rotary_pos_emb_vision(theirs[:, 0], theirs[:, 1], cos, sin), dim=1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-6)
    in_half = rotate(ours.detach().bfloat16(), cos, sin)
    assert in_half.dtype == torch.bfloat16
    torch.testing.assert_close(in_half.float(), expected.detach(), atol=2e-2, rtol=2e-2)
