"""The two-turn resize episode, byte for byte: prompts, images, turns, records and rewards of scripted replies.

`golden/default_episodes.json` was written by the code before there was any tool but `resize_image`. Columns that
were added to the records since are not compared.
"""

import asyncio
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from actors.episode import EpisodeId, PlayedGroup, SampleRef
from actors.images import ViewSpec
from actors.play import make_views, play_group, rules_for
from actors.prompts import ChatRenderer, load_prompt_style, load_tokenizer
from cluster.heldout import HeldoutPlay
from cluster.records.episodes import EPISODES, rows_of_evaluation
from configs.schema import Config, RolloutConfig
from judge.reward import group_rewards
from judge.verdict import Verdict
from tests.fakes import ScriptedEngine

GOLDEN = Path(__file__).parent / "golden" / "default_episodes.json"
SPEC = ViewSpec(patch_size=14, merge_size=2, min_pixels=56 * 56, max_pixels=224 * 224)
CALL = '{"name": "resize_image", "arguments": {"action": "resize"}}'
ASK = f"<think>unclear</think><tool_call>{CALL}</tool_call>"
ANSWER = "<think>clear</think><answer>red</answer>"
PRETTY = f"<think>a\nb</think>\n<tool_call>\n{json.dumps(json.loads(CALL), indent=2)}\n</tool_call>\n"
SCRIPTS = {
    "direct": (ANSWER,),
    "asked": (ASK, ANSWER),
    "pretty": (PRETTY, ANSWER),
    "asked twice": (ASK, ASK),
    "no tags": ("red",),
    "empty answer": ("<think></think><answer></answer>",),
    "wrong tool": (ASK.replace("resize_image", "zoom"),),
    "wrong argument": (ASK.replace('"resize"}', '"crop"}'),),
    "extra argument": (ASK.replace('"resize"}', '"resize", "by": 2}'),),
    "repeated key": (ASK.replace('{"action"', '{"action": "resize", "action"'),),
    "no JSON": (ASK.replace("}}", "}"),),
    "call and answer": (ASK + "<answer>red</answer>",),
    "broken second turn": (ASK, "<think>clear</think>red"),
}
CASES = {
    "policy": ("policy", RolloutConfig(max_prompt_tokens=2048), (224, 224)),
    "short prompts": ("policy", RolloutConfig(max_prompt_tokens=60), (112, 112)),
    "general": ("policy", RolloutConfig(mode="general", max_prompt_tokens=2048), (224, 224)),
    "always_full": ("always_full", RolloutConfig(), (112, 168)),
    "always_quarter": ("always_quarter", RolloutConfig(), (224, 224)),
    "too small": ("policy", RolloutConfig(), (28, 28)),
}


def digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


async def play(tokenizer, style, case, script):
    kind, rollout, (height, width) = CASES[case]
    pixels = np.arange(height * width * 3, dtype=np.uint64).reshape(height, width, 3) % 251
    views = make_views(pixels.astype(np.uint8), SPEC, "sha")
    engine = ScriptedEngine(lambda text: tokenizer.encode(text, add_special_tokens=False), SCRIPTS[script])
    renderer = ChatRenderer(tokenizer, load_prompt_style(style))
    episode_id = EpisodeId(run="r", step=1, sample="s", index=0, attempt=0)
    rules = rules_for(kind, rollout, greedy=False)
    (episode,) = await play_group(engine, renderer, views, "what is <image>it?", rules, (episode_id,))
    shown = [
        [
            digest(prompt_ids),
            [[image.key, image.num_visual_tokens, digest(image.picture.tobytes().hex())] for image in images],
        ]
        for prompt_ids, images in engine.calls
    ]
    played = PlayedGroup(
        ref=SampleRef(dataset="d", row=3, uid="s"),
        question="what is it?",
        answer="red",
        needs_full=None,
        episodes=(episode,),
        full_size=(height, width),
        num_full_tokens=views.full.num_visual_tokens,
        image_sha256="sha",
    )
    verdict = Verdict(is_correct=episode.answer == "red", judge="rules", reason="same text")
    plays = [HeldoutPlay(kind=kind, played=played, outcomes=(verdict,))]
    (row,) = pa.Table.from_pylist(list(rows_of_evaluation(7, plays)), schema=EPISODES).to_pylist()
    (reward,) = group_rewards(played.episodes, (verdict,), Config().reward)
    return {"shown": shown, "row": row, "reward": reward.total}


def all_played():
    tokenizer = load_tokenizer("configs/tiny")
    return {
        f"{style}/{case}/{script}": asyncio.run(play(tokenizer, style, case, script))
        for style in ("tiny", "qwen")
        for case in CASES
        for script in SCRIPTS
        if (style == "tiny" or case in ("policy", "general")) and (case == "policy" or script in ("direct", "asked"))
    }


def known_columns(row, known):
    """The row with the columns, also those of its turns, that the golden one has."""
    kept = {name: value for name, value in row.items() if name in known}
    turns = [
        {name: value for name, value in turn.items() if name in known["turns"][0]} for turn in kept.get("turns", ())
    ]
    return kept | {"turns": turns}


@pytest.fixture(scope="module")
def played():
    return json.loads(json.dumps(all_played()))


def test_the_default_episodes_are_what_they_were(played):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert played.keys() == golden.keys()
    for name, expected in golden.items():
        found = played[name]
        assert found["shown"] == expected["shown"], name
        assert known_columns(found["row"], expected["row"]) == expected["row"], name
        assert found["reward"] == expected["reward"], name


def test_the_golden_file_has_both_endings_of_a_call(played):
    statuses = {name: entry["row"]["status"] for name, entry in played.items()}
    assert statuses["tiny/policy/asked"] == "answered"
    assert statuses["tiny/short prompts/asked"] == "truncated"
    assert statuses["tiny/policy/asked twice"] == statuses["tiny/general/asked"] == "malformed"
