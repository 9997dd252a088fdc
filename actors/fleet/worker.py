"""One engine: references to samples in, played groups out. A plain class; `cluster/ray_actors.py` makes it an actor."""

from __future__ import annotations

import hashlib

import numpy as np

from actors.data.dataset import Dataset
from actors.engine.vllm_engine import VllmEngine
from actors.engine.weight_receiver import SyncState, WeightManifest, WeightReceiver
from actors.episode import PlayedGroup, SkippedSample
from actors.errors import DataError, RolloutError
from actors.images import ViewSpec, check_and_decode, full_view
from actors.play import PlayRequest, make_views, play_group, rules_for
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer, vision_token_ids
from configs.schema import DataConfig, ModelConfig, RolloutConfig


class RolloutWorker:
    """Owns one engine. Serves only while its weights are a version it could verify."""

    def __init__(self, *, model: ModelConfig, rollout: RolloutConfig, data: DataConfig, seed: int) -> None:
        self._rollout = rollout
        self._limits = data
        self._datasets: dict[str, Dataset] = {}
        tokenizer = load_tokenizer(model.path)
        self._renderer = ChatRenderer(tokenizer, load_prompt_style(model.prompt))
        self._spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
        self._engine = VllmEngine(
            model,
            rollout,
            end_id=self._renderer.end_id,
            image_pad_id=self._renderer.image_pad_id,
            forbidden_ids=vision_token_ids(tokenizer),
            seed=seed,
        )
        self._receiver = WeightReceiver(self._engine)

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, np.ndarray]:
        """Play one group; returns it and its full view, uint8 [H, W, 3] (empty where the sample was skipped).

        Raises:
            RolloutError: the engine failed, or holds no verified weights.
            DataError: the data set as a whole cannot be read here.
        """
        if self._receiver.state is not SyncState.CURRENT:
            raise RolloutError("this worker holds no verified weights")
        dataset = self._dataset(request.ref.dataset)
        try:
            return await self._play(request, dataset)
        except DataError as error:
            return SkippedSample(ref=request.ref, reason=str(error)), np.empty((0, 0, 3), np.uint8)

    async def _play(self, request: PlayRequest, dataset: Dataset) -> tuple[PlayedGroup, np.ndarray]:
        sample = dataset.read(request.ref)
        image = check_and_decode(
            sample.image, max_pixels=self._limits.max_source_pixels, max_side_ratio=self._limits.max_side_ratio
        )
        full = full_view(image, self._spec)
        sha256 = hashlib.sha256(sample.image).hexdigest()
        views = make_views(full, self._spec, sha256)
        rules = rules_for(request.kind, self._rollout, greedy=request.greedy)
        try:
            episodes = await play_group(
                self._engine, self._renderer, views, sample.question, rules, request.episode_ids
            )
        except* RolloutError as failures:
            first = failures.exceptions[0]
            raise RolloutError(str(first)) from first
        group = PlayedGroup(
            ref=request.ref,
            question=sample.question,
            answer=sample.answer,
            needs_full=sample.needs_full,
            episodes=episodes,
            full_size=(full.shape[0], full.shape[1]),
            num_full_tokens=views.full.num_visual_tokens,
            image_sha256=sha256,
        )
        return group, full

    async def prepare_weights(self, manifest: WeightManifest, *buckets: np.ndarray) -> None:
        """Verify and stage a version beside the one in use."""
        await self._receiver.prepare(manifest, buckets)

    async def commit_weights(self, version: int) -> str:
        """Switch to the staged version; returns the digest of what the engine then holds."""
        return await self._receiver.commit(version)

    async def serve_loaded_weights(self) -> None:
        """Serve what the engine read from `model.path`, where no learner sends any."""
        self._engine.trust_loaded()
        self._receiver.trust_loaded()

    async def check_health(self) -> int:
        """The version in use; raises RolloutError if the engine is gone."""
        await self._engine.check_health()
        return self._receiver.version

    def shutdown(self) -> None:
        self._engine.shutdown()

    def _dataset(self, path: str) -> Dataset:
        if path not in self._datasets:
            self._datasets[path] = Dataset.open(path)
        return self._datasets[path]
