"""A served policy with several tools: turns, usage by tool, refused calls, what `ask` shows, what an export says."""

import json

import pytest
import yaml
from openai.types.chat import ChatCompletion

from actors.tools.resize import RESIZE_CALL
from cluster.policies import policy_config
from cluster.serving.card import write_card
from cluster.serving.metrics import FOLDER_VARIABLE
from configs.load import load_config
from configs.paths import ROOT
from configs.schema import RolloutConfig
from configs.tools import ToolsConfig
from tests.cluster.serving.endpoint import chat, endpoint, events_of


def call(name, **arguments):
    return f"<think>look</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


REGION = call("request_local_region", bbox_2d=[28, 28, 56, 56])  # of the quarter view: 2 x 2 tokens of the full one
OUTSIDE = call("request_local_region", bbox_2d=[100, 100, 300, 300])
RESIZE = f"<think>all</think><tool_call>{RESIZE_CALL}</tool_call>"
RED = "<think>clear</think><answer>red</answer>"
TOOLS = ToolsConfig(names=("resize_image", "request_local_region"), max_turns=4, on_wrong_call="reply")
ROLLOUT = RolloutConfig(tools=TOOLS, max_turn_tokens=128, max_prompt_tokens=1024)


async def usages(script, **fields):
    """The usage of a whole reply, and of a stream."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    async with endpoint(rollout=ROLLOUT) as here:
        here.engine.script = script
        whole = (await here.post(chat(**fields))).json()
        events = events_of((await here.post(chat(**fields, **options))).text)
    ChatCompletion.model_validate(whole)
    assert events[-1]["usage"] == whole["usage"]
    streamed = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert streamed == whole["choices"][0]["message"]["content"]
    assert "tool_call" not in json.dumps(whole["choices"])
    return whole


async def test_calls_and_visual_tokens_are_counted_by_tool():
    whole = await usages((REGION, REGION, RESIZE, RED))
    assert whole["choices"][0]["message"]["content"] == "red"
    assert whole["choices"][0]["message"]["reasoning"] == "look\n\nlook\n\nall\n\nclear"
    assert whole["usage"]["tools"] == {
        "request_local_region": {"calls": 2, "visual_tokens": 8},
        "resize_image": {"calls": 1, "visual_tokens": 64},
    }
    assert whole["usage"]["visual_tokens"] == {"spent": 16 + 8 + 64, "always_full": 64, "saved": -24}
    assert (whole["usage"]["asked"], whole["usage"]["refused_calls"]) == (True, 0)


async def test_a_refused_call_shows_nothing_and_is_counted():
    whole = await usages((OUTSIDE, REGION, RED))
    assert (whole["choices"][0]["status"], whole["choices"][0]["message"]["content"]) == ("answered", "red")
    assert whole["usage"]["refused_calls"] == 1
    assert whole["usage"]["tools"] == {"request_local_region": {"calls": 1, "visual_tokens": 4}}
    assert whole["usage"]["visual_tokens"]["spent"] == 16 + 4


async def test_a_policy_that_never_answers_ends_with_its_last_turn():
    whole = await usages((REGION,) * 9)
    assert whole["choices"][0]["status"] == "malformed"
    assert whole["usage"]["tools"] == {"request_local_region": {"calls": 3, "visual_tokens": 12}}


@pytest.mark.parametrize(("resolution", "spent"), [("quarter", 16), ("full", 64)])
async def test_a_chosen_view_offers_no_tool(resolution, spent):
    whole = await usages((REGION, RED), resolution=resolution)
    assert whole["choices"][0]["status"] == "malformed", "there is no tool to call"
    assert (whole["usage"]["visual_tokens"]["spent"], whole["usage"]["tools"]) == (spent, {})


async def test_metrics_by_tool(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    async with endpoint(rollout=ROLLOUT) as here:
        here.engine.script = (REGION, RESIZE, RED)
        await here.post(chat())
        page = (await here.client.get("/metrics")).text
    for line in (
        'visionthink_tool_calls_total{tool="request_local_region"} 1.0',
        'visionthink_tool_visual_tokens_total{tool="request_local_region"} 4.0',
        'visionthink_tool_visual_tokens_total{tool="resize_image"} 64.0',
    ):
        assert line in page


def test_an_export_says_what_follows_a_wrong_call_and_in_which_units_boxes_are(tmp_path):
    tools = ["rollout.tools.names=image_zoom_in_tool", "rollout.tools.max_calls={image_zoom_in_tool: 1}"]
    how = ["rollout.tools.on_wrong_call=reply", "rollout.tools.coordinates=relative"]
    write_card(tmp_path, load_config("tiny", [*tools, *how]), step=1)
    card = (tmp_path / "README.md").read_text()
    assert "is answered with the reason" in card
    assert "units from 0 to 1000 of the sides" in card
    assert "It may be called once." in card
    assert "resize_image" not in card


def test_an_export_without_tools_says_so(tmp_path):
    write_card(tmp_path, load_config("tiny", ["rollout.mode=general"]), step=1)
    card = (tmp_path / "README.md").read_text()
    assert "is shown the whole picture at once" in card
    assert "tool_call" not in card
    assert "Several turns" not in card


def test_an_export_names_its_tools_and_is_served_with_them(tmp_path):
    overrides = ["rollout.tools.names=resize_image,request_local_region", "rollout.tools.max_turns=4"]
    write_card(tmp_path, load_config("tiny", overrides), step=1)
    card = (tmp_path / "README.md").read_text()
    assert "`request_local_region`: Shows one region" in card
    assert "At most 4 turns" in card
    region = '"bbox_2d": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4'
    assert region in card, "the schema of its arguments"
    assert "It may be called once. A call costs the visual tokens of the full view" in card
    assert "It may be called as often as turns are left. A call costs the visual tokens of the region" in card
    assert "calls tools for more of the picture only when" in card
    assert "ends the episode as malformed" in card
    assert "resize_image, request_local_region" in (tmp_path / "client.py").read_text()
    assert "--limit-mm-per-prompt '{\"image\": 4}'" in card
    assert yaml.safe_load((tmp_path / "visionthink.yaml").read_text())["rollout"]["tools"]["max_turns"] == 4
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(ROOT / "configs" / "tiny" / file)
    tools = policy_config(tmp_path, None, []).config.rollout.tools
    assert (tools.names, tools.max_turns) == (("resize_image", "request_local_region"), 4)
