"""Which activations stay for the backward pass, and which are computed again: as the memory of the device allows.

Decided before each vision pass and micro-batch. Numbers do not depend on it. On a CPU the settings alone decide, and
under ZeRO-3, where a layer that is computed again gathers its weights again, on all ranks or none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from configs.learner import LearnerConfig
from learner.memory import MARGIN, ModelShape, gradient_reserve, language_bytes, layers_that_fit, vision_bytes


class Recomputation:
    """`gradient_checkpointing` switches it on; without it nothing of the language model is computed again.

    Args:
        layers: of the language model.
        room: bytes that are free for activations; None where the settings decide.
    """

    def __init__(
        self,
        layers: Sequence[Any],
        config: LearnerConfig,
        shape: ModelShape,
        *,
        item: int,
        room: Callable[[], int] | None,
    ) -> None:
        self._layers = layers
        self._config = config
        self._shape = shape
        self._item = item
        self._room = room if config.gradient_checkpointing and config.zero_stage < 3 else None
        self._lost = 0
        """Bytes by which the estimate has turned out to be too high."""
        self._num_kept = 0
        self.num_tokens = [0, 0]
        """Tokens times layers so far: those computed again, and all."""
        self.num_visual_tokens = [0, 0]
        """Those encoded again, and all."""

    def keeps_graph(self, *, num_visual_tokens: int, num_passes: int, num_tokens: int) -> bool:
        """Whether the tower's activations stay while the micro-batches of a round are learned from, the largest of
        which has `num_tokens`. Layers of the language model come first: theirs save more time for the same memory.
        """
        keeps = self._config.train_vision and self._config.zero_stage < 3 and num_passes == 1
        if self._room is not None:
            language = language_bytes(self._shape, num_tokens, self._item, num_kept=len(self._layers))
            vision = vision_bytes(self._shape, num_visual_tokens, self._item)
            keeps = keeps and language + vision <= self._room() - self._lost
        elif self._config.gradient_checkpointing:
            keeps = False
        self._count(self.num_visual_tokens, num_visual_tokens, 0 if keeps or not self._config.train_vision else 1)
        return keeps

    def prepare(self, num_tokens: int) -> None:
        """Before the forward pass of a micro-batch."""
        if self._room is not None:
            room = self._room() - self._lost
            self._keep(layers_that_fit(self._shape, num_tokens, self._item, room=room))
        kept = self._num_kept if self._config.gradient_checkpointing else len(self._layers)
        self._count(self.num_tokens, num_tokens * len(self._layers), 1 - kept / len(self._layers))

    def give_way(self, num_tokens: int) -> bool:
        """After a forward pass without memory enough: whether it may be tried again, with all layers recomputed."""
        if not self._num_kept:
            return False
        self._lost += language_bytes(self._shape, num_tokens, self._item, num_kept=self._num_kept) // 4
        self._keep(0)
        return True

    def _keep(self, num_kept: int) -> None:
        """The last layers keep theirs: they are freed before the first ones are computed again."""
        self._num_kept = num_kept
        for index, layer in enumerate(self._layers):
            layer.gradient_checkpointing = index < len(self._layers) - num_kept

    @staticmethod
    def _count(counts: list[int], size: int, share_again: float) -> None:
        counts[0] += round(size * share_again)
        counts[1] += size


def device_room(device: torch.device, config: LearnerConfig, shape: ModelShape, *, item: int) -> Callable[[], int]:
    """How many bytes of a GPU activations may take, of the part that a rank has of it."""
    gradients = gradient_reserve(shape, config, item)

    def room() -> int:
        free, total = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - used
        share = int(total * min(1.0, config.num_gpus))
        return min(free, share - used) - gradients - int(MARGIN * total)

    return room
