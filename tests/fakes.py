"""Hand-written stand-ins for engines, workers, judges and the learner: for tests of pure logic only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from actors.episode import Episode, EpisodeId, PlayedGroup, SampleRef, SkippedSample, Status, Turn, VersionSpan
from actors.errors import RolloutError
from actors.play import Completion, PlayRequest, Sampling, ShownImage
from actors.tools.resize import RESIZE_CALL
from actors.views import View
from actors.weights.layout import SentWeights, TensorSpec, WeightLink, WeightOffer, lay_out
from judge.verdict import JudgeRequest, Outcome, Verdict

DIRECT = "<think>clear</think><answer>red</answer>"
ASK = f"<think>unclear</think><tool_call>{RESIZE_CALL}</tool_call>"


class ScriptedEngine:
    """Replies in order, whatever it is asked; keeps what it was shown."""

    def __init__(
        self, encode: Callable[[str], list[int]], replies: Sequence[str], *, finish_reason: str = "stop"
    ) -> None:
        self._encode = encode
        self._replies = list(replies)
        self._finish_reason = finish_reason
        self.calls: list[tuple[tuple[int, ...], tuple[ShownImage, ...]]] = []

    async def __call__(
        self, prompt_ids: tuple[int, ...], images: tuple[ShownImage, ...], sampling: Sampling
    ) -> Completion:
        self.calls.append((prompt_ids, images))
        token_ids = tuple(self._encode(self._replies.pop(0) + "<|im_end|>"))
        return Completion(
            token_ids=token_ids,
            logprobs=tuple(-0.5 for _ in token_ids),
            finish_reason="length" if self._finish_reason == "length" else "stop",
            version_spans=(VersionSpan(version=len(self.calls), num_tokens=len(token_ids)),),
        )


def make_turn(view: str = "quarter", *, version: int = 0, prompt: tuple[int, ...] = (1, 2)) -> Turn:
    return Turn(
        prompt_ids=prompt,
        completion_ids=(3, 4),
        logprobs=(-0.1, -0.2),
        version_spans=(VersionSpan(version=version, num_tokens=2),),
        finish_reason="stop",
        text="said",
        view="full" if view == "full" else "quarter",
        num_visual_tokens=64 if view == "full" else 16,
    )


def make_episode(
    *,
    asked: bool = False,
    answer: str | None = "red",
    version: int = 0,
    index: int = 0,
    sample: str = "0-0",
    attempt: int = 0,
) -> Episode:
    turns = (make_turn(version=version),)
    if asked:
        turns = (*turns, make_turn("full", version=version, prompt=(1, 2, 3, 4, 5)))
    return Episode(
        id=EpisodeId(run="run", step=1, sample=sample, index=index, attempt=attempt),
        turns=turns,
        status=Status.MALFORMED if answer is None else Status.ANSWERED,
        answer=answer,
        is_well_formed=answer is not None,
    )


def make_group(
    episodes: Sequence[Episode],
    *,
    ref: SampleRef | None = None,
    needs_full: bool | None = None,
    needed_view: View | None = None,
) -> PlayedGroup:
    return PlayedGroup(
        ref=ref or SampleRef(dataset="train", row=0, uid="0-0"),
        question="what colour is the shape?",
        answer="red",
        needs_full=needs_full,
        episodes=tuple(episodes),
        full_size=(224, 224),
        num_full_tokens=64,
        image_sha256="00",
        needed_view=needed_view,
    )


class FakeWorker:
    """A rollout worker whose failures are scripted: one entry per call, None plays, an exception is raised."""

    def __init__(self, name: str, script: Sequence[Exception | None] = (), *, seconds: float = 0.0) -> None:
        self.name = name
        self.seconds = seconds
        self.version = -1
        self.num_receivers = 1
        self.reaches_learner = True
        self.num_played = 0
        self.most_in_flight = 0
        self.is_healthy = True
        self.is_killed = False
        self.is_asleep = False
        self._script = list(script)
        self._in_flight = 0
        self._link: WeightLink | None = None
        self._received: int | None = None

    async def play(self, request: PlayRequest) -> tuple[PlayedGroup | SkippedSample, Any]:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.seconds)
            step = self._script.pop(0) if self._script else None
            if step is not None:
                raise step
        finally:
            self._in_flight -= 1
        self.num_played += 1
        # Half of a group asks, and the other half is wrong: rewards differ, so the group teaches something.
        episodes = [
            make_episode(
                asked=index % 2 == 1,
                answer="red" if index % 2 else "blue",
                version=self.version,
                index=index,
                sample=request.ref.uid,
                attempt=request.attempt,
            )
            for index in range(request.num_episodes)
        ]
        return make_group(episodes, ref=request.ref), f"image of {request.ref.uid}"

    async def check_health(self) -> None:
        if not self.is_healthy:
            raise RolloutError("the engine generates nothing")

    def kill(self) -> None:
        self.is_killed = True

    async def connect_weights(self, link: WeightLink) -> None:
        self._link = link

    async def receive_weights(self, offer: WeightOffer, read_bucket: Callable[[int], object]) -> None:
        assert self._link is not None, "connected"
        self._received = offer.version

    async def commit_weights(self, version: int, digests: Sequence[int]) -> float:
        assert self._received == version
        self.version, self.is_asleep = version, False
        return 0.0

    async def disconnect_weights(self) -> None:
        self._link = None

    async def sleep(self) -> None:
        self.is_asleep = True


class FakeWeightSource:
    """The part of a learner that sends weights."""

    def __init__(self, *, is_rendezvous: bool = False, keeps_last: bool = False, is_followed: bool = False) -> None:
        self.version = 0
        self.generation = 0
        self.is_open = False
        self._is_rendezvous = is_rendezvous
        self._keeps_last = keeps_last
        self._is_followed = is_followed

    async def open_weights(self, num_receivers: int) -> WeightLink:
        self.is_open = True
        return WeightLink(
            transport="fake",
            is_rendezvous=self._is_rendezvous,
            layout=lay_out([TensorSpec(name="w", dtype="float32", shape=(2, 3))], bucket_bytes=1 << 20),
            settings={"num_receivers": num_receivers},
            timeout_s=1.0,
            keeps_last=self._keeps_last,
            is_followed=self._is_followed,
        )

    async def join_weights(self) -> None:
        assert self.is_open

    async def send_weights(self) -> SentWeights:
        assert self.is_open
        offer = WeightOffer(version=self.version, num_buckets=1, delivery={})
        return SentWeights(offer=offer, digests=(self.version,), seconds=0.0)

    def read_weights(self, bucket: int) -> object:
        return f"bucket {bucket}"

    async def release_weights(self) -> None:
        assert self.is_open

    async def close_weights(self) -> None:
        self.is_open = False


class ExactJudges:
    """Right is what equals the reference."""

    async def grade(self, request: JudgeRequest) -> tuple[Outcome, ...]:
        return tuple(
            Verdict(is_correct=prediction == request.reference, judge="exact", reason="compared")
            for prediction in request.predictions
        )
