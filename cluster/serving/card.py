"""What an exported policy carries beside its weights: a model card, a client, and the settings it was trained with."""

from __future__ import annotations

import json
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
        **_texts_on_tools(toolbox_of(rollout.tools) if rollout.mode == "efficient" else None),
        "user_without_tool": style.user_without_tool.format(question="QUESTION"),
        "system_without_tool": style.system_without_tool.format() or "(none)",
    }
    for template, name in (("README.md", "README.md"), ("client.py.txt", "client.py")):
        text = Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(places)
        (folder / name).write_text(text, encoding="utf-8")


def _texts_on_tools(toolbox: Toolbox | None) -> dict[str, str]:
    """What the card says of the tools; None: the policy has none, and is shown the full view at once."""
    if toolbox is None:
        return {
            "summary": "A vision-language policy that is shown the whole picture at once",
            "first": "the policy sees the full view.",
            "tools": "None: a picture is shown in full at once.",
            "turns": "",
            "tool_names": "nothing",
        }
    asks = "asks for the full image" if toolbox.is_resize_alone else "calls tools for more of the picture"
    return {
        "summary": "A vision-language policy that is shown a quarter of the visual tokens first and "
        f"{asks} only when the\nquestion needs it",
        "first": "the policy sees the quarter view first.",
        "tools": _tools(toolbox),
        "turns": SEVERAL_TURNS,
        "tool_names": ", ".join(tool.name for tool in toolbox.tools),
    }


SEVERAL_TURNS = """\
- Several turns: `prompt.yaml` has the prompts with tools. The first picture has half of the full view's width and
  height. A reply that ends with `<tool_call>…</tool_call>` calls a tool; what it shows follows in a user turn.
"""
COSTS = {
    "full": "the visual tokens of the full view, four times those of the first picture",
    "region": "the visual tokens of the region at the full view's scale, enlarged to whole ones: those of the full "
    "view times the region's share of the area",
}
"""By what a tool shows."""


def _tools(toolbox: Toolbox) -> str:
    """The tools of the policy: what each shows, costs and takes, and what follows a wrong call."""
    config = toolbox.config
    lines = [f"At most {config.max_turns} turns, the answer included. A call, and its arguments as JSON schemas:", ""]
    call = RESIZE_CALL if toolbox.is_resize_alone else '{"name": NAME, "arguments": ARGUMENTS}'
    lines += [f"    <tool_call>{call}</tool_call>", ""]
    for tool in toolbox.tools:
        said, most = tool.declare(config), toolbox.max_calls(tool)
        times = "as often as turns are left" if most is None else "once" if most == 1 else f"{most} times"
        lines += [f"- `{tool.name}`: {said.description}"]
        lines += [f"  It may be called {times}. A call costs {COSTS[tool.shows]}."]
        lines += ["", f"      {json.dumps(said.parameters)}", ""]
    ends = "ends the episode as malformed" if config.on_wrong_call == "malformed" else "is answered with the reason"
    return "\n".join([*lines, f"A call that breaks these rules {ends}."])


def _write_yaml(file: Path, content: dict[str, object]) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
