"""One short name for everything that can change a verdict."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import asdict
from types import ModuleType
from typing import Any

from configs.judges import JudgeConfig
from judge import fence, normalise, precheck, prompt, quantity, reply, rules
from judge.prompt import load_wording

DIGEST_CHARS = 16
ALWAYS: tuple[ModuleType, ...] = (precheck, fence, normalise)
"""Code that decides in every chain."""
RULES: tuple[ModuleType, ...] = (rules, quantity)
LLM: tuple[ModuleType, ...] = (prompt, reply)


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
            "relative_tolerance": config.relative_tolerance,
            "code": _sources(RULES),
        }
    if config.has_llm:
        llm = config.llm
        parts["llm"] = {
            "model": llm.model,
            "revision": llm.revision,
            "reply": llm.reply,
            "max_reply_tokens": llm.max_reply_tokens,
            "max_field_chars": llm.max_field_chars,
            "wording": asdict(load_wording(llm.prompt)),
            "code": _sources(LLM),
        }
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:DIGEST_CHARS]


def _sources(modules: tuple[ModuleType, ...]) -> dict[str, str]:
    return {module.__name__: hashlib.sha256(inspect.getsource(module).encode()).hexdigest() for module in modules}
