import asyncio
from dataclasses import replace

import numpy as np
import pytest

from actors.episode import EpisodeId, Status, VersionSpan
from actors.errors import DataError
from actors.images import ViewSpec
from actors.play import Completion, make_views, play_episode, play_group, rules_for
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from actors.views import Crop
from configs.schema import RolloutConfig
from configs.tools import ToolsConfig
from tests.fakes import ASK, DIRECT, ScriptedEngine

SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=224 * 224)
CONFIG = RolloutConfig()
EPISODE = EpisodeId(run="r", step=1, sample="s", index=0, attempt=0)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("configs/tiny")


@pytest.fixture(scope="module")
def renderer(tokenizer):
    return ChatRenderer(tokenizer, load_prompt_style("tiny"))


@pytest.fixture
def views():
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return make_views(pixels, SPEC, "sha")


def engine(tokenizer, *replies, **how):
    return ScriptedEngine(lambda text: tokenizer.encode(text, add_special_tokens=False), replies, **how)


async def play(generate, renderer, views, kind="policy"):
    return await play_episode(generate, renderer, views, "what?", rules_for(kind, CONFIG, greedy=False), EPISODE)


async def test_a_direct_answer_sees_a_quarter_of_the_tokens(tokenizer, renderer, views):
    episode = await play(engine(tokenizer, DIRECT), renderer, views)
    assert (episode.status, episode.answer, episode.asked) == (Status.ANSWERED, "red", False)
    assert episode.num_visual_tokens * 4 == views.full.num_visual_tokens


async def test_asking_shows_the_full_view_and_continues_the_very_same_tokens(tokenizer, renderer, views):
    generate = engine(tokenizer, ASK, DIRECT)
    episode = await play(generate, renderer, views)
    first, second = episode.turns
    assert [turn.view for turn in episode.turns] == ["quarter", "full"]
    assert second.prompt_ids[: len(first.prompt_ids + first.completion_ids)] == first.prompt_ids + first.completion_ids
    assert generate.calls[1][1] == (views.quarter, views.full)
    assert [span.version for turn in episode.turns for span in turn.version_spans] == [1, 2]
    assert (episode.oldest_version, episode.newest_version) == (1, 2)


async def test_a_second_request_is_malformed(tokenizer, renderer, views):
    episode = await play(engine(tokenizer, ASK, ASK), renderer, views)
    assert (episode.status, episode.is_well_formed, episode.asked) == (Status.MALFORMED, False, True)


async def test_a_turn_that_hits_the_limit_is_truncated(tokenizer, renderer, views):
    episode = await play(engine(tokenizer, DIRECT, finish_reason="length"), renderer, views)
    assert (episode.status, episode.answer) == (Status.TRUNCATED, None)


@pytest.mark.parametrize(("kind", "view"), [("always_full", "full"), ("always_quarter", "quarter")])
async def test_the_baselines_have_one_turn_and_no_tool(tokenizer, renderer, views, kind, view):
    answered = await play(engine(tokenizer, DIRECT), renderer, views, kind)
    assert [turn.view for turn in answered.turns] == [view]
    asked = await play(engine(tokenizer, ASK), renderer, views, kind)
    assert (asked.status, asked.asked) == (Status.MALFORMED, False)


async def test_general_mode_shows_the_full_view_at_once(tokenizer, renderer, views):
    rules = rules_for("policy", RolloutConfig(mode="general"), greedy=False)
    episode = await play_episode(engine(tokenizer, ASK), renderer, views, "what?", rules, EPISODE)
    assert ([turn.view for turn in episode.turns], episode.status) == (["full"], Status.MALFORMED)


async def test_an_image_too_small_to_quarter_is_shown_full_without_the_tool(tokenizer, renderer):
    small = make_views(np.zeros((28, 28, 3), np.uint8), SPEC, "sha")
    assert small.quarter is None
    episode = await play(engine(tokenizer, ASK), renderer, small)
    assert ([turn.view for turn in episode.turns], episode.status) == (["full"], Status.MALFORMED)


async def test_evaluation_is_greedy():
    assert rules_for("policy", CONFIG, greedy=True).sampling.temperature == 0
    assert rules_for("policy", CONFIG, greedy=False).sampling.temperature == CONFIG.temperature


async def test_no_episode_of_a_group_waits_for_another(tokenizer, renderer, views):
    """One episode hangs in turn 1 until its sibling is through turn 2."""
    release = asyncio.Event()
    encode = tokenizer.encode

    async def generate(prompt_ids, images, sampling):
        generate.num_calls += 1
        if generate.num_calls == 1:
            await release.wait()
        if len(images) == 2:
            release.set()
        ids = tuple(encode((ASK if len(images) == 1 else DIRECT) + "<|im_end|>", add_special_tokens=False))
        spans = (VersionSpan(version=0, num_tokens=len(ids)),)
        return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop", version_spans=spans)

    generate.num_calls = 0
    ids = tuple(EpisodeId(run="r", step=1, sample="s", index=index, attempt=0) for index in range(2))
    async with asyncio.timeout(5):
        episodes = await play_group(generate, renderer, views, "what?", rules_for("policy", CONFIG, greedy=False), ids)
    assert [episode.id.index for episode in episodes] == [0, 1]
    assert all(episode.asked for episode in episodes)


async def test_a_prompt_that_cannot_fit_makes_the_sample_unusable(tokenizer, renderer, views):
    rules = rules_for("policy", RolloutConfig(max_prompt_tokens=40), greedy=False)
    with pytest.raises(DataError, match="max_prompt_tokens=40"):
        await play_group(engine(tokenizer, DIRECT), renderer, views, "what?", rules, (EPISODE,))


LOOK = '<think>a</think><tool_call>{{"name": "{}", "arguments": {}}}</tool_call>'
REGION = LOOK.format("request_local_region", '{"bbox_2d": [14, 28, 42, 56]}')
INSIDE = LOOK.format("image_zoom_in_tool", '{"bbox_2d": [0, 28, 28, 56], "label": "x", "img_idx": 1}')
OUTSIDE = LOOK.format("request_local_region", '{"bbox_2d": [0, 0, 113, 9]}')
MANY = RolloutConfig(
    max_prompt_tokens=1024,
    tools=ToolsConfig(
        names=("resize_image", "request_local_region", "image_zoom_in_tool"), max_turns=5, on_wrong_call="reply"
    ),
)


async def test_an_episode_of_many_turns_shows_what_was_called_for(tokenizer, renderer, views):
    generate = engine(tokenizer, REGION, INSIDE, OUTSIDE, ASK, DIRECT)
    rules = rules_for("policy", MANY, greedy=False)
    episode = await play_episode(generate, renderer, views, "what?", rules, EPISODE)
    shown = ["quarter", "crop:28,56,84,112", "crop:28,84,56,112", None, "full"]
    assert [turn.view and str(turn.view) for turn in episode.turns] == shown
    tools = [None, "request_local_region", "image_zoom_in_tool", None, "resize_image"]
    assert [turn.tool for turn in episode.turns] == tools
    assert [turn.num_visual_tokens for turn in episode.turns] == [16, 4, 1, 0, 64]
    assert (episode.num_visual_tokens, len(episode.calls), episode.asked) == (85, 3, True)
    assert (episode.status, episode.answer, episode.is_well_formed) == (Status.ANSWERED, "red", False)
    for prompt_ids, images in generate.calls:
        assert prompt_ids.count(renderer.image_pad_id) == sum(image.num_visual_tokens for image in images)
    last = generate.calls[-1][1]
    assert [image.picture.size for image in last] == [(112, 112), (56, 56), (28, 28), (224, 224)]
    assert [np.asarray(image.picture).tolist() for image in last[1:3]] == [
        views.pixels_HW3[56:112, 28:84].tolist(),
        views.pixels_HW3[84:112, 28:56].tolist(),
    ]
    assert len({image.key for image in last}) == 4
    refused = tokenizer.decode(generate.calls[3][0][len(generate.calls[2][0]) :])
    outside = "the box must lie inside the picture: x from 0 to 112, y from 0 to 112"
    assert outside in refused
    assert [turn.fault for turn in episode.turns] == [None, None, outside, None, None]


async def test_a_refused_call_ends_the_episode_by_default(tokenizer, renderer, views):
    rules = rules_for("policy", replace(MANY, tools=replace(MANY.tools, on_wrong_call="malformed")), greedy=False)
    episode = await play_episode(engine(tokenizer, OUTSIDE), renderer, views, "what?", rules, EPISODE)
    assert (episode.status, len(episode.turns), episode.asked) == (Status.MALFORMED, 1, False)


@pytest.mark.parametrize(
    ("replies", "fault"),
    [
        ((DIRECT,), None),
        ((ASK, ASK), "turn 2 is the last one and must answer"),
        ((OUTSIDE,), "name must be resize_image"),
        (("red",), "not one <think> followed by one <answer> or one <tool_call>"),
    ],
)
async def test_the_last_turn_says_why_it_is_malformed(tokenizer, renderer, views, replies, fault):
    episode = await play(engine(tokenizer, *replies), renderer, views)
    assert episode.turns[-1].fault == fault
    assert all(turn.fault is None for turn in episode.turns[:-1])
    assert (episode.status is Status.MALFORMED) == (fault is not None)


async def test_a_call_where_no_tool_is_on_offer_says_so(tokenizer, renderer, views):
    episode = await play(engine(tokenizer, ASK), renderer, views, "always_full")
    assert episode.turns[0].fault == "no tool is on offer"


async def test_a_turn_that_does_not_fit_truncates_the_episode(tokenizer, renderer, views):
    for reply in (REGION, OUTSIDE):
        rules = replace(rules_for("policy", MANY, greedy=False), max_prompt_tokens=40)
        episode = await play_episode(engine(tokenizer, reply), renderer, views, "what?", rules, EPISODE)
        assert (episode.status, len(episode.turns), episode.is_well_formed) == (Status.TRUNCATED, 1, False)
        assert (episode.turns[0].fault is not None) == (reply == OUTSIDE), "a refused call stays one"


def test_crops_of_full_views_of_another_size_have_another_key():
    crop = Crop(left=0, top=0, right=56, bottom=56)
    wide = make_views(np.zeros((56, 112, 3), np.uint8), SPEC, "sha")
    high = make_views(np.zeros((112, 56, 3), np.uint8), SPEC, "sha")
    assert wide.show(crop).key != high.show(crop).key
    assert wide.show("full") is wide.full
    assert wide.show("quarter") is wide.quarter


def test_equal_bytes_in_another_shape_have_another_key():
    wide = make_views(np.zeros((56, 112, 3), np.uint8), SPEC, "sha")
    high = make_views(np.zeros((112, 56, 3), np.uint8), SPEC, "sha")
    assert wide.full.key != high.full.key
