"""What an LLM may be asked besides a verdict: a grade from 0 to 1, or the final answer in a longer text.

Benchmarks need them (MM-Vet, MathVista, MathVerse). The wordings are `configs/prompts/{grade,extract}.yaml`, with the
places of `judge.llm.prompt`, whose fences and strictness hold here as well.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from judge.verdict import Task

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "prompts"
GRADES = tuple(f"{tenth / 10:.1f}" for tenth in range(11))
"""MM-Vet (arXiv 2308.02490, table 2) grades in tenths."""
PASSING_GRADE = 0.5
MIN_EXTRACT_TOKENS = 256
NAMES = {"verdict": "verdict", "grade": "grade", "extract": "answer"}
"""The one key of a reply in JSON."""
_GRADE = re.compile(r"(?:0|1|0\.\d|1\.0)")


@lru_cache
def task_prompt(task: Task, form: str) -> tuple[str, str]:
    """System and user text for a task and the form of `judge.llm.reply`, without the data."""
    texts = yaml.safe_load((FOLDER / f"{task}.yaml").read_text(encoding="utf-8"))
    return texts["system"], texts["user"].replace("{reply}", texts["json_reply" if form == "json" else "text_reply"])


def reply_schema(task: Task) -> tuple[str, dict[str, Any]]:
    """Name and JSON schema of the one value that a reply holds."""
    if task == "extract":
        return NAMES[task], {"type": "string"}
    if task == "grade":
        return NAMES[task], {"type": "number", "enum": [float(grade) for grade in GRADES]}
    return NAMES[task], {"type": "integer", "enum": [0, 1]}


def parse_task_reply(task: Task, text: str, form: str) -> tuple[bool, str] | None:
    """(whether the grade passes, or anything was extracted; the grade or the answer); None if it is neither."""
    value = text.strip()
    if form == "json":
        try:
            reply = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return None
        if not isinstance(reply, dict) or set(reply) != {NAMES[task]}:
            return None
        value = reply[NAMES[task]]
        if isinstance(value, bool) or not isinstance(value, str if task == "extract" else (int, float)):
            return None
        value = str(value).strip()
    if task == "extract":
        return value != "", value
    return (float(value) >= PASSING_GRADE, value) if _GRADE.fullmatch(value) else None
