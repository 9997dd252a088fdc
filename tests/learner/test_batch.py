import pytest

from learner.batches.batch import weight_episodes
from tests.learner.builders import make_group


def test_weights_are_means_over_tokens_then_scored_episodes_then_groups():
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = weight_episodes(list(enumerate(groups)), 2)
    for row in rows:
        scored = 2 if row.image == 0 else 4
        assert row.token_weight == pytest.approx(1 / (2 * scored * len(row.generated_at)))


def test_generated_positions_hold_the_completions_of_the_turns():
    group = make_group(3, ask_share=1.0)
    for row, episode in zip(weight_episodes([(0, group)], 1), group.played.episodes, strict=True):
        said = tuple(token for turn in episode.turns for token in turn.completion_ids)
        assert tuple(row.token_ids[row.generated_at].tolist()) == said
        assert len(row.sampler_logprobs) == len(said)


def test_prompt_parts_are_all_tokens_that_were_not_generated():
    group = make_group(3, ask_share=0.5)
    for row, episode in zip(weight_episodes([(0, group)], 1), group.played.episodes, strict=True):
        prompted = [at for part in row.prompts for at in range(part.start, part.stop)]
        assert sorted([*prompted, *row.generated_at.tolist()]) == list(range(row.num_tokens))
        assert [part.view for part in row.prompts] == [turn.view for turn in episode.turns]
