"""Loads the policy and its reference from the model's folder, whole or sharded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from actors.config_json import read_config_json
from actors.errors import LearnerError
from actors.images import ViewSpec
from actors.prompts import vision_token_ids
from configs.learner import LearnerConfig
from configs.schema import ModelConfig
from learner.engine import LearnerEngine, ShardedForward, construction
from learner.families.lookup import read_shape
from learner.memory import adapted, memory_message
from learner.model import Policy, load_policy
from learner.recompute import Recomputation, device_room
from learner.zero.sharding import learner_settings, part_sizes, reference_settings


class Policies:
    """The model's files, as one rank needs them; what is small is read once."""

    def __init__(
        self, config: LearnerConfig, model: ModelConfig, *, seed: int, temperature: float, device: torch.device
    ) -> None:
        self._config = config
        self._model = model
        self._seed = seed
        self._temperature = temperature
        self._device = device
        self.dtype = torch.bfloat16 if model.dtype == "bfloat16" else torch.float32

    @cached_property
    def spec(self) -> ViewSpec:
        """How the model sees a picture."""
        return ViewSpec.from_model(self._model)

    @cached_property
    def _forbidden_ids(self) -> tuple[int, ...]:
        return tuple(vision_token_ids(AutoTokenizer.from_pretrained(self._model.path, local_files_only=True)))

    @cached_property
    def _config_json(self) -> dict[str, Any]:
        """The model's config.json."""
        return read_config_json(self._model.path)

    def recomputation(self, layers: Sequence[Any]) -> Recomputation:
        """Decides which activations of these layers of the language model are kept."""
        shape, item = adapted(read_shape(self._config_json), self._config), self.dtype.itemsize
        on_gpu = self._device.type == "cuda"
        room = device_room(self._device, self._config, shape, item=item) if on_gpu else None
        return Recomputation(layers, self._config, shape, item=item, room=room)

    def prepare(self) -> None:
        """Read what is small."""
        disable_progress_bar()
        self.spec, self._forbidden_ids  # noqa: B018 - cached

    def check_memory(self) -> None:
        """Refuse what cannot fit this rank's GPU, which the driver may not see.

        Raises:
            LearnerError: it does not fit.
        """
        if self._device.type != "cuda":
            return
        problem = memory_message(
            read_shape(self._config_json),
            self._config,
            in_bfloat16=self.dtype == torch.bfloat16,
            gpu_bytes=torch.cuda.mem_get_info()[1],
        )
        if problem:
            raise LearnerError(problem)

    def load_policy(self) -> Policy:
        """The policy, of which what is trained has gradients. A collective under ZeRO-3."""
        policy = self._load(learner_settings(self._config, self.dtype))
        if self._config.lora.rank:
            from learner.lora.adapters import add_adapters, give_inputs_gradients  # imports PEFT, which takes seconds

            add_adapters(policy.model, self._config.lora, with_vision=self._config.train_vision)
            if self._config.zero_stage == 3:
                give_inputs_gradients(policy.model, with_vision=self._config.train_vision)
        else:
            policy.model.model.visual.requires_grad_(self._config.train_vision)
        return policy

    def load_reference(self, engine: LearnerEngine) -> Callable[..., Any]:
        """The frozen policy at step 0. A collective where it is sharded."""
        if self._config.lora.rank:
            return WithoutAdapters(engine)
        if not self._config.shards_reference:
            return self._load(learner_settings(self._config, self.dtype)).eval().requires_grad_(False)
        reference = self._load(reference_settings(self._config, self.dtype)).eval().requires_grad_(False)
        return ShardedForward(reference, reference_settings(self._config, self.dtype, part_sizes(reference)))

    def save_adapter(self, adapters: Mapping[str, Tensor], folder: Path) -> None:
        """Write adapters, by their name in the policy, into a folder of exported weights, if there are any."""
        if adapters:
            from learner.lora.adapters import save_adapter

            save_adapter(adapters, folder, self._config.lora, base=self._model.path)

    def _load(self, settings: dict[str, Any]) -> Policy:
        disable_progress_bar()
        model = load_policy(
            self._model.path,
            load=self._model.load,
            dtype=self.dtype,
            device=self._device,
            seed=self._seed,
            construction=construction(settings),
        )
        return Policy(model, temperature=self._temperature, forbidden_ids=self._forbidden_ids)


class WithoutAdapters:
    """The forward pass of an engine's module with its adapters switched off: the frozen policy, without a copy of it.

    A collective where its parameters are sharded.
    """

    def __init__(self, engine: LearnerEngine) -> None:
        from learner.lora.adapters import adapted_layers

        self._engine = engine
        self._layers = adapted_layers(engine.module)

    def __call__(self, *inputs: Any) -> Any:
        self._switch(on=False)
        try:
            return self._engine(*inputs)
        finally:
            self._switch(on=True)

    def _switch(self, *, on: bool) -> None:
        for layer in self._layers:
            layer.is_adapted = on

    def close(self) -> None:
        """Nothing is held: the engine is another's."""
