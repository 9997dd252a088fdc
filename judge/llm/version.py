"""Who answers and how it is asked, as one short name: with the three texts of a call it is the key of a verdict."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from configs.judges import JudgeConfig
from judge.llm.prompt import call_options, load_wording
from judge.llm.served_model import model_id
from judge.verdict import JudgeRequest, Task

FORMAT = 1
"""Raise it when the same wording and texts give another prompt, or the same reply is read as another verdict."""


def judge_version(config: JudgeConfig) -> str:
    """Hex digest of endpoint, model, revision, sampling, form of reply and the words around the data.

    What no LLM sees is left out: rules, chain, key, limits, deadlines, prices, replicas. A model that the cluster
    serves counts by its content, not by the port where it happens to listen. Empty where no LLM judges.

    Raises:
        ValueError: the wording cannot be read.
    """
    if not config.has_llm:
        return ""
    llm, endpoint = config.llm, [config.llm.base_url.rstrip("/"), config.llm.azure_api_version]
    if "cluster" in config.chain:
        endpoint, folder = ["cluster"], Path(llm.model)
        # Once it is served, `model` is the name already.
        llm = replace(llm, model=model_id(folder)) if folder.is_dir() else llm
    asked = [call_options(llm), load_wording(llm.prompt).filled(config)]
    parts = [FORMAT, endpoint, llm.revision, asked, llm.max_field_chars]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def version_for(
    version: str, request: JudgeRequest, config: JudgeConfig, prompt: Callable[[Task], tuple[str, str]]
) -> str:
    """The version of a judge for one request: its own for a first verdict, another for each other task and run."""
    if request.task == "verdict" and not request.run:
        return version
    asked = [request.run, prompt(request.task), call_options(config.llm, request.task, request.run)]
    return f"{version}-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]}"
