"""The tools by name, and those of a run as a toolbox: it declares them, reads calls, and says what a call shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.tools.arguments import fault
from actors.tools.local_region import LOCAL_REGION
from actors.tools.resize import RESIZE
from actors.tools.tool import Scene, Tool, WrongCall
from actors.tools.zoom_in import ZOOM_IN
from actors.views import View
from configs.tools import ToolsConfig

TOOLS = {tool.name: tool for tool in (RESIZE, LOCAL_REGION, ZOOM_IN)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool on offer whose arguments fit its schema. Whether it can be followed depends on the scene."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """The tools on offer."""

    tools: tuple[Tool, ...]
    config: ToolsConfig

    @property
    def is_resize_alone(self) -> bool:
        """Whether these are the tools of the paper: the full view and nothing else."""
        return [tool.name for tool in self.tools] == [RESIZE.name]

    def max_calls(self, tool: Tool) -> int | None:
        """Calls of a tool that an episode may have; None leaves it to the number of turns."""
        return self.config.max_calls.get(tool.name, tool.max_calls)

    @property
    def most_calls(self) -> int:
        """Calls that an episode may have."""
        limits = [self.max_calls(tool) for tool in self.tools]
        turns = self.config.max_turns - 1
        return min(turns, sum(turns if limit is None else limit for limit in limits))

    def declarations(self) -> str:
        """The tools as JSON, one a line, as the system prompt shows them."""
        return "\n".join(json.dumps(self._declaration(tool)) for tool in self.tools)

    def parse(self, text: str) -> ToolCall | WrongCall:
        """A call as the policy wrote it: {"name": a tool on offer, "arguments": what fits its schema}, as JSON."""
        try:
            call = json.loads(text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):  # ValueError covers JSONDecodeError, repeated keys and very long numbers
            return WrongCall(reason="the call must be valid JSON")
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            return WrongCall(reason="the call must be an object with the keys name and arguments and no others")
        tool = next((tool for tool in self.tools if tool.name == call["name"]), None)
        if tool is None:
            return WrongCall(reason=f"name must be {' or '.join(tool.name for tool in self.tools)}")
        reason = fault(call["arguments"], tool.declare(self.config).parameters)
        return WrongCall(reason=reason) if reason else ToolCall(name=tool.name, arguments=call["arguments"])

    def show(self, call: ToolCall, scene: Scene, calls: Sequence[str]) -> View | WrongCall:
        """The view that a call shows. `calls`: the tools that were called in the episode before."""
        tool = TOOLS[call.name]
        most = self.max_calls(tool)
        if most is not None and Counter(calls)[tool.name] >= most:
            return WrongCall(reason=f"{tool.name} may be called {most} time{'s' if most > 1 else ''}")
        return tool.show(scene, call.arguments, self.config)

    def _declaration(self, tool: Tool) -> dict[str, Any]:
        said = tool.declare(self.config)
        about = {"name": tool.name, "description": said.description, "parameters": said.parameters}
        return {"type": "function", "function": about}


def toolbox_of(config: ToolsConfig) -> Toolbox:
    """The tools that a config names.

    Raises:
        ValueError: there is no such tool.
    """
    for name in config.names:
        if name not in TOOLS:
            raise ValueError(f"rollout.tools.names={name!r} is invalid: must be one of {', '.join(TOOLS)}")
    return Toolbox(tools=tuple(TOOLS[name] for name in config.names), config=config)


RESIZE_ALONE = toolbox_of(ToolsConfig())
"""The default: the tools of the paper."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook for `json.loads`; ValueError where an object has a key twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("duplicate key")
    return dict(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
