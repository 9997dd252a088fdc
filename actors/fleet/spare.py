"""A rollout worker that stands by: it has imported what it needs, and starts its engine when one is lost."""

from __future__ import annotations

from typing import Any

from actors.engine.vllm_engine import import_engine
from actors.fleet.worker import RolloutWorker, end_on_sigterm
from actors.hub import local_copy
from actors.importing import in_background, no_collections
from actors.prompts import load_tokenizer
from configs.schema import ModelConfig, RolloutConfig


class SpareWorker(RolloutWorker):
    """Call `begin` before anything else but `stand_by`; until then, it is a process that has memory only."""

    def __init__(self, *, model: ModelConfig, rollout: RolloutConfig, **settings: Any) -> None:
        end_on_sigterm()
        with no_collections():
            in_background(lambda: (import_engine(rollout), load_tokenizer(local_copy(model.path))))
        self._settings = {"model": model, "rollout": rollout, **settings}

    def stand_by(self) -> None:
        """Returns once it has imported all."""

    def begin(self, seed: int) -> None:
        """Become a rollout worker."""
        super().__init__(**self._settings, seed=seed)
