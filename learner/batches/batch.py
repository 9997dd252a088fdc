"""The rows of an update: scored episodes with their token weights. Pure, without tensors.

    groups --weight_episodes--> PlannedEpisode per scored episode --plan--> micro-batches per rank

Legend: T tokens of an episode, N generated tokens of an episode, G episodes of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.episode import Episode, PlayedGroup
from actors.views import View


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingGroup:
    """The episodes of one prompt with everything the update needs."""

    played: PlayedGroup
    rewards: tuple[float | None, ...]
    """[G] None where the verdict is missing."""
    advantages: tuple[float | None, ...]
    """[G] None where the reward is."""
    image: object
    """Handle of the full view uint8 [H, W, 3], as in `learner.batches.pictures.Picture`."""

    def __post_init__(self) -> None:
        sizes = (len(self.played.episodes), len(self.rewards), len(self.advantages))
        assert len(set(sizes)) == 1, f"episodes, rewards and advantages differ in number: {sizes}"
        pairs = zip(self.rewards, self.advantages, strict=True)
        assert all((reward is None) == (advantage is None) for reward, advantage in pairs), "both or neither"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptPart:
    """What the prompt of a turn added to the episode: text and the placeholders of at most one picture."""

    start: int
    stop: int
    view: View | None
    num_visual_tokens: int
    """Of the view; 0 without one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlannedEpisode:
    """One episode of a micro-batch."""

    token_ids: NDArray[np.int64]
    """[T] the whole episode."""
    generated_at: NDArray[np.int64]
    """[N] positions of the generated tokens, from the spans of the turns."""
    sampler_logprobs: NDArray[np.float32]
    """[N] under the policy that sampled them."""
    prompts: tuple[PromptPart, ...]
    """In order of appearance; the tokens between them were generated."""
    image: int
    """Index of their image in the plan."""
    advantage: float
    token_weight: float
    """Weight of each generated token in the mean over a full mini-batch (Eq. 3); 0 in a dummy."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def weight_episodes(groups: Sequence[tuple[int, TrainingGroup]], prompts_per_mini_batch: int) -> list[PlannedEpisode]:
    """Rows of one mini-batch: the scored episodes with their token weights.

    Eq. 3 takes the mean over an episode's generated tokens, then over the group's scored episodes, then over groups:
    weight = 1 / (prompts_per_mini_batch * num_scored_in_group * num_generated_tokens). An episode without generated
    tokens has no row, but counts among the group's episodes.
    """
    rows = []
    for index, group in groups:
        scored = [(e, a) for e, a in zip(group.played.episodes, group.advantages, strict=True) if a is not None]
        for episode, advantage in scored:
            if episode.num_generated_tokens:
                weight = 1.0 / (prompts_per_mini_batch * len(scored) * episode.num_generated_tokens)
                rows.append(_row(episode, image=index, advantage=advantage, token_weight=weight))
    assert rows, "a mini-batch needs a scored episode with generated tokens"
    return rows


def _row(episode: Episode, *, image: int, advantage: float, token_weight: float) -> PlannedEpisode:
    spans, prompts, said = [], [], 0
    for turn in episode.turns:
        asked, answered = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.completion_ids)
        prompts.append(PromptPart(start=said, stop=asked, view=turn.view, num_visual_tokens=turn.num_visual_tokens))
        spans.append(np.arange(asked, answered))
        said = answered
    return PlannedEpisode(
        token_ids=np.asarray(episode.token_ids, np.int64),
        generated_at=np.concatenate(spans).astype(np.int64),
        sampler_logprobs=np.asarray([each for turn in episode.turns for each in turn.logprobs], np.float32),
        prompts=tuple(prompts),
        image=image,
        advantage=advantage,
        token_weight=token_weight,
    )
