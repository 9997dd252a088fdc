"""Log-probabilities of given tokens and the entropy of their distributions, without materializing all logits.

The output layer is called as one module, once per micro-batch: under ZeRO-3 each call gathers its weight from all
ranks, and ranks whose micro-batches have different numbers of tokens must still make the same number of calls. The
chunks that bound the memory are inside one autograd function, which recomputes the logits in the backward pass.

Legend: N tokens to score, C tokens of a chunk, W width of the language model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from learner.fusing import fuse

FORBIDDEN_LOGIT = -1e30
"""Logit of a forbidden id: its probability is exactly 0, and 0 * logit stays finite."""
MAX_LOGITS = 2**27
"""Maximum logits per chunk (512 MiB in float32)."""


class ScoringHead(nn.Linear):
    """The output layer of a language model. Scores targets if they are given; otherwise returns logits as usual."""

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


def _sampled_from(logits_CV: Tensor, is_forbidden_V: Tensor, temperature: float) -> Tensor:
    """Logits of the sampler's distribution, in float32 or wider; those given may be overwritten."""
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32)).div_(temperature)
    return logits_CV.masked_fill_(is_forbidden_V, FORBIDDEN_LOGIT)


def _scores(
    logits_CV: Tensor, targets_C: Tensor, is_forbidden_V: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability, entropy and normaliser, [C] each."""
    logits_CV = _sampled_from(logits_CV, is_forbidden_V, temperature)
    normaliser_C = logits_CV.logsumexp(-1)
    log_CV = logits_CV.sub_(normaliser_C[:, None])
    logprobs_C = log_CV.gather(1, targets_C[:, None]).squeeze(1)
    return logprobs_C, -log_CV.exp().mul_(log_CV).sum(-1), normaliser_C


def _logit_gradient(
    logits_CV: Tensor,
    targets_C: Tensor,
    normaliser_C: Tensor,
    entropy_C: Tensor,
    grad_logprobs_C: Tensor,
    grad_entropy_C: Tensor,
    is_forbidden_V: Tensor,
    temperature: float,
) -> Tensor:
    """d logprob / d logit_j = [j is the target] - p_j; d entropy / d logit_j = -p_j (log p_j + entropy)."""
    dtype = logits_CV.dtype
    log_CV = _sampled_from(logits_CV, is_forbidden_V, temperature).sub_(normaliser_C[:, None])
    probs_CV = log_CV.exp()
    shares_CV = log_CV.add_(entropy_C[:, None]).mul_(grad_entropy_C[:, None])
    grad_CV = shares_CV.add_(grad_logprobs_C[:, None]).mul_(probs_CV).neg_()
    is_target_CV = torch.arange(logits_CV.shape[1], device=targets_C.device) == targets_C[:, None]
    grad_CV.add_(grad_logprobs_C[:, None] * is_target_CV)
    return grad_CV.masked_fill_(is_forbidden_V, 0.0).div_(temperature).to(dtype)


_fused_scores = fuse(_scores, tokens_at=(0, 0))
_fused_logit_gradient = fuse(_logit_gradient, tokens_at=(0, 0, 0, 0, 0, 0))


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
        is_forbidden_V = forbidden.new_zeros(len(weight_VW), dtype=torch.bool).index_fill_(0, forbidden, True)
        for part in _slices(len(targets_N), chunk):
            logprobs_N[part], entropy_N[part], normaliser_N[part] = _fused_scores(
                hidden_NW[part] @ weight_VW.T, targets_N[part], is_forbidden_V, temperature
            )
        ctx.save_for_backward(hidden_NW, weight_VW, targets_N, is_forbidden_V, normaliser_N, entropy_N)
        ctx.temperature, ctx.chunk = temperature, chunk
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs_N: Tensor, grad_entropy_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_NW, weight_VW, targets_N, is_forbidden_V, normaliser_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden_NW = torch.empty_like(hidden_NW) if needs_hidden else None
        # Chunks are accumulated in float32 or wider, whatever the weight's dtype.
        grad_weight_VW = torch.zeros_like(weight_VW, dtype=normaliser_N.dtype) if needs_weight else None
        for part in _slices(len(targets_N), ctx.chunk):
            grad_CV = _fused_logit_gradient(
                hidden_NW[part] @ weight_VW.T,
                targets_N[part],
                normaliser_N[part],
                entropy_N[part],
                grad_logprobs_N[part],
                grad_entropy_N[part],
                is_forbidden_V,
                ctx.temperature,
            )
            if grad_hidden_NW is not None:
                grad_hidden_NW[part] = grad_CV @ weight_VW
            if grad_weight_VW is not None:
                grad_weight_VW += grad_CV.T @ hidden_NW[part]
        if grad_weight_VW is not None:
            grad_weight_VW = grad_weight_VW.to(weight_VW.dtype)
        return grad_hidden_NW, grad_weight_VW, None, None, None, None
