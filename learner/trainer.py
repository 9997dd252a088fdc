"""Learning from the pieces of a mini-batch: one pass of the vision tower per view, micro-batches, optimizer steps.

Each view is encoded once per piece, whatever number of micro-batches shows it. The micro-batches of a round read the
features from one leaf tensor, which adds their gradients up in float32; in the end the tower is backpropagated once. A
round with a single vision pass keeps its graph meanwhile if there is memory for it (`learner.recompute`), and the
backward pass of its last micro-batch goes on through the tower: DeepSpeed handles all gradients at the end of each.
Otherwise every pass is encoded a second time when its gradient is known, so that memory holds the activations of one
pass, and not beside those of a micro-batch.

Legend: N generated tokens of a micro-batch, S visual tokens of the views of a round, W values of a visual token's
features: the width of the language model, once more for each deep-stack feature.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.errors import LearnerError
from configs.learner import LearnerConfig
from learner.batches.collate import Collator, MicroBatch, VisionPass
from learner.batches.plan import PiecePlan, piece_without_a_finite_loss
from learner.batches.prefetch import prefetch_one
from learner.engine import LearnerEngine
from learner.loss import MAXIMA, SUMS, LossInputs, LossOutput, policy_loss, token_metrics
from learner.recompute import Recomputation
from learner.timing import StageClock


class Trainer:
    """Accumulates pieces and steps. All methods but `take_seconds` are collectives."""

    def __init__(
        self,
        engine: LearnerEngine,
        reference: Callable[..., Any] | None,
        config: LearnerConfig,
        recomputation: Recomputation,
        *,
        is_off_policy: bool = False,
    ) -> None:
        self._engine = engine
        self._recomputation = recomputation
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
        scored = []
        for planned, collated in self._rounds(piece, collator):
            encoded = [self._engine(next(collated)) for _ in planned.vision_passes]
            features_SW = torch.cat(encoded).float()
            with self._clock.stage("proximal_s"):
                scored += [self._engine(next(collated), features_SW)[0] for _ in planned.micro_batches]
        return scored

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
        proximal = iter(proximal_logprobs) if proximal_logprobs else itertools.repeat(None)
        for planned, collated in self._rounds(piece, collator):
            self._accumulate(planned, collated, proximal)

    def _accumulate(
        self, planned: PiecePlan, collated: Iterator[Any], proximal_logprobs: Iterator[Tensor | None]
    ) -> None:
        """Add the gradients of a round."""
        passes, encoded, reference_SW = self._encode(planned, collated)
        whole_SW = torch.cat(encoded).float()
        # Adds the gradients of the micro-batches up. The last one leads into the tower's graph, if that has stayed.
        leaf_SW = whole_SW.detach().requires_grad_(self._config.train_vision)
        last = len(planned.micro_batches) - 1 if whole_SW.requires_grad else None
        for index in range(len(planned.micro_batches)):
            through = (whole_SW, leaf_SW.grad) if index == last and leaf_SW.grad is not None else None
            features_SW = whole_SW if index == last else leaf_SW
            self._learn(next(collated), features_SW, next(proximal_logprobs), reference_SW, through)
        if self._config.train_vision and last is None:
            assert leaf_SW.grad is not None, "every micro-batch reads the features"
            self._encode_again(passes, leaf_SW.grad)

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

    def _encode(
        self, planned: PiecePlan, collated: Iterator[Any]
    ) -> tuple[list[VisionPass], list[Tensor], Tensor | None]:
        """The passes on the device, their features by the policy, and those of all passes by the reference [S, W]."""
        passes: list[VisionPass] = []
        encoded: list[Tensor] = []
        by_reference: list[Tensor] = []
        keeps_graph = self._recomputation.keeps_graph(
            num_visual_tokens=planned.num_visual_tokens,
            num_passes=len(planned.vision_passes),
            num_tokens=planned.most_tokens,
        )
        for _ in planned.vision_passes:
            vision_pass = next(collated)
            passes.append(vision_pass)
            with self._clock.stage("vision_s"), torch.set_grad_enabled(keeps_graph):
                encoded.append(self._engine(vision_pass))
            with self._clock.stage("reference_s"), torch.no_grad():
                if self._reference is not None:
                    by_reference.append(self._reference(vision_pass))
        return passes, encoded, torch.cat(by_reference) if by_reference else None

    def _rounds(self, piece: PiecePlan, collator: Collator) -> Iterator[tuple[PiecePlan, Iterator[Any]]]:
        """The rounds of a piece, each with its vision passes and then its micro-batches on the device.

        They are collated on the host, the next one while the device works on the one before it.
        """
        rounds = piece.rounds()

        def collate() -> Iterator[VisionPass | MicroBatch]:
            for planned in rounds:
                collator.begin_round()
                yield from map(collator.vision_pass, planned.vision_passes)
                yield from map(collator.micro_batch, planned.micro_batches)

        def on_device() -> Iterator[VisionPass | MicroBatch]:
            while True:
                with self._clock.stage("collate_s"):
                    each = next(ahead).to(self._device)
                yield each

        with closing(prefetch_one(collate(), timeout_s=self._config.update_timeout_s)) as ahead:
            collated = on_device()
            for planned in rounds:
                yield planned, collated

    def _learn(
        self,
        batch: MicroBatch,
        features_SW: Tensor,
        proximal_logprobs_N: Tensor | None,
        reference_SW: Tensor | None,
        through: tuple[Tensor, Tensor] | None,
    ) -> None:
        reference_logprobs_N = None
        with self._clock.stage("reference_s"), torch.no_grad():
            if self._reference is not None:
                reference_logprobs_N = self._reference(batch, reference_SW)[0]
        with self._clock.stage("forward_backward_s"):
            output = self._loss_in_memory(batch, features_SW, proximal_logprobs_N, reference_logprobs_N)
            self._engine.backward(output.loss, through)
            self._totals += torch.cat([output.loss.detach().double().reshape(1), output.sums])
            self._maxima = torch.maximum(self._maxima, output.maxima)

    def _encode_again(self, passes: list[VisionPass], gradient_SW: Tensor) -> None:
        """Encode each pass anew and backpropagate the features' gradient through it."""
        sizes = [each.num_visual_tokens for each in passes]
        for vision_pass, gradient in zip(passes, torch.split(gradient_SW, sizes), strict=True):
            with self._clock.stage("vision_s"):
                self._engine.backward_through(self._engine(vision_pass), gradient)

    def _loss_in_memory(self, batch: MicroBatch, *given: Any) -> LossOutput:
        """The loss; if the activations do not fit after all, those that can be recomputed are not kept."""
        num_tokens = len(batch.token_ids_T)
        self._recomputation.prepare(num_tokens)
        try:
            return self._loss(batch, *given)
        except torch.OutOfMemoryError:
            if not self._recomputation.give_way(num_tokens):
                raise
        torch.cuda.empty_cache()  # from here on nothing holds the activations of the first attempt
        return self._loss(batch, *given)

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
        given = LossInputs(
            logprobs_N=logprobs_N,
            entropy_N=entropy_N,
            sampler_logprobs_N=batch.sampler_logprobs_N,
            proximal_logprobs_N=proximal_logprobs_N,
            reference_logprobs_N=reference_logprobs_N,
            episode_of_N=batch.episode_of_N,
            advantages_N=batch.advantages_N,
            weights_N=batch.weights_N,
        )
        return policy_loss(given, self._config.chosen_objective)

    def _count_skips(self, is_applied: bool) -> None:
        self.num_skipped_in_a_row = 0 if is_applied else self.num_skipped_in_a_row + 1
        self.num_skipped += int(not is_applied)
        if self.num_skipped_in_a_row >= self._config.max_skipped_updates:
            raise LearnerError(
                f"{self.num_skipped_in_a_row} optimizer steps in a row had a non-finite loss or gradient "
                f"(learner.max_skipped_updates={self._config.max_skipped_updates}), the last after step "
                f"{self._engine.optimizer_step}"
            )
