"""Runs as they lie on disk, written by hand: for the tests of the viewer."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.records.episodes import EPISODES, write_episodes
from configs.load import to_yaml
from configs.schema import Config


def turn(text: str = "<think>flat</think>", view: str = "quarter", **changes) -> dict:
    return {
        "text": text,
        "view": view,
        "num_visual_tokens": 16 if view == "quarter" else 64,
        "num_prompt_tokens": 20 if view == "quarter" else 100,
        "completion_ids": [1, 2, 3],
        "logprobs": [-0.1, -0.2, -3.0],
        "version_spans": [{"version": 4, "num_tokens": 1}, {"version": 5, "num_tokens": 2}],
        "finish_reason": "stop",
    } | changes


def call(name: str, **arguments) -> str:
    return f"<think>there</think><tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def crop(text: str, view: str, tool: str, tokens: int, num_prompt_tokens: int = 60) -> dict:
    return turn(text, view, tool=tool, num_visual_tokens=tokens, num_prompt_tokens=num_prompt_tokens)


LOOK = call("request_local_region", bbox_2d=[28, 28, 84, 84])
ZOOM = call("image_zoom_in_tool", bbox_2d=[0, 56, 56, 112], label="corner", img_idx=1)
ANSWER = "<answer>vertical</answer>"
REGION, INNER = "crop:56,56,168,168", "crop:56,112,112,168"
TURNS = {
    "looked": [turn(LOOK), crop(ANSWER, REGION, "request_local_region", 16)],
    "zoomed": [
        turn(LOOK),
        crop(ZOOM, REGION, "request_local_region", 16),
        crop(ANSWER, INNER, "image_zoom_in_tool", 4, 90),
    ],
    "refused": [turn(LOOK), turn(ANSWER, None, tool=None, num_visual_tokens=0, num_prompt_tokens=40)],
    "resized": [turn("x"), turn(ANSWER, "full", tool="resize_image")],
    "direct": [turn(ANSWER)],
}


def episode(
    index: int = 0, *, sample: str = "0-7", asked: bool = False, correct: bool | None = True, **changes
) -> dict:
    row = {
        "step": 1,
        "kind": "policy",
        "sample": sample,
        "index": index,
        "attempt": 0,
        "dataset": "nowhere.parquet",
        "row": 0,
        "question": "Which way do the stripes run?",
        "reference": "vertical",
        "needs_full": None,
        "image_sha256": "00",
        "status": "answered",
        "asked": asked,
        "answer": "vertical" if correct else "across",
        "is_well_formed": True,
        "is_correct": correct,
        "judge": None if correct is None else "rules",
        "reason": "no verdict within 60 s" if correct is None else "same text",
        "num_calls": 0,
        "prompt_tokens": 0,
        "reply_tokens": 0,
        "reward": None if correct is None else 1.5 if correct else 0.5,
        "advantage": None if correct is None else 0.25,
        "is_trained": correct is not None,
        "oldest_version": 4,
        "newest_version": 5,
        "turns": [turn(), turn("<answer>vertical</answer>", "full")] if asked else [turn("<answer>vertical</answer>")],
    }
    return row | changes


def heldout(sample: str, kind: str, correct: bool | None, **changes) -> dict:
    row = episode(sample=sample, correct=correct, asked=False, kind=kind, reward=None, advantage=None, is_trained=False)
    return row | ({"turns": [turn(view="full")]} if kind == "always_full" else {}) | changes


def write_run(folder: Path, files: dict[str, list[dict]], metrics: list[dict] | None = None) -> Path:
    """A run folder; `files` are named `episodes/step-000001` and the like."""
    for name in ("episodes", "heldout"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(Config()))
    for name, rows in files.items():
        write_episodes(folder / f"{name}.parquet", rows)
    if metrics is not None:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def write_without(path: Path, rows: list[dict], *missing: str) -> None:
    """A file of an older version, that has fewer columns."""
    table = pa.Table.from_pylist(rows, schema=EPISODES)
    pq.write_table(table.drop_columns(list(missing)), path)
