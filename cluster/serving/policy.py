"""A policy that answers questions: the episodes of `actors.play`, with an engine in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from actors.engine.vllm_engine import VllmEngine
from actors.episode import Episode, EpisodeId
from actors.errors import DataError, ImageError, RolloutError, SampleError
from actors.fleet.cutting import CutPicture, PictureCutter
from actors.images import ViewSpec
from actors.play import Completion, OnTokens, Sampling, ShownImage, check_prompt, play_episode, rules_for
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer, vision_token_ids
from actors.views import View
from cluster.serving.deltas import Channel, Delta, ReplySplitter, TokenText, split_reply
from cluster.serving.errors import RETRY_S, ApiError, bad_picture, bad_request
from cluster.serving.requests import Question
from configs.schema import Config, RolloutConfig


class Engine(Protocol):
    """`play.Generate` with tokens as they come, as `VllmEngine` has it."""

    async def __call__(
        self,
        prompt_ids: tuple[int, ...],
        images: tuple[ShownImage, ...],
        sampling: Sampling,
        on_tokens: OnTokens | None = None,
    ) -> Completion: ...

    async def check_health(self) -> None: ...
    def shutdown(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    """The policy is shown a view, or told why its call was refused."""

    view: View | None
    """None: a refused call."""
    num_visual_tokens: int
    tool: str | None
    """The tool that was called for it."""
    refusal: str | None = None
    """Why the call was refused."""


Event = TurnStarted | Delta
OnEvent = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A played question."""

    episode: Episode
    num_full_tokens: int
    """Visual tokens of the full view: what always-full would have spent."""
    seconds: float

    @property
    def num_prompt_tokens(self) -> int:
        """Each token counts once: a turn finds what earlier ones were shown in the engine's cache."""
        return len(self.episode.token_ids) - self.episode.num_generated_tokens

    def text(self, channel: str) -> str:
        """All reasoning, or the answer, as it was streamed."""
        turns = (
            "".join(delta.text for delta in split_reply(turn.text) if delta.channel == channel)
            for turn in self.episode.turns
        )
        return TURN_BREAK.join(text for text in turns if text)


TURN_BREAK = "\n\n"
"""Between the reasoning of two turns."""


class ServedPolicy:
    """Answers questions about pictures, many at a time."""

    def __init__(self, engine: Engine, renderer: ChatRenderer, cutter: PictureCutter, rollout: RolloutConfig) -> None:
        self._engine = engine
        self._renderer = renderer
        self._cutter = cutter
        self._rollout = rollout

    async def cut(self, encoded: bytes) -> CutPicture:
        """The views of an encoded picture; ApiError (400) where it cannot or must not be decoded."""
        try:
            return await self._cutter.cut(encoded)
        except ImageError as error:
            raise bad_picture(str(error), param="messages") from error

    async def answer(self, question: Question, picture: CutPicture, on_event: OnEvent | None = None) -> Answered:
        """Play one episode. Cancelling this aborts what the engine generates for it.

        Raises:
            ApiError: the question is too long (400), or the engine failed (500, 503).
        """
        started_at = time.monotonic()
        rules = rules_for(question.kind, self._rollout, greedy=True)
        sampling = replace(rules.sampling, temperature=question.temperature, top_p=question.top_p, seed=question.seed)
        rules = replace(rules, sampling=replace(sampling, has_logprobs=False))
        episode_id = EpisodeId(run="serve", step=0, sample="", index=0, attempt=0)
        turns = _Turns(self._engine, self._renderer, question.max_tokens, on_event)
        played = (turns, self._renderer, picture.views, question.text, rules, episode_id, turns.started)
        try:
            check_prompt(self._renderer, picture.views, question.text, rules)
            episode = await play_episode(*played)
        except DataError as error:
            raise bad_request(str(error), param="messages", code="context_length_exceeded") from error
        except SampleError as error:
            raise ApiError(str(error), status=500, code="engine_error") from error
        except RolloutError as error:
            headers = {"Retry-After": str(RETRY_S)}
            raise ApiError(str(error), status=503, code="engine_unavailable", headers=headers) from error
        full = picture.views.full.num_visual_tokens
        return Answered(episode=episode, num_full_tokens=full, seconds=time.monotonic() - started_at)

    async def check_health(self) -> None:
        """RolloutError if the engine generates nothing."""
        await self._engine.check_health()

    def shutdown(self) -> None:
        self._cutter.shutdown()
        self._engine.shutdown()


class _Turns:
    """The engine as one episode uses it: turn after turn, within `max_tokens`, with its events told."""

    def __init__(self, engine: Engine, renderer: ChatRenderer, max_tokens: int | None, tell: OnEvent | None) -> None:
        self._engine = engine
        self._renderer = renderer
        self._num_left = max_tokens
        self._tell = tell
        self._last: Completion | None = None
        self._shown: set[Channel] = set()
        """Channels with text in the turns so far."""

    def started(self, added: ShownImage | None, tool: str | None, refusal: str | None) -> None:
        """The next turn begins; see `play.OnTurn`."""
        if self._tell is not None:
            view, num_tokens = (added.view, added.num_visual_tokens) if added else (None, 0)
            self._tell(TurnStarted(view=view, num_visual_tokens=num_tokens, tool=tool, refusal=refusal))

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        if self._num_left is not None:
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, self._num_left))
        if self._last is not None and not sampling.max_tokens:
            spans = (replace(self._last.version_spans[-1], num_tokens=0),)
            return Completion(token_ids=(), logprobs=(), finish_reason="length", version_spans=spans)
        sample = self._engine if self._tell is None else partial(self._sample_aloud, self._tell)
        self._last = completion = await sample(prompt_ids, images, sampling)
        if self._num_left is not None:
            self._num_left -= len(completion.token_ids)
        return completion

    async def _sample_aloud(
        self, tell: OnEvent, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        text, splitter, to_break = TokenText(self._renderer.reply_text), ReplySplitter(), set(self._shown)

        def tell_all(deltas: list[Delta]) -> None:
            for delta in deltas:
                tell(replace(delta, text=TURN_BREAK + delta.text) if delta.channel in to_break else delta)
                to_break.discard(delta.channel)
                self._shown.add(delta.channel)

        completion = await self._engine(
            prompt_ids, images, sampling, lambda token_ids: tell_all(splitter.add(text.add(token_ids)))
        )
        tell_all([*splitter.add(text.add((), is_last=True)), *splitter.finish()])
        return completion


async def start_policy(config: Config) -> ServedPolicy:
    """The policy in `model.path`, with an engine in this process. Takes as long as the engine takes to start."""
    model, tokenizer = config.model, load_tokenizer(config.model.path)
    renderer = ChatRenderer(tokenizer, load_prompt_style(model.prompt))
    spec = ViewSpec.from_model(model)
    engine = VllmEngine(
        model,
        config.rollout,
        spec,
        end_id=renderer.end_id,
        image_pad_id=renderer.image_pad_id,
        forbidden_ids=vision_token_ids(tokenizer),
        transport=config.transport,
        in_flight=config.weights.in_flight,
        can_sleep=False,
        seed=config.run.seed,
    )
    async with asyncio.timeout(config.rollout.start_timeout_s):
        await engine.accept_loaded_weights()
    return ServedPolicy(engine, renderer, PictureCutter(spec, config.data), config.rollout)
