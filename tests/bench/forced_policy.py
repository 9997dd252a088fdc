"""A served policy that asks when a question says so: for random weights, whose replies mean nothing. Benches alone."""

from __future__ import annotations

from dataclasses import replace

from actors.fleet.cutting import CutPicture
from actors.play import Completion, OnTokens, Sampling, ShownImage
from actors.prompts import load_prompt_style, load_tokenizer
from cluster.serving.policy import Answered, Engine, OnEvent, ServedPolicy, start_policy
from cluster.serving.requests import Question
from configs.schema import Config
from tests.bench.playing import AskingRenderer

ASK = "[ask]"
"""A question that begins with this is played as if the policy had asked in its first turn; any other, as if not."""


class EndingEngine:
    """Turns end where their tokens do: a reply that is cut off counts as ended."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.check_health, self.shutdown = engine.check_health, engine.shutdown

    async def __call__(
        self,
        prompt_ids: tuple[int, ...],
        images: tuple[ShownImage, ...],
        sampling: Sampling,
        on_tokens: OnTokens | None = None,
    ) -> Completion:
        return replace(await self._engine(prompt_ids, images, sampling, on_tokens), finish_reason="stop")


class ForcedPolicy(ServedPolicy):
    """Two policies on one engine: one always asks, one never."""

    def __init__(self, policy: ServedPolicy, config: Config) -> None:
        style, tokenizer = load_prompt_style(config.model.prompt), load_tokenizer(config.model.path)
        self._by_ask = {
            asks: ServedPolicy(
                EndingEngine(policy._engine),
                AskingRenderer(tokenizer, style, share=float(asks)),
                policy._cutter,
                config.rollout,
            )
            for asks in (True, False)
        }
        super().__init__(policy._engine, policy._renderer, policy._cutter, config.rollout)

    async def answer(self, question: Question, picture: CutPicture, on_event: OnEvent | None = None) -> Answered:
        return await self._by_ask[question.text.startswith(ASK)].answer(question, picture, on_event)


async def start_forced(config: Config) -> ServedPolicy:
    return ForcedPolicy(await start_policy(config), config)
