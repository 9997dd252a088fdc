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
from configs.objectives import GRPO, Objective

EARLIER_TURNS = 0.5
"""Weight of the turns before the last with `group_turns`, against 1 for the last: `control_alpha` of AdaptVision."""


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
    turn_credits: tuple[tuple[float, ...], ...] = ()
    """[G][turns] what the tokens of a turn get on top of the advantage of their episode; none at all if empty."""

    def __post_init__(self) -> None:
        sizes = [len(self.played.episodes), len(self.rewards), len(self.advantages)]
        sizes += [len(self.turn_credits)] if self.turn_credits else []
        assert len(set(sizes)) == 1, f"episodes, rewards, advantages and credits differ in number: {sizes}"
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
    advantages: NDArray[np.float64]
    """[N] of each generated token: that of its episode, and the credit of its turn."""
    token_weights: NDArray[np.float64]
    """[N] of each generated token in the mean over a full mini-batch; 0 in a dummy."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def weight_episodes(
    groups: Sequence[tuple[int, TrainingGroup]], prompts_per_mini_batch: int, objective: Objective = GRPO
) -> list[PlannedEpisode]:
    """Rows of one mini-batch: the scored episodes with the weights of their tokens.

    With P prompts of a full mini-batch, S scored episodes of the group, and n tokens generated in the episode, in all
    scored episodes of the group, or in those of the mini-batch, a token weighs by `learner.aggregation`:

    - `episode_mean`: 1 / (P S n_episode), the means of Eq. 3: over tokens, then episodes, then groups. An episode
      without generated tokens has no row, but counts among the group's episodes.
    - `group_tokens`: 1 / (P n_group), DAPO's Eq. 8. Long episodes weigh more.
    - `batch_tokens`: 1 / n_batch. A mini-batch of g < P groups is taken for g / P of a full one, as with the others.
    - `group_turns`: 1 / (P n_last), n_last the tokens of last turns in the group; tokens of the turns before them
      0.5 / (P n_earlier). The means over turns that AdaptVision's code takes per micro-batch, taken per group.
    - `fixed_length`: 1 / (P S L), Dr. GRPO's constant L = `learner.length_normalizer`.
    - `episode_sum`: 1 / (P S), the log-probability of a whole episode (RLOO).

    All but `batch_tokens` need only the group, so that a mini-batch may come in parts.
    """
    scored = [(index, _scored(group)) for index, group in groups]
    num_in_batch = sum(each.num_generated_tokens for _, episodes in scored for each, _, _ in episodes)
    rows = []
    for index, episodes in scored:
        counts = _Counts(
            prompts=prompts_per_mini_batch,
            groups=len(groups),
            scored=len(episodes),
            in_batch=num_in_batch,
            in_group=sum(each.num_generated_tokens for each, _, _ in episodes),
            in_last_turns=sum(len(each.turns[-1].completion_ids) for each, _, _ in episodes),
        )
        for episode, advantage, credits in episodes:
            if episode.num_generated_tokens:
                weights = _turn_weights(episode, counts, objective)
                rows.append(_row(episode, index, [advantage + credit for credit in credits], weights))
    assert rows, "a mini-batch needs a scored episode with generated tokens"
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Counts:
    """What the weight of a token depends on beside its episode; only scored episodes count."""

    prompts: int
    """Of a full mini-batch."""
    groups: int
    """Of this mini-batch."""
    scored: int
    """Episodes of the group."""
    in_batch: int
    """Generated tokens, as in the next two."""
    in_group: int
    in_last_turns: int
    """Of the group."""


def _scored(group: TrainingGroup) -> list[tuple[Episode, float, Sequence[float]]]:
    """The scored episodes with advantage and credit per turn."""
    episodes = group.played.episodes
    credits = group.turn_credits or [(0.0,) * len(episode.turns) for episode in episodes]
    triples = zip(episodes, group.advantages, credits, strict=True)
    return [(episode, advantage, each) for episode, advantage, each in triples if advantage is not None]


def _turn_weights(episode: Episode, counts: _Counts, objective: Objective) -> list[float]:
    """Weight of a token of each turn, as `weight_episodes` says."""
    num_turns = len(episode.turns)
    match objective.aggregation:
        case "episode_mean":
            weight = 1.0 / (counts.prompts * counts.scored * episode.num_generated_tokens)
        case "group_tokens":
            weight = 1.0 / (counts.prompts * counts.in_group)
        case "batch_tokens":
            weight = counts.groups / (counts.prompts * counts.in_batch)
        case "group_turns":
            last = 1.0 / (counts.prompts * max(1, counts.in_last_turns))
            earlier = EARLIER_TURNS / (counts.prompts * max(1, counts.in_group - counts.in_last_turns))
            return [earlier] * (num_turns - 1) + [last]
        case "fixed_length":
            weight = 1.0 / (counts.prompts * counts.scored * objective.length_normalizer)
        case "episode_sum":
            weight = 1.0 / (counts.prompts * counts.scored)
    return [weight] * num_turns


def _row(episode: Episode, image: int, advantages: Sequence[float], weights: Sequence[float]) -> PlannedEpisode:
    """Advantages and weights are those of each turn, which all of its tokens get."""
    spans, prompts, said = [], [], 0
    for turn in episode.turns:
        asked, answered = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.completion_ids)
        prompts.append(PromptPart(start=said, stop=asked, view=turn.view, num_visual_tokens=turn.num_visual_tokens))
        spans.append(np.arange(asked, answered))
        said = answered
    lengths = [len(turn.completion_ids) for turn in episode.turns]
    return PlannedEpisode(
        token_ids=np.asarray(episode.token_ids, np.int64),
        generated_at=np.concatenate(spans).astype(np.int64),
        sampler_logprobs=np.asarray([each for turn in episode.turns for each in turn.logprobs], np.float32),
        prompts=tuple(prompts),
        image=image,
        advantages=np.repeat(np.asarray(advantages, np.float64), lengths),
        token_weights=np.repeat(np.asarray(weights, np.float64), lengths),
    )
