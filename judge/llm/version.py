"""One short name for everything that can change a verdict."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from dataclasses import asdict
from functools import cache
from importlib import import_module
from typing import Any

from configs.judges import JudgeConfig
from judge.llm.prompt import load_wording
from judge.llm.served_model import served_name

DIGEST_CHARS = 16
ALWAYS, RULES, LLM = ("judge.trust.precheck",), ("judge.rules.judge",), ("judge.llm.prompt", "judge.llm.reply")
"""Modules that decide; what they import of `judge` decides with them."""
TYPES_ALONE = frozenset({"judge.verdict"})


def judge_version(config: JudgeConfig) -> str:
    """Hex digest of chain, rules, wording, model, revision, reply form, sampling and caps.

    The rules and the reading of replies count by their source text, so a changed rule is a new version. What cannot
    change a verdict is left out: address, key, limits, deadlines, prices, replicas.

    Raises:
        ValueError: the wording cannot be read.
    """
    parts: dict[str, Any] = {
        "chain": list(config.chain),
        "max_answer_chars": config.max_answer_chars,
        "code": _sources(ALWAYS),
    }
    if "rules" in config.chain:
        parts["rules"] = {
            "metric": config.metric,
            "code": _sources(RULES),
        }
    if config.has_llm:
        llm = config.llm
        parts["llm"] = {
            "model": served_name(config),
            "revision": llm.revision,
            "reply": llm.reply,
            "thinks": llm.thinks,
            "max_reply_tokens": llm.max_reply_tokens,
            "max_field_chars": llm.max_field_chars,
            "wording": asdict(load_wording(llm.prompt)),
            "code": _sources(LLM),
        }
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_CHARS]


def _sources(roots: tuple[str, ...]) -> dict[str, str]:
    """Digest of the source of each module that these ones reach."""
    return {name: hashlib.sha256(_source(name).encode()).hexdigest() for name in deciding_modules(roots)}


def deciding_modules(roots: tuple[str, ...]) -> list[str]:
    """The modules and all of `judge` that they import, directly or not, in alphabetical order."""
    found: set[str] = set()
    open_names = list(roots)
    while open_names:
        name = open_names.pop()
        if name not in found | TYPES_ALONE:
            found.add(name)
            nodes = ast.walk(ast.parse(_source(name)))
            froms = (node.module or "" for node in nodes if isinstance(node, ast.ImportFrom))
            open_names += [module for module in froms if module.startswith("judge.")]
    return sorted(found)


@cache
def _source(name: str) -> str:
    return inspect.getsource(import_module(name))
