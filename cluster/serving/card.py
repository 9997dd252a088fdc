"""What an exported policy carries beside its weights: a model card, a client, and the settings it was trained with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from string import Template

import yaml

from actors.hub import model_name
from actors.prompts import load_prompt_style
from actors.tools.registry import Toolbox, toolbox_of
from actors.tools.resize import RESIZE_CALL
from configs.schema import Config

SETTINGS = "visionthink.yaml"
"""Settings in an export, in the form of a config: those that its policy was trained with."""
PROMPT = "prompt.yaml"
TEMPLATES = Path(__file__).resolve().parent / "export"


def write_card(folder: Path, config: Config, *, step: int | None) -> None:
    """Complete an exported policy; the files that are there already are replaced.

    Raises:
        ValueError: the prompt template of the config cannot be read.
    """
    model, rollout = config.model, config.rollout
    folder.mkdir(parents=True, exist_ok=True)
    style = load_prompt_style(model.prompt)
    settings = {
        "model": {
            "dtype": model.dtype,
            "prompt": PROMPT,
            "min_pixels": model.min_pixels,
            "max_pixels": model.max_pixels,
        },
        "rollout": {
            "mode": rollout.mode,
            "max_turn_tokens": rollout.max_turn_tokens,
            "max_prompt_tokens": rollout.max_prompt_tokens,
            "num_gpus": rollout.num_gpus,
            "tensor_parallel_size": rollout.tensor_parallel_size,
            "tools": asdict(rollout.tools),
        },
        # Not used, but a config is checked as a whole.
        "learner": {
            name: getattr(config.learner, name) for name in ("num_gpus", "zero_stage", "max_tokens_per_micro_batch")
        },
    }
    _write_yaml(folder / PROMPT, style.texts())
    _write_yaml(folder / SETTINGS, settings)
    places = {
        "name": config.run.name,
        "step": "unknown" if step is None else str(step),
        "base": model_name(model.path),
        "max_pixels": str(model.max_pixels),
        "min_pixels": str(model.min_pixels),
        "max_model_len": str(rollout.max_model_len),
        "max_tokens": str(rollout.max_turn_tokens),
        "max_pictures": str(rollout.tools.max_turns),
        "tools": _tools(toolbox_of(rollout.tools)),
        "user_without_tool": style.user_without_tool.format(question="QUESTION"),
        "system_without_tool": style.system_without_tool.format() or "(none)",
    }
    for template, name in (("README.md", "README.md"), ("client.py.txt", "client.py")):
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(places)
        (folder / name).write_text(text, encoding="utf-8")


def _tools(toolbox: Toolbox) -> str:
    """The tools of the policy, for the card."""
    if toolbox.is_resize_alone:
        return f"It may ask for the full view once, with\n`<tool_call>{RESIZE_CALL}</tool_call>`."
    lines = [f"- `{tool.name}`: {tool.declare(toolbox.config).description}" for tool in toolbox.tools]
    most = f"at most {toolbox.config.max_turns} turns, the answer included"
    return "\n".join([f"It has these tools, for {most}:", "", *lines])


def _write_yaml(file: Path, content: dict[str, object]) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
