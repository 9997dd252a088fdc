"""Log-probabilities of given tokens and the entropy of their distributions, without ever holding all logits.

The output layer is called as one module, once per micro-batch: under ZeRO-3 each call gathers its weight from all
ranks, and ranks whose micro-batches have different numbers of tokens must still make the same number of calls. The
chunks that bound the memory lie inside one autograd function, which works the logits out again in the backward pass.

Legend: N tokens to score, C tokens of a chunk, W width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FORBIDDEN_LOGIT = -1e30
"""Logit of an id that the sampler may not draw: its probability is exactly 0, and 0 * logit stays finite."""
MAX_LOGITS = 2**27
"""Logits of one chunk at most (512 MiB in float32)."""


class ScoringHead(nn.Linear):
    """The output layer of a language model. With targets it scores them; without, it gives logits as before."""

    def forward(
        self,
        hidden_NW: Tensor,
        targets_N: Tensor | None = None,
        forbidden: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Any:
        """Logits [N, V], or (log-probability, entropy), float32 [N] each, of the targets.

        The distribution is the sampler's: logits over temperature, the ids in `forbidden` left out.
        """
        if targets_N is None:
            return super().forward(hidden_NW)
        assert self.bias is None, "an output layer without bias"
        if forbidden is None:
            forbidden = targets_N.new_empty(0)
        chunk = max(1, MAX_LOGITS // self.out_features)
        return _ChunkedScores.apply(hidden_NW, self.weight, targets_N, forbidden, temperature, chunk)


def _logits(hidden_CW: Tensor, weight_VW: Tensor, forbidden: Tensor, temperature: float) -> Tensor:
    """Logits [C, V] of the sampler's distribution, in float32 or wider."""
    logits_CV = hidden_CW @ weight_VW.T
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)).div_(temperature)
    return logits_CV.index_fill_(1, forbidden, FORBIDDEN_LOGIT)


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, total, size))


class _ChunkedScores(torch.autograd.Function):
    """(hidden [N, W], weight [V, W], targets [N]) -> (log-probabilities [N], entropies [N])."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NW: Tensor,
        weight_VW: Tensor,
        targets_N: Tensor,
        forbidden: Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_NW.dtype, torch.float32)
        logprobs_N, entropy_N, normaliser_N = (
            torch.empty(len(targets_N), dtype=dtype, device=hidden_NW.device) for _ in range(3)
        )
        for part in _slices(len(targets_N), chunk):
            logits_CV = _logits(hidden_NW[part], weight_VW, forbidden, temperature)
            normaliser_N[part] = logits_CV.logsumexp(-1)
            log_CV = logits_CV.sub_(normaliser_N[part, None])
            logprobs_N[part] = log_CV.gather(1, targets_N[part, None]).squeeze(1)
            entropy_N[part] = -log_CV.exp().mul_(log_CV).sum(-1)
        ctx.save_for_backward(hidden_NW, weight_VW, targets_N, forbidden, normaliser_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        """d logprob / d logit_j = [j is the target] - p_j; d entropy / d logit_j = -p_j (log p_j + entropy)."""
        hidden_NW, weight_VW, targets_N, forbidden, normaliser_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_NW = torch.empty_like(hidden_NW) if needs_hidden else None
        # Chunks add up in float32 or wider, whatever the weight's dtype.
        grad_weight_VW = torch.zeros_like(weight_VW, dtype=normaliser_N.dtype) if needs_weight else None
        for part in _slices(len(targets_N), ctx.chunk):
            log_CV = _logits(hidden_NW[part], weight_VW, forbidden, ctx.temperature).sub_(normaliser_N[part, None])
            probs_CV = log_CV.exp()
            shares_CV = log_CV.add_(entropy_N[part, None]).mul_(grad_entropy_N[part, None])
            grad_CV = shares_CV.add_(grad_logprobs_N[part, None]).mul_(probs_CV).neg_()
            grad_CV.scatter_add_(1, targets_N[part, None], grad_logprobs_N[part, None])
            grad_CV = grad_CV.index_fill_(1, forbidden, 0.0).div_(ctx.temperature).to(weight_VW.dtype)
            if grad_hidden_NW is not None:
                grad_hidden_NW[part] = grad_CV @ weight_VW
            if grad_weight_VW is not None:
                grad_weight_VW += grad_CV.T @ hidden_NW[part]
        if grad_weight_VW is not None:
            grad_weight_VW = grad_weight_VW.to(weight_VW.dtype)
        return grad_hidden_NW, grad_weight_VW, None, None, None, None
