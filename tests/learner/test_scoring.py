import pytest
import torch
import torch.nn.functional as F
from torch import nn

from learner import scoring
from learner.scoring import ScoringHead

VOCABULARY, WIDTH = 23, 6
FORBIDDEN = torch.tensor([2, 7, 11])
TARGETS = torch.tensor([0, 5, 5, 22, 7, 13, 1])
"""The fifth is a forbidden id."""


def drawn(dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    head = ScoringHead(WIDTH, VOCABULARY, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64))
    hidden = torch.randn(len(TARGETS), WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    return head, hidden.requires_grad_()


def naive(weight, hidden, targets, forbidden, temperature):
    """The same with all logits at once, and gradients by autograd."""
    logits = F.linear(hidden, weight) / temperature
    logprobs = F.log_softmax(logits.index_fill(1, forbidden, scoring.FORBIDDEN_LOGIT), dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(-1)


@pytest.fixture(params=[1, 2, 3, 7, 100], ids="chunks of {}".format)
def chunk(request, monkeypatch):
    monkeypatch.setattr(scoring, "MAX_LOGITS", request.param * VOCABULARY)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("forbidden", [FORBIDDEN, FORBIDDEN[:0]], ids=["some forbidden", "none forbidden"])
def test_scores_and_gradients_are_those_of_all_logits_at_once(temperature, forbidden):
    head, hidden = drawn()
    targets = torch.where(torch.isin(TARGETS, forbidden), 0, TARGETS)
    upstream = torch.randn(2, len(targets), generator=torch.Generator().manual_seed(1))
    found = []
    for score in (head, lambda *given: naive(head.weight, *given)):
        head.weight.grad = hidden.grad = None
        logprobs, entropies = score(hidden, targets, forbidden, temperature)
        (upstream[0] * logprobs + upstream[1] * entropies).sum().backward()
        found.append([logprobs.detach(), entropies.detach(), hidden.grad, head.weight.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("chunk")
def test_the_gradients_are_those_of_finite_differences():
    head, hidden = drawn(torch.float64)
    weight = head.weight.detach().clone().requires_grad_()
    allowed = torch.where(TARGETS == 7, 0, TARGETS)

    def score(hidden, weight):
        return torch.func.functional_call(head, {"weight": weight}, (hidden, allowed, FORBIDDEN, 0.9))

    torch.autograd.gradcheck(score, (hidden, weight))


def test_a_forbidden_target_moves_nothing():
    head, hidden = drawn()
    logprobs, entropies = head(hidden, torch.full_like(TARGETS, 7), FORBIDDEN, 1.0)
    assert logprobs.max() < scoring.FORBIDDEN_LOGIT / 2
    (logprobs.sum() + 0 * entropies.sum()).backward()
    assert torch.isfinite(head.weight.grad).all()
    assert head.weight.grad[FORBIDDEN].count_nonzero() == 0


def test_no_tensor_has_more_than_a_chunks_logits(monkeypatch):
    vocabulary, tokens = 5000, 64
    monkeypatch.setattr(scoring, "MAX_LOGITS", 4 * vocabulary)
    head = ScoringHead(WIDTH, vocabulary, bias=False)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in (found if isinstance(found, tuple) else [found]) if torch.is_tensor(t))
            return found

    with Watch():
        logprobs, entropies = head(torch.randn(tokens, WIDTH, requires_grad=True), torch.arange(tokens))
        (logprobs.sum() + entropies.sum()).backward()
    assert max(sizes) == max(4 * vocabulary, WIDTH * vocabulary) < tokens * vocabulary


def test_bfloat16_chunks_add_their_weight_gradients_up_in_float32(monkeypatch):
    """512 chunks of one token each: in bfloat16 all but the first few would be lost."""
    head = ScoringHead(1, 2, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        head.weight.zero_()
    hidden, targets = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.long)
    monkeypatch.setattr(scoring, "MAX_LOGITS", 2)
    weights = torch.tensor([1.0] + [0.002] * 511)
    (head(hidden, targets)[0] * weights).sum().backward()
    assert head.weight.grad[0].item() == pytest.approx(0.5 * (1 + 511 * 0.002), rel=1e-2)


def test_without_targets_the_head_gives_logits():
    head, hidden = drawn()
    torch.testing.assert_close(head(hidden), nn.functional.linear(hidden, head.weight))
