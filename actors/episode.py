"""What an episode is, and the state machine that decides what happens after each of its turns.

Token ids are authoritative: what the engine was given and what it sampled. Text is decoded from them for parsing and
display, and never re-encoded.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from actors.needs import Need, Region
from actors.replies import Answer, Malformed, Reply
from actors.tools.registry import Toolbox, ToolCall
from actors.tools.tool import Scene, WrongCall
from actors.views import View

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
    needs: Need | None = None
    """The least that must be seen, if the data set records it. Like the next, for reports only."""
    region: Region | None = None
    """The region that must be seen."""


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
    view: View | None
    """The view that this turn's prompt added; None where it told why a call was refused."""
    num_visual_tokens: int
    """Visual tokens of that view; 0 without one."""
    tool: str | None = None
    """The tool that showed the view; None in the first turn and after a refused call."""
    fault: str | None = None
    """Why its call was refused, or its reply malformed; None for an answer, a call that was followed, and a turn that
    was cut. It never quotes what the policy wrote."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """The turns of an episode. The prompt of each starts with the prompt and completion ids of the one before."""

    id: EpisodeId
    turns: tuple[Turn, ...]
    status: Status
    answer: str | None
    """Text between the answer tags; None unless the status is ANSWERED."""
    is_well_formed: bool
    """Every turn follows the format (R_format of Eq. 4)."""

    @property
    def asked(self) -> bool:
        """Whether the policy called a tool and was shown another view."""
        return bool(self.calls)

    @property
    def calls(self) -> tuple[Turn, ...]:
        """The turns that a tool call led to: each shows the view that was called for."""
        return tuple(turn for turn in self.turns[1:] if turn.view is not None)

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
    needed_view: View | None = None
    """The least that must be seen beside the quarter view (the quarter view for nothing more), if the data set records
    it. Used in reports only, never in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedSample:
    """A sample that was skipped because its row is unusable."""

    ref: SampleRef
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """Move: continue with a turn that shows a view."""

    view: View
    tool: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """Move: continue with a turn that tells why a call was refused."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Move: the episode is over."""

    status: Status
    answer: str | None
    is_well_formed: bool
    fault: str | None = field(default=None, compare=False)
    """Why the last reply is malformed; None where it is not. For people: it decides nothing."""


def malformed(fault: str) -> Finish:
    return Finish(status=Status.MALFORMED, answer=None, is_well_formed=False, fault=fault)


def fault_of(move: Show | Refuse | Finish) -> str | None:
    """What was wrong with the reply that led to a move; None for nothing."""
    match move:
        case Refuse(reason=reason):
            return reason
        case Finish(fault=fault):
            return fault
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """An episode up to the reply in question: with that reply, all that its next move depends on."""

    toolbox: Toolbox | None
    """The tools on offer; None where there are none."""
    scene: Scene
    calls: tuple[str, ...] = ()
    """The tools that were called, in order."""
    num_refused: int = 0
    """Calls that were refused."""

    @property
    def num_turns(self) -> int:
        return 1 + len(self.calls) + self.num_refused

    def after(self, move: Show | Refuse) -> Progress:
        """The progress at the end of the turn that a move leads to."""
        if isinstance(move, Refuse):
            return replace(self, num_refused=self.num_refused + 1)
        scene = replace(self.scene, shown=(*self.scene.shown, move.view))
        return replace(self, scene=scene, calls=(*self.calls, move.tool))


def next_move(reply: Reply, finish_reason: FinishReason, progress: Progress) -> Show | Refuse | Finish:
    """What follows a turn (docs/tools.md has the rule of wrong calls as a table).

    A refused call breaks the format (R_format of Eq. 4), also where the episode goes on after it.
    """
    if finish_reason == "length":
        return Finish(status=Status.TRUNCATED, answer=None, is_well_formed=False)
    toolbox = progress.toolbox
    match reply:
        case Answer(text=text):
            return Finish(status=Status.ANSWERED, answer=text, is_well_formed=progress.num_refused == 0)
        case Malformed(reason=reason):
            return malformed(reason)
        case ToolCall() | WrongCall():
            if toolbox is None:
                return malformed("no tool is on offer")
            if progress.num_turns >= toolbox.config.max_turns:
                return malformed(f"turn {progress.num_turns} is the last one and must answer")
            return _follow(reply, toolbox, progress)


def _follow(call: ToolCall | WrongCall, toolbox: Toolbox, progress: Progress) -> Show | Refuse | Finish:
    """What follows a call that a turn is left for."""
    if isinstance(call, ToolCall):
        found = toolbox.show(call, progress.scene, progress.calls)
        if not isinstance(found, WrongCall):
            return Show(view=found, tool=call.name)
        call = found
    return Refuse(reason=call.reason) if toolbox.config.on_wrong_call == "reply" else malformed(call.reason)
