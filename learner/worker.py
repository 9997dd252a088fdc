"""One data-parallel rank of the learner: a plain, blocking class, called by `learner.group`.

The methods marked as collectives must run on all ranks at the same time.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actors.errors import CheckpointError
from actors.weights.layout import SentWeights, WeightLink
from configs.learner import LearnerConfig, Transport, WeightsConfig
from configs.schema import ModelConfig
from learner.batches.collate import Collator, FullViews
from learner.batches.plan import PiecePlan, RankPlan
from learner.batches.segments import choose_kernel
from learner.engine import (
    LearnerEngine,
    ShardedForward,
    abort_process_group,
    import_deepspeed,
    is_collective_failure,
    join_process_group,
    leave_process_group,
)
from learner.fusing import allow_fusing
from learner.hf_folder import save_hf
from learner.host import disable_malloc_trim, free_port, own_address
from learner.policies import Policies, WithoutAdapters
from learner.state.saving import StateKeeper
from learner.state.share_files import WrittenShare
from learner.state.snapshot import ReadRows, Share, ShareHeader
from learner.sync.sender import WeightSender
from learner.trainer import Trainer
from learner.update import UpdateInParts, UpdateReport
from learner.zero.gathering import join_collective


class LearnerRank:
    """Model, optimizer and reference of one rank.

    Call `start` first; before that, no memory or device is used. With `is_off_policy`, older policies may have sampled
    what it trains on, which the loss then corrects for.
    """

    def __init__(
        self,
        config: LearnerConfig,
        model: ModelConfig,
        *,
        seed: int,
        temperature: float,
        rank: int = 0,
        world_size: int = 1,
        weights: WeightsConfig | None = None,
        transport: Transport = "shared_memory",
        is_off_policy: bool = False,
    ) -> None:
        self._config = config
        self._model = model
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._weights = weights or WeightsConfig()
        self._transport = transport
        self._is_off_policy = is_off_policy
        self._device = torch.device("cuda" if config.num_gpus else "cpu")
        self._policies = Policies(config, model, seed=seed, temperature=temperature, device=self._device)
        self._working_engine: LearnerEngine | None = None
        """That of the group; read by other threads."""
        self._reference: Callable[..., Any] | None = None

    @property
    def num_passes(self) -> int:
        """Passes over micro-batches since the ranks met. Read by another thread than the one that works."""
        engine = self._working_engine
        return engine.num_passes if engine is not None else 0

    def prepare(self) -> None:
        """Do what needs no other rank, so that meeting them takes less time."""
        import_deepspeed(on_gpu=self._device.type == "cuda")
        self._policies.prepare()

    @staticmethod
    def is_cut_off(error: RuntimeError) -> bool:
        """Whether an error is that of a collective in which another rank is missing."""
        return is_collective_failure(error)

    def form(self, rank: int, world_size: int, address: str, port: int) -> None:
        """Join a group as this rank of it, and start anew; a group that this process was in is left. A collective.

        What of this process does not depend on the group is kept: its imports, and a reference policy held whole.
        """
        self.leave()
        self._rank, self._world_size = rank, world_size
        self.start(address, port)

    def leave(self) -> None:
        """Drop the policy, its optimizer and the group. Alone: the other ranks may be gone."""
        self._working_engine = None
        if "_sender" in vars(self):
            self._sender.close()
        if "_engine" in vars(self):
            self._engine.close()
        for bound in ("_keeper", "_trainer", "_sender", "_engine"):
            vars(self).pop(bound, None)  # a start that failed half-way has left some
        if isinstance(self._reference, ShardedForward | WithoutAdapters):
            self._reference.close()
            self._reference = None
        leave_process_group()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def abort(self) -> None:
        """Make the call in progress fail soon, because another rank is gone. From another thread."""
        if self._working_engine is not None:
            self._working_engine.is_discarded = True
        abort_process_group()

    def rendezvous(self) -> tuple[str, int]:
        """An address and a free port of this rank's machine, for the rendezvous of the ranks."""
        return own_address(), free_port()

    def start(self, address: str, port: int) -> None:
        """Join the other ranks and load the policy. A collective."""
        if self._device.type == "cpu":
            torch.set_num_threads(self._config.num_threads)
            disable_malloc_trim()
        else:
            allow_fusing(self._config.compile)
        join_process_group(
            rank=self._rank,
            world_size=self._world_size,
            address=address,
            port=port,
            timeout_s=self._config.update_timeout_s,
            on_gpu=self._device.type == "cuda",
        )
        self._policies.check_memory()
        torch.manual_seed(self._seed)  # the state of the generators is part of every checkpoint
        policy = self._policies.load_policy()
        self._image_token_id = int(policy.model.config.image_token_id)
        if self._config.gradient_checkpointing:
            # Not the tower: what it does twice is decided per vision pass.
            policy.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        self._engine = LearnerEngine(policy, self._config, dtype=self._policies.dtype)
        self._sender = WeightSender(
            {name.removeprefix("model."): shape for name, shape in self._engine.shapes().items()},
            dtype=self._policies.dtype,
            device=self._device,
            bucket_bytes=self._weights.bucket_mib << 20,
        )
        if self._config.chosen_objective.kl_coefficient > 0 and self._reference is None:
            # The policy at step 0 whatever the run resumes from, so it is loaded anew and never copied.
            self._reference = self._policies.load_reference(self._engine)
        self._trainer = Trainer(
            self._engine,
            self._reference,
            self._config,
            self._policies.recomputation(policy.model.model.language_model.layers),
            is_off_policy=self._is_off_policy,
        )
        self._working_engine = self._engine
        self._keeper = StateKeeper(self._engine, self._trainer, rank=self._rank)

    def update(self, plan: RankPlan, full_views: FullViews) -> UpdateReport:
        """A whole update in one part. A collective."""
        self.begin()
        self.learn(plan, full_views)
        return self.finish()

    def begin(self) -> None:
        """Begin an update; gradients of one that was not finished are dropped. A collective."""
        if self._trainer.has_gradients:
            self._trainer.discard(self._collator([]))
        self._trainer.take_seconds()
        self._running = UpdateInParts(self._engine.optimizer_step)

    def learn(self, plan: RankPlan, full_views: FullViews) -> int:
        """Learn from the next part of the update: an optimizer step for each full mini-batch. A collective.

        Returns the version of the weights after it.

        Raises:
            LearnerError: images and placeholders disagree, or too many consecutive steps were non-finite.
        """
        running = self._running
        assert not (self._is_off_policy and running.steps), "the policy before the update is needed for all of it"
        with self._working():
            proximal = self._proximal_logprobs(plan, full_views)
            for number, (piece, scored) in enumerate(zip(plan.mini_batches, proximal, strict=True), start=1):
                self.accumulate(piece, full_views, scored)
                if number < len(plan.mini_batches) or not plan.is_open:
                    running.steps.append(self.step())
        running.workload += plan.workload
        return self._engine.optimizer_step

    def finish(self) -> UpdateReport:
        """Finish the update, with a step for a last mini-batch that has fewer groups. A collective.

        Raises:
            LearnerError: too many consecutive steps were non-finite.
        """
        with self._working():
            if self._trainer.has_gradients:
                self._running.steps.append(self.step())
            self._sender.digest_ahead(self._engine.optimizer_step)
        return self._running.report(
            optimizer_step=self._engine.optimizer_step,
            others={
                "learner/skipped_updates": float(self._trainer.num_skipped),
                "learner/peak_memory_gib": self.peak_memory_bytes() / 2**30,
                **{f"time/learner_{name}": value for name, value in self._trainer.take_seconds().items()},
            },
        )

    @contextmanager
    def _working(self) -> Iterator[None]:
        """The body works on the update; in the end the device is free for the next part."""
        with self._running.working():
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize()

    def accumulate(
        self, piece: PiecePlan, full_views: FullViews, proximal_logprobs: Sequence[Tensor] | None = None
    ) -> None:
        """Add the gradients of some groups of a mini-batch to those since the last step. A collective.

        Args:
            proximal_logprobs: [N] of each micro-batch under the policy before the update; None where that is the
                present policy, or the one that sampled.

        Raises:
            LearnerError: images and placeholders disagree.
        """
        self._trainer.accumulate(piece, self._collator(full_views), proximal_logprobs)

    def _collator(self, full_views: FullViews) -> Collator:
        kernel = choose_kernel(self._device.type, self._policies.dtype)
        return Collator(full_views, self._policies.spec, image_token_id=self._image_token_id, kernel=kernel)

    def _proximal_logprobs(self, plan: RankPlan, full_views: FullViews) -> list[list[Tensor] | None]:
        """For each mini-batch [N] of its micro-batches under the policy before the update; None where no other pass is
        needed to know them.

        On-policy, the sampler's count as those. Off-policy, the first optimizer step starts from that very policy, and
        later ones need a forward pass before it. A collective.
        """
        if not self._is_off_policy:
            return [None] * len(plan.mini_batches)
        later = plan.mini_batches[1:]
        return [None, *(self._trainer.score(piece, self._collator(full_views)) for piece in later)]

    def step(self) -> dict[str, float]:
        """One optimizer step with what was accumulated; its metrics over all ranks. A collective.

        Raises:
            LearnerError: too many consecutive steps were non-finite.
        """
        return self._trainer.step()

    def open_weights(self, num_receivers: int) -> WeightLink:
        """Prepare to send to this number of receiving processes. Rank 0 alone.

        Raises:
            WeightSyncError: no room for it.
        """
        return self._sender.open(
            self._transport,
            num_receivers=num_receivers,
            timeout_s=self._weights.timeout_s,
            parameters=self._engine.resident_parameters(),
        )

    def join_weights(self) -> None:
        """Meet the receivers, which connect at the same time. Rank 0 alone."""
        self._sender.join()

    def send_weights(self) -> SentWeights | None:
        """Send the weights under version = optimizer step. A collective; rank 0 sends.

        Raises:
            WeightSyncError: they did not get through in time.
        """
        if self._sender.is_in_place:
            return self._sender.send((), self._engine.optimizer_step)
        parameters = self._parameters()
        if self._rank:
            join_collective(parameters)
            return None
        try:
            return self._sender.send(parameters, self._engine.optimizer_step)
        finally:
            join_collective(parameters)  # after a failed transfer, the other ranks still gather

    def read_weights(self, bucket: int) -> NDArray[np.uint8]:
        """A bucket uint8 [num_bytes] of the version sent last, for a machine that does not share its memory."""
        content: NDArray[np.uint8] = self._sender.read(bucket).cpu().numpy()
        return content

    def release_weights(self) -> None:
        """Free what the receivers have fetched. Rank 0 alone."""
        self._sender.release()

    def close_weights(self) -> None:
        """Leave the receivers. Rank 0 alone."""
        self._sender.close()

    def export_hf(self, folder: str | Path) -> None:
        """Write a folder that vLLM and transformers load, and in it the adapter, if there is one. A collective; rank 0
        writes."""
        adapters, parameters = self._engine.adapters(), self._parameters()
        if self._rank:
            join_collective(parameters)
            return
        try:
            save_hf(parameters, Path(folder), source=Path(self._model.path))
        finally:
            join_collective(parameters)  # after a failed write, the other ranks still gather
        self._policies.save_adapter(adapters, Path(folder))

    def snapshot(self) -> Share:
        """Copy this rank's part of the state to host memory, between updates. No other rank takes part in it.

        Its memory stays as it is until the share is dropped, whatever the learner does next. The newest two are kept
        here, to be saved. As long as no step was made, it is the same one.
        """
        return self._keeper.snapshot()

    def begin_save(self, url: str, folder: str, optimizer_step: int) -> None:
        """Begin to write the newest snapshot of this optimizer step into a folder of a storage, in the background.

        Raises:
            CheckpointError: there is none any more, or the last one is still being written.
        """
        self._formed_keeper().begin_save(url, folder, optimizer_step)

    def finish_save(self, timeout_s: float) -> WrittenShare:
        """Wait until it is written. May run beside an update.

        Raises:
            CheckpointError: it could not be written, or not in time.
        """
        return self._formed_keeper().finish_save(timeout_s)

    def _formed_keeper(self) -> StateKeeper:
        """For the threads that save beside everything else."""
        keeper: StateKeeper | None = vars(self).get("_keeper")
        if keeper is None:
            raise CheckpointError("the learner's ranks are changing, and what was to be saved with them")
        return keeper

    def restore(self, headers: Sequence[ShareHeader], read_rows: ReadRows) -> int:
        """Take over the state in these shares, written by any number of ranks under any ZeRO stage. A collective.

        Every rank is given all headers, and reads the shares that hold pieces which it needs (`Partition.wanted`).
        Returns the optimizer step.

        Raises:
            CheckpointError: shares are missing, of different steps or of another model. Then no rank has changed.
        """
        self._sender.forget_digests()
        return self._keeper.restore(headers, read_rows)

    def load(self, url: str, folder: str) -> int:
        """As `restore`, from a checkpoint's folder in a storage; each rank reads and verifies its own part.

        Raises:
            CheckpointError: it has no learner's state, is damaged, or of another model. Then no rank has changed.
        """
        self._sender.forget_digests()
        return self._keeper.load(url, folder)

    def peak_memory_bytes(self) -> int:
        """Peak memory so far: of the device, or on CPU of this process."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def shutdown(self) -> None:
        self.leave()

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((name.removeprefix("model."), tensor) for name, tensor in self._engine.parameters())
