"""Calls in the right tags: which are followed, and how the others end (docs/tools.md)."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.episode import Finish, Progress, Refuse, Show, Status, next_move
from actors.replies import parse_reply
from actors.tools.registry import TOOLS, toolbox_of
from actors.tools.tool import Scene
from actors.views import Crop, region, tokens_of
from configs.tools import ToolsConfig

SIZE, SIDE = (224, 448), 28
"""(height, width) of the full view: 8 x 16 visual tokens; the quarter view has 112 x 224 pixels."""
CROP = Crop(left=112, top=56, right=280, bottom=168)
"""A crop of 112 x 168 pixels that was shown."""
NAMES = tuple(TOOLS)


def progress(*, shown=("quarter",), calls=(), refused=0, **config):
    toolbox = toolbox_of(ToolsConfig(**{"names": NAMES, "max_turns": 4} | config))
    scene = Scene(full_size=SIZE, token_side=SIDE, shown=shown)
    return Progress(toolbox=toolbox, scene=scene, calls=calls, num_refused=refused)


def move(call, at=None):
    text = call if isinstance(call, str) else json.dumps(call)
    at = at or progress()
    return next_move(parse_reply(f"<think>a</think><tool_call>{text}</tool_call>", at.toolbox), "stop", at)


def local(*box, **more):
    return {"name": "request_local_region", "arguments": {"bbox_2d": list(box)} | more}


def zoom(*box, label="a sign", img_idx=0):
    return {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": list(box), "label": label, "img_idx": img_idx}}


def resize(**more):
    return {"name": "resize_image", "arguments": {"action": "resize"} | more}


def crop(left, top, right, bottom):
    return Crop(left=left, top=top, right=right, bottom=bottom)


@pytest.mark.parametrize(
    ("call", "at", "view"),
    [
        (resize(), {}, "full"),
        # The quarter view is half as wide: 14 of its pixels are a visual token of the full view.
        (local(14, 14, 28, 42), {}, crop(28, 28, 56, 84)),
        (local(0, 0, 224, 112), {}, crop(0, 0, 448, 224)),
        (local(13, 15, 29, 41), {}, crop(0, 28, 84, 84)),
        (local(13.99, 14.0, 28.01, 42.0), {}, crop(0, 28, 84, 84)),
        (local(100, 50, 101, 51), {}, crop(196, 84, 224, 112)),
        (local(14, 14, 28, 42), {"coordinates": "relative"}, crop(0, 0, 28, 28)),
        (local(500, 250, 1000, 500), {"coordinates": "relative"}, crop(224, 56, 448, 112)),
        # Whatever was shown in between, the region is one of the first picture.
        (local(14, 14, 28, 42), {"shown": ("quarter", CROP), "calls": ("image_zoom_in_tool",)}, crop(28, 28, 56, 84)),
        (zoom(14, 14, 28, 42), {}, crop(28, 28, 56, 84)),
        (zoom(28, 28, 56, 84, img_idx=1), {"shown": ("quarter", "full")}, crop(28, 28, 56, 84)),
        # A crop has the full view's scale, and its own upper left corner.
        (zoom(28, 28, 56, 84, img_idx=1), {"shown": ("quarter", CROP)}, crop(140, 84, 168, 140)),
        (zoom(0, 0, 168, 112, img_idx=1), {"shown": ("quarter", CROP)}, CROP),
        (
            zoom(0, 0, 500, 500, img_idx=1),
            {"shown": ("quarter", CROP), "coordinates": "relative"},
            crop(112, 56, 196, 112),
        ),
        (zoom(0, 0, 28, 28, img_idx=2), {"shown": ("quarter", "full", CROP)}, crop(112, 56, 140, 84)),
        (zoom(14, 14, 28, 42, label=""), {}, crop(28, 28, 56, 84)),
    ],
)
def test_a_call_shows_the_region_in_whole_tokens(call, at, view):
    assert move(call, progress(**at)) == Show(view=view, tool=call["name"])


NAN = '{"name": "request_local_region", "arguments": {"bbox_2d": [0, 0, NaN, 9]}}'
LONG = "1" * 5000
WRONG = {
    "no JSON": "resize",
    "cut off": json.dumps(local(0, 0, 9, 9))[:-1],
    "two objects": json.dumps(resize()) * 2,
    "a list": json.dumps([resize()]),
    "a text": '"resize_image"',
    "a number": "7",
    "nothing": "",
    "null": "null",
    "deeply nested": "[" * 50_000,
    "NaN": NAN,
    "Infinity": NAN.replace("NaN", "Infinity"),
    "minus Infinity": NAN.replace("NaN", "-Infinity"),
    "a float that overflows": NAN.replace("NaN", "1e999"),
    "an integer of 5000 digits": NAN.replace("NaN", LONG),
    "an integer of 400 digits": local(0, 0, 10**400, 9),
    "a float of 308 digits": local(0, 0, 1e308, 9),
    "a repeated key": '{"name": "resize_image", "name": "resize_image", "arguments": {"action": "resize"}}',
    "a repeated argument": NAN.replace("NaN", "9").replace('{"bbox_2d"', '{"bbox_2d": [0, 0, 9, 9], "bbox_2d"'),
    "no arguments": {"name": "resize_image"},
    "no name": {"arguments": {"action": "resize"}},
    "a key beside": resize() | {"id": 1},
    "an unknown tool": {"name": "rotate", "arguments": {}},
    "a tool in capitals": {"name": "RESIZE_IMAGE", "arguments": {"action": "resize"}},
    "a name that is a list": {"name": ["resize_image"], "arguments": {"action": "resize"}},
    "a name that is null": {"name": None, "arguments": {"action": "resize"}},
    "arguments as text": {"name": "resize_image", "arguments": '{"action": "resize"}'},
    "arguments as a list": {"name": "resize_image", "arguments": ["resize"]},
    "null arguments": {"name": "resize_image", "arguments": None},
    "another action": resize(action="crop"),
    "an action that is true": resize(action=True),
    "an action in a list": resize(action=["resize"]),
    "an extra argument": resize(by=2),
    "no box": {"name": "request_local_region", "arguments": {}},
    "a box under another key": {"name": "request_local_region", "arguments": {"bbox": [0, 0, 9, 9]}},
    "an extra key with a box": local(0, 0, 9, 9, label="x"),
    "a box that is null": {"name": "request_local_region", "arguments": {"bbox_2d": None}},
    "a box that is an object": {"name": "request_local_region", "arguments": {"bbox_2d": {"x": 1}}},
    "a box as text": {"name": "request_local_region", "arguments": {"bbox_2d": "0,0,9,9"}},
    "a nested box": {"name": "request_local_region", "arguments": {"bbox_2d": [[0, 0, 9, 9]]}},
    "three numbers": local(0, 0, 9),
    "five numbers": local(0, 0, 9, 9, 9),
    "an empty list": local(),
    "texts": local("0", "0", "9", "9"),
    "a text among numbers": local(0, 0, "9", 9),
    "booleans": local(False, False, True, True),
    "null among numbers": local(0, 0, None, 9),
    "left of the picture": local(-1, 0, 9, 9),
    "above the picture": local(0, -0.001, 9, 9),
    "right of the picture": local(0, 0, 225, 9),
    "below the picture": local(0, 0, 9, 112.001),
    "far away": local(10**9, 10**9, 10**9 + 9, 10**9 + 9),
    "in coordinates of the full view": local(200, 100, 448, 224),
    "no width": local(9, 0, 9, 9),
    "no height": local(0, 9, 9, 9),
    "a point": local(9, 9, 9, 9),
    "left and right exchanged": local(9, 0, 0, 9),
    "top and bottom exchanged": local(0, 9, 9, 0),
    "too long": local(0, 0, 204, 4),
    "too high": local(0, 0, 1, 50.5),
    "a picture that was not shown": zoom(0, 0, 9, 9, img_idx=1),
    "a negative picture": zoom(0, 0, 9, 9, img_idx=-1),
    "a picture of 400 digits": zoom(0, 0, 9, 9, img_idx=10**400),
    "half a picture": zoom(0, 0, 9, 9, img_idx=0.5),
    "a picture written as a float": zoom(0, 0, 9, 9, img_idx=0.0),
    "a picture that is true": zoom(0, 0, 9, 9, img_idx=True),
    "a picture as text": zoom(0, 0, 9, 9, img_idx="0"),
    "a label that is a number": zoom(0, 0, 9, 9, label=7),
    "a label without an end": zoom(0, 0, 9, 9, label="x" * 201),
    "no label": {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 9, 9], "img_idx": 0}},
    "no picture": {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 9, 9], "label": "x"}},
}
MALFORMED = Finish(status=Status.MALFORMED, answer=None, is_well_formed=False)


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_call_ends_the_episode_or_is_answered_by_config(call):
    assert move(call) == MALFORMED
    refused = move(call, progress(on_wrong_call="reply"))
    assert isinstance(refused, Refuse)
    assert 10 < len(refused.reason) < 120
    assert "rotate" not in refused.reason, "what the policy wrote is not repeated to it"
    last = progress(on_wrong_call="reply", refused=3)
    assert move(call, last) == MALFORMED, "no turn is left to answer in"


@pytest.mark.parametrize(
    ("call", "at"),
    [
        (resize(), {"shown": ("quarter", "full"), "calls": ("resize_image",)}),
        (local(0, 0, 9, 9), {"calls": ("request_local_region",), "max_calls": {"request_local_region": 1}}),
        (local(0, 0, 9, 9), {"names": ("resize_image",)}),
        (local(14, 14, 27, 42), {"min_box_side": 2}),
        (zoom(0, 0, 169, 9, img_idx=1), {"shown": ("quarter", CROP)}),
        (local(0, 0, 1000.5, 9), {"coordinates": "relative"}),
        (local(0, 0, 500, 10), {"coordinates": "relative", "max_side_ratio": 99.0}),
    ],
    ids=["second resize", "too often", "not on offer", "too small", "outside a crop", "above 1000", "ratio in pixels"],
)
def test_what_is_wrong_depends_on_episode_and_config(call, at):
    assert move(call, progress(**at)) == MALFORMED
    assert isinstance(move(call, progress(**at, on_wrong_call="reply")), Refuse)


def test_limits_are_inclusive():
    assert isinstance(move(local(0, 0, 200, 4)), Show), "50 times as wide as high"
    assert isinstance(move(local(14, 14, 42, 42), progress(min_box_side=2)), Show)
    twice = progress(calls=("request_local_region",), max_calls={"request_local_region": 2})
    assert isinstance(move(local(0, 0, 9, 9), twice), Show)


@pytest.mark.parametrize("on_wrong_call", ["malformed", "reply"])
def test_a_call_in_the_last_turn_is_malformed(on_wrong_call):
    calls = ("request_local_region",) * 7
    last = progress(shown=("quarter", *(CROP,) * 7), calls=calls, max_turns=8, on_wrong_call=on_wrong_call)
    assert last.num_turns == 8
    assert move(local(0, 0, 9, 9), last) == MALFORMED
    before = progress(shown=("quarter", *(CROP,) * 6), calls=calls[1:], max_turns=8, on_wrong_call=on_wrong_call)
    assert isinstance(move(local(0, 0, 9, 9), before), Show)


@pytest.mark.parametrize("call", [resize(), local(0, 0, 9, 9), "resize"])
def test_a_call_without_an_offer_is_malformed(call):
    scene = Scene(full_size=SIZE, token_side=SIDE, shown=("full",))
    assert move(call, Progress(toolbox=None, scene=scene)) == MALFORMED


def test_an_answer_after_a_refused_call_counts_but_is_not_well_formed():
    reply = parse_reply("<think>a</think><answer>red</answer>", progress().toolbox)
    after = next_move(reply, "stop", progress(refused=1))
    assert after == Finish(status=Status.ANSWERED, answer="red", is_well_formed=False)


@given(
    st.lists(st.floats(0, 1), min_size=4, max_size=4),
    st.sampled_from(["quarter", "full", CROP]),
    st.sampled_from(["absolute", "relative"]),
)
def test_a_crop_is_the_least_whole_tokens_that_hold_the_box(shares, source, coordinates):
    whole = region(source, SIZE)
    scale = 2 if source == "quarter" else 1
    units = (1000, 1000)
    if coordinates == "absolute":
        units = ((whole.right - whole.left) / scale, (whole.bottom - whole.top) / scale)
    x1, x2 = (share * units[0] for share in sorted(shares[:2]))
    y1, y2 = (share * units[1] for share in sorted(shares[2:]))
    found = move(zoom(x1, y1, x2, y2, img_idx=1), progress(shown=("quarter", source), coordinates=coordinates))
    if not isinstance(found, Show):
        return  # empty, or too long
    view = found.view
    assert all(side % SIDE == 0 for side in (view.left, view.top, view.right, view.bottom))
    assert 0 <= view.left < view.right <= SIZE[1]
    assert 0 <= view.top < view.bottom <= SIZE[0]
    across, down = (whole.right - whole.left) / units[0], (whole.bottom - whole.top) / units[1]
    edges = ((view.left, whole.left + x1 * across, 1), (view.top, whole.top + y1 * down, 1))
    edges += ((view.right, whole.left + x2 * across, -1), (view.bottom, whole.top + y2 * down, -1))
    for edge, asked, inward in edges:
        assert -1e-6 <= (asked - edge) * inward < SIDE + 1e-6
    assert tokens_of(view, SIZE, SIDE) <= tokens_of("full", SIZE, SIDE)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=5)
            | st.dictionaries(st.sampled_from(["bbox_2d", "label", "img_idx", "action", "x"]), inner)
        ),
    ),
    st.sampled_from([*NAMES, "x"]),
)
@settings(max_examples=40)
def test_no_arguments_whatever_crash_it(arguments, name):
    found = move({"name": name, "arguments": arguments})
    assert isinstance(found, Show) or found == MALFORMED


def test_an_unknown_tool_in_the_config_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.tools\.names='rotate' is invalid: must be one of resize_image"):
        toolbox_of(ToolsConfig(names=("rotate",)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"names": ()}, "rollout.tools.names=[] is invalid"),
        ({"names": ("a", "a")}, "must name each tool once"),
        ({"max_turns": 1}, "rollout.tools.max_turns=1 is invalid"),
        ({"max_calls": {"b": 1}}, "rollout.tools.max_calls='b' is invalid"),
        ({"max_calls": {"resize_image": 0}}, "rollout.tools.max_calls.resize_image=0 is invalid"),
        ({"max_side_ratio": 0.5}, "rollout.tools.max_side_ratio=0.5 is invalid"),
        ({"min_box_side": 0}, "rollout.tools.min_box_side=0 is invalid"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_remedy(setting, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ToolsConfig(**setting)
