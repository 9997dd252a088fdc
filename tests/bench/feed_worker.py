"""A real rollout worker on a made-up engine that does with pictures what vLLM's front end does: for `image_feed`."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any
from unittest.mock import patch

import psutil
import torch
from PIL import Image

from actors.episode import VersionSpan
from actors.fleet import worker as worker_module
from actors.fleet.worker import RolloutWorker
from actors.play import Completion, Sampling, ShownImage
from actors.prompts import load_tokenizer
from configs.schema import ModelConfig
from tests.bench.playing import ASKING, DIRECT

NUM_KEPT = 8
"""Pictures whose patches stay, as in the cache of vLLM's front end."""


def image_processor(model_path: str) -> Any:
    """The library's processor, without a resize of its own."""
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(model_path, do_resize=False)


def patches(processor: Any, picture: Image.Image) -> torch.Tensor:
    found: torch.Tensor = processor(images=picture, return_tensors="pt")["pixel_values"]
    return found


class FeedEngine:
    """Every second episode asks. Patches of a picture are made at its first request."""

    def __init__(self, model: ModelConfig, *_: Any, end_id: int, **__: Any) -> None:
        self._processor = image_processor(model.path)
        tokenizer = load_tokenizer(model.path)
        self._replies = [(*tokenizer.encode(text, add_special_tokens=False), end_id) for text in (DIRECT, ASKING)]
        self._patches: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._num_asked = 0
        self.num_processed = 0

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        for image in images:
            if image.key not in self._patches:
                self._patches[image.key] = patches(self._processor, image.picture)
                self.num_processed += 1
                if len(self._patches) > NUM_KEPT:
                    self._patches.popitem(last=False)
        self._num_asked += len(images) == 1
        reply = self._replies[self._num_asked % 2 if len(images) == 1 else 0]
        spans = (VersionSpan(version=0, num_tokens=len(reply)),)
        return Completion(token_ids=reply, logprobs=(-0.5,) * len(reply), finish_reason="stop", version_spans=spans)

    async def accept_loaded_weights(self) -> None:
        pass

    async def check_health(self) -> None:
        pass

    def shutdown(self) -> None:
        pass


class FeedWorker(RolloutWorker):
    def __init__(self, **settings: Any) -> None:
        with patch.object(worker_module, "VllmEngine", FeedEngine):
            super().__init__(**settings)

    async def spent(self) -> dict[str, float]:
        """CPU seconds and memory of this process, and pictures that became patches."""
        return {"cpu_s": time.process_time(), "mib": own_mib(), "processed": self._engine.num_processed}


def own_mib() -> float:
    """Resident memory of this process that it shares with no other, so without the object store's."""
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / 2**20
