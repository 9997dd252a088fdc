"""One data-parallel rank of the learner: a plain, blocking class, called by `learner.group`.

The methods marked as collectives must run on all ranks at the same time.
"""

from __future__ import annotations

import itertools
import json
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from actors.errors import LearnerError
from actors.images import ViewSpec
from actors.prompts import vision_token_ids
from actors.weights.layout import SentWeights, WeightLink
from configs.learner import LearnerConfig, Transport, WeightsConfig
from configs.schema import ModelConfig
from learner.collate import Collator, FullViews
from learner.engine import (
    MOMENTS,
    LearnerEngine,
    construction,
    join_process_group,
    leave_process_group,
    sharded_forward,
)
from learner.hf_folder import save_hf
from learner.host import disable_malloc_trim, free_port, own_address
from learner.memory import memory_problem, read_shape
from learner.model import Policy, load_policy
from learner.plan import PiecePlan, RankPlan
from learner.recompute import Recomputation, device_room
from learner.segments import choose_kernel
from learner.sharding import learner_settings, part_sizes, reference_settings, shards_reference
from learner.state import Counters, check_shapes, read_counters, read_tensors, restore_rng, rng_states, write_state
from learner.trainer import Trainer
from learner.update import UpdateInParts, UpdateReport
from learner.weight_sender import WeightSender


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
        rank: int,
        world_size: int,
        seed: int,
        temperature: float,
        weights: WeightsConfig | None = None,
        transport: Transport = "shared_memory",
        is_off_policy: bool = False,
    ) -> None:
        self._config = config
        self._model = model
        self._rank = rank
        self._world_size = world_size
        self._seed = seed
        self._temperature = temperature
        self._weights = weights or WeightsConfig()
        self._transport = transport
        self._is_off_policy = is_off_policy
        self._device = torch.device("cuda" if config.num_gpus else "cpu")

    def rendezvous(self) -> tuple[str, int]:
        """An address and a free port of this rank's machine, for the rendezvous of the ranks."""
        return own_address(), free_port()

    def start(self, address: str, port: int) -> None:
        """Join the other ranks and load the policy. A collective."""
        if self._device.type == "cpu":
            torch.set_num_threads(self._config.num_threads)
            disable_malloc_trim()
        join_process_group(
            rank=self._rank,
            world_size=self._world_size,
            address=address,
            port=port,
            timeout_s=self._config.update_timeout_s,
            on_gpu=self._device.type == "cuda",
        )
        self._check_memory()
        disable_progress_bar()
        self._spec = ViewSpec.from_model(
            self._model.path, min_pixels=self._model.min_pixels, max_pixels=self._model.max_pixels
        )
        tokenizer = AutoTokenizer.from_pretrained(self._model.path, local_files_only=True)
        self._forbidden_ids = vision_token_ids(tokenizer)
        torch.manual_seed(self._seed)  # the state of the generators is part of every checkpoint
        policy = self._load_policy(learner_settings(self._config, self._dtype))
        self._image_token_id = int(policy.model.config.image_token_id)
        if self._config.gradient_checkpointing:
            # Not the tower: what it does twice is decided per vision pass.
            policy.model.model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        policy.model.model.visual.requires_grad_(self._config.train_vision)
        self._engine = LearnerEngine(policy, self._config, dtype=self._dtype)
        self._sender = WeightSender(
            {name.removeprefix("model."): shape for name, shape in self._engine.shapes().items()},
            dtype=self._dtype,
            device=self._device,
            bucket_bytes=self._weights.bucket_mib << 20,
        )
        reference = None
        if self._config.kl_coefficient > 0:
            # The policy at step 0 whatever the run resumes from, so it is loaded anew and never copied.
            reference = self._load_reference()
        self._trainer = Trainer(
            self._engine,
            reference,
            self._config,
            self._recomputation(policy.model.model.language_model.layers),
            is_off_policy=self._is_off_policy,
        )

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
        kernel = choose_kernel(self._device.type, self._dtype)
        return Collator(full_views, self._spec, image_token_id=self._image_token_id, kernel=kernel)

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
        """Write a folder that vLLM and transformers load. A collective; rank 0 writes."""
        parameters = self._parameters()
        if self._rank:
            join_collective(parameters)
            return
        try:
            save_hf(parameters, Path(folder), source=Path(self._model.path))
        finally:
            join_collective(parameters)  # after a failed write, the other ranks still gather

    def save(self, folder: str | Path) -> None:
        """Write the learner's state (rule G of the reliability rules). A collective; rank 0 writes.

        Raises:
            CheckpointError: it could not be written.
        """
        state = self._engine.state()
        if self._rank:
            join_collective(state)
            return
        counters = Counters(
            optimizer_step=self._engine.optimizer_step,
            num_skipped=self._trainer.num_skipped,
            num_skipped_in_a_row=self._trainer.num_skipped_in_a_row,
        )
        try:
            write_state(Path(folder), counters, itertools.chain(state, rng_states()))
        finally:
            join_collective(state)  # after a failed write, the other ranks still gather

    def load(self, folder: str | Path) -> int:
        """Load a saved state, whatever the number of ranks or the ZeRO stage that wrote it. A collective.

        Returns the optimizer step. Raises CheckpointError if it is not a learner's state, or another model's.
        """
        source = Path(folder)
        counters = read_counters(source)
        check_shapes(source, self._engine.trained_shapes())
        learned = read_tensors(source, ("weight/", *(f"{moment}/" for moment in MOMENTS)))
        self._engine.load_state(learned, optimizer_step=counters.optimizer_step)
        self._sender.forget_digests()
        self._trainer.num_skipped = counters.num_skipped
        self._trainer.num_skipped_in_a_row = counters.num_skipped_in_a_row
        restore_rng(read_tensors(source, "rng/"))
        return self._engine.optimizer_step

    def peak_memory_bytes(self) -> int:
        """Peak memory so far: of the device, or on CPU of this process."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def shutdown(self) -> None:
        self._sender.close()
        leave_process_group()

    @property
    def _dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._model.dtype == "bfloat16" else torch.float32

    def _check_memory(self) -> None:
        """Refuse what cannot fit this rank's GPU, which the driver may not see."""
        if self._device.type != "cuda":
            return
        problem = memory_problem(
            self._model_config(),
            self._config,
            in_bfloat16=self._dtype == torch.bfloat16,
            gpu_bytes=torch.cuda.mem_get_info()[1],
        )
        if problem:
            raise LearnerError(problem)

    def _recomputation(self, layers: Sequence[Any]) -> Recomputation:
        shape, item = read_shape(self._model_config()), self._dtype.itemsize
        on_gpu = self._device.type == "cuda"
        room = device_room(self._device, self._config, shape, item=item) if on_gpu else None
        return Recomputation(layers, self._config, shape, item=item, room=room)

    def _model_config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((Path(self._model.path) / "config.json").read_text())
        return found

    def _load_policy(self, settings: dict[str, Any]) -> Policy:
        model = load_policy(
            self._model.path,
            load=self._model.load,
            dtype=self._dtype,
            device=self._device,
            seed=self._seed,
            construction=construction(settings),
        )
        return Policy(model, temperature=self._temperature, forbidden_ids=self._forbidden_ids)

    def _load_reference(self) -> Callable[..., Any]:
        if not shards_reference(self._config):
            return self._load_policy(learner_settings(self._config, self._dtype)).eval().requires_grad_(False)
        reference = self._load_policy(reference_settings(self._config, self._dtype)).eval().requires_grad_(False)
        return sharded_forward(reference, reference_settings(self._config, self._dtype, part_sizes(reference)))

    def _parameters(self) -> Iterator[tuple[str, Tensor]]:
        return ((name.removeprefix("model."), tensor) for name, tensor in self._engine.parameters())


def join_collective(items: Iterable[object]) -> None:
    """Iterate to the end, to take part in the collectives behind it, and discard the items: another rank uses them."""
    deque(items, maxlen=0)
