"""Learning from the pieces of a mini-batch: one pass of the vision tower per view, micro-batches, optimizer steps.

Each view is encoded once per piece, whatever number of micro-batches shows it. The micro-batches read the features from
one leaf tensor, which adds their gradients up in float32; in the end the tower is backpropagated once. A piece with a
single vision pass keeps its graph meanwhile if there is memory for it. Otherwise each is encoded a second time when its
gradient is known, so that memory holds the activations of one pass, and not beside those of a micro-batch.

Legend: N generated tokens of a micro-batch, S visual tokens of all views of a piece, W width of the language model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import LearnerError
from configs.learner import LearnerConfig
from learner.collate import Collator, MicroBatch, VisionPass
from learner.engine import LearnerEngine
from learner.loss import MAXIMA, SUMS, LossInputs, LossOutput, grpo_loss, token_metrics
from learner.plan import PiecePlan, piece_without_a_finite_loss
from learner.prefetch import prefetch_one
from learner.timing import StageClock


class Trainer:
    """Accumulates pieces and steps. All methods but `take_seconds` are collectives."""

    def __init__(
        self,
        engine: LearnerEngine,
        reference: Callable[..., Any] | None,
        config: LearnerConfig,
        *,
        is_off_policy: bool = False,
    ) -> None:
        self._engine = engine
        self._reference = reference
        self._config = config
        self._is_off_policy = is_off_policy
        self._device = engine.device
        self._clock = StageClock(self._device)
        self._clear()
        self.num_skipped_in_a_row = 0
        self.num_skipped = 0

    @torch.no_grad()
    def score(self, piece: PiecePlan, collator: Collator) -> list[Tensor]:
        """Log-probabilities [N] of each micro-batch of a piece under the present policy."""
        features_SW = torch.cat([self._engine(each) for each in self._vision_passes(piece, collator)]).float()
        with self._clock.stage("proximal_s"):
            return [self._engine(batch, features_SW)[0] for batch in self._micro_batches(piece, collator)]

    def accumulate(
        self, piece: PiecePlan, collator: Collator, proximal_logprobs: Sequence[Tensor] | None = None
    ) -> None:
        """Add the gradients of a piece to those since the last step.

        Vision passes and micro-batches are collated on the host, the next one while the device works on the one before
        it, so that micro-batches in memory do not grow with the piece.

        Args:
            proximal_logprobs: [N] of each micro-batch under the policy before the update; None where that is the
                present policy, or the one that sampled.

        Raises:
            LearnerError: images and placeholders disagree.
        """
        self.has_gradients = True
        passes, encoded, reference_SW = self._encode(piece, collator)
        features_SW = torch.cat([each.detach() for each in encoded]).float().requires_grad_(self._config.train_vision)
        if encoded[0].grad_fn is None:
            encoded = []
        for index, batch in enumerate(self._micro_batches(piece, collator)):
            self._learn(batch, features_SW, proximal_logprobs[index] if proximal_logprobs else None, reference_SW)
        if self._config.train_vision:
            assert features_SW.grad is not None, "every micro-batch reads the features"
            self._backpropagate_vision(passes, encoded, features_SW.grad)

    def step(self) -> dict[str, float]:
        """One optimizer step with all pieces since the last one; its metrics over all ranks.

        `is_applied` is 0 for a skipped step.

        Raises:
            LearnerError: too many consecutive steps were non-finite.
        """
        with self._clock.stage("optimizer_s"):
            dist.all_reduce(self._totals)
            dist.all_reduce(self._maxima, op=dist.ReduceOp.MAX)
            result = self._engine.step()
        totals, maxima = self._totals, self._maxima
        self._clear()
        self._count_skips(result.is_applied)
        return {
            "loss": float(totals[0]),
            **token_metrics(totals[1:], maxima),
            "grad_norm": result.grad_norm,
            "is_applied": float(result.is_applied),
        }

    def discard(self, collator: Collator) -> None:
        """Drop the gradients since the last step.

        Under each ZeRO stage DeepSpeed keeps other sums of them, and clears them all in a step that it skips, so that a
        piece without a finite loss is added to them.
        """
        self.accumulate(piece_without_a_finite_loss(), collator)
        result = self._engine.step()
        assert not result.is_applied, "it was not finite"
        self._clear()

    def take_seconds(self) -> dict[str, float]:
        """Seconds by stage since the last call."""
        seconds, self._clock = self._clock.seconds(), StageClock(self._device)
        return seconds

    def _clear(self) -> None:
        self.has_gradients = False
        """Whether pieces were accumulated since the last step."""
        self._totals = torch.zeros(1 + len(SUMS), dtype=torch.float64, device=self._device)
        self._maxima = torch.zeros(len(MAXIMA), dtype=torch.float64, device=self._device)

    @property
    def _keeps_graphs(self) -> bool:
        """Whether the graph of a vision pass may outlive micro-batches: there is memory for it, and it is not ZeRO-3,
        where a backward pass directly follows its forward pass."""
        return self._config.train_vision and not self._config.gradient_checkpointing and self._config.zero_stage < 3

    def _encode(self, piece: PiecePlan, collator: Collator) -> tuple[list[VisionPass], list[Tensor], Tensor | None]:
        """The passes on the device, their features by the policy, and those of all passes by the reference [S, W]."""
        passes: list[VisionPass] = []
        encoded: list[Tensor] = []
        by_reference: list[Tensor] = []
        keeps_graph = len(piece.vision_passes) == 1 and self._keeps_graphs
        for vision_pass in self._vision_passes(piece, collator):
            passes.append(vision_pass)
            with self._clock.stage("vision_s"), torch.set_grad_enabled(keeps_graph):
                encoded.append(self._engine(vision_pass))
            with self._clock.stage("reference_s"), torch.no_grad():
                if self._reference is not None:
                    by_reference.append(self._reference(vision_pass))
        return passes, encoded, torch.cat(by_reference) if by_reference else None

    def _vision_passes(self, piece: PiecePlan, collator: Collator) -> Iterator[VisionPass]:
        """The vision passes of a piece on the device."""
        ahead = prefetch_one(map(collator.vision_pass, piece.vision_passes), timeout_s=self._config.update_timeout_s)
        with closing(ahead):
            for _ in piece.vision_passes:
                with self._clock.stage("collate_s"):
                    vision_pass = next(ahead).to(self._device)
                yield vision_pass

    def _micro_batches(self, piece: PiecePlan, collator: Collator) -> Iterator[MicroBatch]:
        """The micro-batches of a piece on the device."""
        ahead = prefetch_one(map(collator.micro_batch, piece.micro_batches), timeout_s=self._config.update_timeout_s)
        with closing(ahead):
            for _ in piece.micro_batches:
                with self._clock.stage("collate_s"):
                    batch = next(ahead).to(self._device)
                yield batch

    def _learn(
        self,
        batch: MicroBatch,
        features_SW: Tensor,
        proximal_logprobs_N: Tensor | None,
        reference_SW: Tensor | None,
    ) -> None:
        reference_logprobs_N = None
        with self._clock.stage("reference_s"), torch.no_grad():
            if self._reference is not None:
                reference_logprobs_N = self._reference(batch, reference_SW)[0]
        with self._clock.stage("forward_backward_s"):
            output = self._loss(batch, features_SW, proximal_logprobs_N, reference_logprobs_N)
            self._engine.backward(output.loss)
            self._totals += torch.cat([output.loss.detach().double().reshape(1), output.sums])
            self._maxima = torch.maximum(self._maxima, output.maxima)

    def _backpropagate_vision(self, passes: list[VisionPass], encoded: list[Tensor], gradient_SW: Tensor) -> None:
        """Backpropagate the features' gradient through each pass; without graphs in `encoded` it is encoded again."""
        sizes = [each.num_visual_tokens for each in passes]
        for index, gradient in enumerate(torch.split(gradient_SW, sizes)):
            with self._clock.stage("vision_s"):
                features = encoded[index] if encoded else self._engine(passes[index])
                self._engine.backward_through(features, gradient)

    def _loss(
        self,
        batch: MicroBatch,
        features_SW: Tensor,
        proximal_logprobs_N: Tensor | None,
        reference_logprobs_N: Tensor | None,
    ) -> LossOutput:
        logprobs_N, entropy_N = self._engine(batch, features_SW)
        if proximal_logprobs_N is None:
            proximal_logprobs_N = logprobs_N.detach() if self._is_off_policy else batch.sampler_logprobs_N
        return grpo_loss(
            LossInputs(
                logprobs_N=logprobs_N,
                entropy_N=entropy_N,
                sampler_logprobs_N=batch.sampler_logprobs_N,
                proximal_logprobs_N=proximal_logprobs_N,
                reference_logprobs_N=reference_logprobs_N,
                advantages_N=batch.advantages_N,
                weights_N=batch.weights_N,
            ),
            clip_low=self._config.clip_low,
            clip_high=self._config.clip_high,
            importance_sampling_cap=self._config.importance_sampling_cap,
            kl_coefficient=self._config.kl_coefficient,
            entropy_coefficient=self._config.entropy_coefficient,
        )

    def _count_skips(self, is_applied: bool) -> None:
        self.num_skipped_in_a_row = 0 if is_applied else self.num_skipped_in_a_row + 1
        self.num_skipped += int(not is_applied)
        if self.num_skipped_in_a_row >= self._config.max_skipped_updates:
            raise LearnerError(
                f"{self.num_skipped_in_a_row} optimizer steps in a row had a non-finite loss or gradient "
                f"(learner.max_skipped_updates={self._config.max_skipped_updates}), the last after step "
                f"{self._engine.optimizer_step}"
            )
