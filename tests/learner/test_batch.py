from learner.advantage import group_advantages
from learner.batches.batch import weight_episodes
from tests.learner.builders import make_group


def test_weights_are_means_over_tokens_then_scored_episodes_then_groups():
    groups = [make_group(1, lost=(0, 2)), make_group(2)]
    rows = weight_episodes(list(enumerate(groups)), 2)
    for row in rows:
        scored = 2 if row.image == 0 else 4
        assert row.token_weights.tolist() == [1 / (2 * scored * len(row.generated_at))] * len(row.generated_at)


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


def test_the_default_weights_are_bit_for_bit_those_before_there_were_objectives_by_name():
    """Recorded at 96d8b7f."""
    rows = weight_episodes([(0, make_group(1, lost=(0, 2))), (1, make_group(2))], 3)
    assert [row.token_weights[0] for row in rows] == [
        0.011111111111111112, 0.009259259259259259, 0.004166666666666667,
        0.010416666666666666, 0.004629629629629629, 0.011904761904761904,
    ]  # fmt: skip
    assert group_advantages((1.5, 0.0, None, 1.4, 0.5, 1.4)) == (
        0.8970149171498789, -1.594693186044229, None, 0.730901043603605, -0.7641238183128597, 0.730901043603605,
    )  # fmt: skip
