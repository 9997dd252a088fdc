"""What an episode is, and the state machine that decides what happens after each of its turns.

Token ids are authoritative: what the engine was given and what it sampled. Text is decoded from them for parsing and
display, and never re-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from actors.prompts import Answer, Malformed, Reply, ToolCall

View = Literal["quarter", "full"]
FinishReason = Literal["stop", "length"]


class Status(StrEnum):
    """How an episode ended. Episodes of every status are scored."""

    ANSWERED = "answered"
    """The last turn contains exactly one answer."""
    MALFORMED = "malformed"
    """A turn broke the format: there is no answer to judge."""
    TRUNCATED = "truncated"
    """A turn hit the token limit, or the next prompt would not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRef:
    """Location of a sample; the only part of it that the driver holds."""

    dataset: str
    """Path of the data set, as in the config."""
    row: int
    """Row number in reading order."""
    uid: str
    """Unique in a run: epoch and row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question about one image."""

    ref: SampleRef
    question: str
    answer: str
    """The reference answer."""
    image: bytes
    """The encoded image, as stored."""
    needs_full: bool | None
    """Whether the full view is needed, if the data set records it. Used in reports only, never in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeId:
    """Identifies an episode; every buffer accepts each id once (rule A of the reliability rules)."""

    run: str
    step: int
    sample: str
    index: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Consecutive tokens of a completion that were sampled under one version of the weights."""

    version: int
    """The learner's optimizer step."""
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One prompt and the completion sampled by the policy."""

    prompt_ids: tuple[int, ...]
    """[P] the whole prompt so far, image placeholders expanded to one id per visual token."""
    completion_ids: tuple[int, ...]
    """[C] as sampled, including the end token if there is one."""
    logprobs: tuple[float, ...]
    """[C] of the sampled ids under the distribution they were sampled from."""
    version_spans: tuple[VersionSpan, ...]
    """Versions of the weights that sampled them, in order: several where the weights changed in mid turn."""
    finish_reason: FinishReason
    text: str
    """`completion_ids` decoded, without the end token."""
    view: View
    """The view that this turn's prompt added."""
    num_visual_tokens: int
    """Visual tokens of that view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One to two turns. Turn 2's prompt starts with turn 1's prompt and completion ids."""

    id: EpisodeId
    turns: tuple[Turn, ...]
    status: Status
    answer: str | None
    """Text between the answer tags; None unless the status is ANSWERED."""
    is_well_formed: bool
    """Every turn follows the format (R_format of Eq. 4)."""

    @property
    def asked(self) -> bool:
        """Whether the policy called the tool and was shown the full view."""
        return len(self.turns) > 1

    @property
    def num_visual_tokens(self) -> int:
        return sum(turn.num_visual_tokens for turn in self.turns)

    @property
    def num_generated_tokens(self) -> int:
        return sum(len(turn.completion_ids) for turn in self.turns)

    @property
    def oldest_version(self) -> int:
        """The oldest version that sampled a token: what staleness counts from."""
        return min(span.version for turn in self.turns for span in turn.version_spans)

    @property
    def newest_version(self) -> int:
        return max(span.version for turn in self.turns for span in turn.version_spans)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """[T] the whole episode: the last turn's prompt and completion."""
        return self.turns[-1].prompt_ids + self.turns[-1].completion_ids

    def __post_init__(self) -> None:
        assert self.turns, "an episode has a turn"
        for turn in self.turns:
            assert len(turn.completion_ids) == len(turn.logprobs), (len(turn.completion_ids), len(turn.logprobs))
            num_spanned = sum(span.num_tokens for span in turn.version_spans)
            assert turn.version_spans, "a turn has a version"
            assert num_spanned == len(turn.completion_ids), (num_spanned, len(turn.completion_ids))
        for earlier, later in zip(self.turns, self.turns[1:], strict=False):
            history = earlier.prompt_ids + earlier.completion_ids
            assert later.prompt_ids[: len(history)] == history, "a turn's prompt starts with all previous turns"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlayedGroup:
    """The G episodes of one sample, and what scoring and reporting need. Holds no images."""

    ref: SampleRef
    question: str
    answer: str
    """The reference answer."""
    needs_full: bool | None
    episodes: tuple[Episode, ...]
    full_size: tuple[int, int]
    """(height, width) in pixels of the full view, which is passed along separately as uint8 [H, W, 3]."""
    num_full_tokens: int
    """Visual tokens of the full view: the cost of always-full per episode."""
    image_sha256: str
    """Hash of the encoded image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedSample:
    """A sample that was skipped because its row is unusable."""

    ref: SampleRef
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShowFull:
    """Move: continue with a turn that shows the full view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Move: the episode is over."""

    status: Status
    answer: str | None
    is_well_formed: bool


def next_move(reply: Reply, finish_reason: FinishReason, *, offers_tool: bool) -> ShowFull | Finish:
    """What follows a turn. A tool call without a tool breaks the format, as does a second tool call."""
    if finish_reason == "length":
        return Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)
    match reply:
        case Answer(text=text):
            return Finish(status=Status.ANSWERED, answer=text, is_well_formed=True)
        case ToolCall() if offers_tool:
            return ShowFull()
        case ToolCall() | Malformed():
            return Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)
