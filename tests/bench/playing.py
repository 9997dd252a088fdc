"""What the benches of the engine share: one engine in this process, pictures, and replies that ask as often as told."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.engine.vllm_engine import VllmEngine
from actors.episode import Episode, EpisodeId
from actors.images import ViewSpec
from actors.play import Completion, Kind, Sampling, ShownImage, Views, make_views, play_group, rules_for
from actors.prompts import (
    ChatRenderer,
    PromptStyle,
    Tokenizer,
    load_prompt_style,
    load_tokenizer,
    vision_token_ids,
)
from actors.tools.resize import RESIZE_CALL
from configs.load import load_config
from configs.schema import Config
from tests.bench.model_shape import write_shape

ASKING = f"<think>unclear</think><tool_call>{RESIZE_CALL}</tool_call>"
DIRECT = "<think>clear</think><answer>red</answer>"
QUESTION = "what colour is the small shape in the upper left corner?"
ON_GPU = ["model.dtype=bfloat16", "rollout.num_gpus=1", "learner.num_gpus=1", "rollout.gpu_memory_fraction=0.6"]


def bench_config(shape: str, *, side: int, on_gpu: bool, overrides: Sequence[str] = ()) -> Config:
    """The settings of a bench whose largest full view has `side` x `side` pixels.

    `shape` is `tiny`, the shipped model with its weights, or a shape of `model_shape` with random ones.
    """
    settings = [f"model.max_pixels={side * side}", f"rollout.max_prompt_tokens={5 * (side // 28) ** 2 // 4 + 256}"]
    if shape != "tiny":
        folder = Path(tempfile.gettempdir()) / f"{shape}-shape"
        write_shape(shape, folder)
        settings += [f"model.path={folder}", "model.load=random"]
    return load_config("tiny", [*settings, *(ON_GPU if on_gpu else []), *overrides])


class AskingRenderer(ChatRenderer):
    """Reads a share of the replies as a tool call, whatever was sampled."""

    def __init__(self, tokenizer: Tokenizer, style: PromptStyle, *, share: float, seed: int = 0) -> None:
        super().__init__(tokenizer, style)
        self._share = share
        self._random = random.Random(seed)

    def reply_text(self, completion_ids: Sequence[int]) -> str:
        return ASKING if self._random.random() < self._share else DIRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """Plays groups on an engine in this process."""

    config: Config
    engine: VllmEngine
    spec: ViewSpec
    renderer: ChatRenderer

    def asking(self, share: float) -> Player:
        """The same, in which this share of the episodes asks."""
        style = load_prompt_style(self.config.model.prompt)
        return replace(self, renderer=AskingRenderer(load_tokenizer(self.config.model.path), style, share=share))

    async def play(
        self, views: Sequence[Views], *, kind: Kind = "policy", num_episodes: int, max_tokens: int | None = None
    ) -> list[tuple[Episode, ...]]:
        """One group per picture, all at once. Replies that are cut off count as ended."""
        rules = rules_for(kind, self.config.rollout, greedy=False)
        if max_tokens is not None:
            rules = replace(rules, sampling=replace(rules.sampling, max_tokens=max_tokens))

        async def generate(
            prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
        ) -> Completion:
            return replace(await self.engine(prompt_ids, images, sampling), finish_reason="stop")

        def ids(sample: int) -> tuple[EpisodeId, ...]:
            return tuple(
                EpisodeId(run="bench", step=0, sample=str(sample), index=index, attempt=0)
                for index in range(num_episodes)
            )

        groups = (
            play_group(generate, self.renderer, each, QUESTION, rules, ids(sample)) for sample, each in enumerate(views)
        )
        return await asyncio.gather(*groups)


async def start_player(
    config: Config, engine_class: type[VllmEngine] = VllmEngine, *, also_forbidden: Sequence[int] = ()
) -> Player:
    """Start an engine that serves the weights it loads."""
    model = config.model
    tokenizer = load_tokenizer(model.path)
    renderer = ChatRenderer(tokenizer, load_prompt_style(model.prompt))
    spec = ViewSpec.from_model(model.path, min_pixels=model.min_pixels, max_pixels=model.max_pixels)
    engine = engine_class(
        model,
        config.rollout,
        spec,
        end_id=renderer.end_id,
        image_pad_id=renderer.image_pad_id,
        forbidden_ids=(*vision_token_ids(tokenizer), *also_forbidden),
        transport=config.transport,
        in_flight=config.weights.in_flight,
        can_sleep=False,
        seed=config.run.seed,
    )
    await engine.accept_loaded_weights()
    return Player(config=config, engine=engine, spec=spec, renderer=renderer)


def noise_views(spec: ViewSpec, sizes: Sequence[tuple[int, int]], *, seed: int = 0) -> list[Views]:
    """Views of pictures of noise, (height, width) in pixels each; no two are equal."""
    rng = np.random.default_rng(seed)
    return [
        make_views(rng.integers(0, 256, (*size, 3), dtype=np.uint8), spec, f"{seed}-{index}")
        for index, size in enumerate(sizes)
    ]
