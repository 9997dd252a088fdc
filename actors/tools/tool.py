"""What a tool is: a declaration for the prompt, and a pure function from a call to the view that it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actors.views import Size, View
from configs.tools import ToolsConfig

Schema = Mapping[str, Any]
"""A JSON schema; `actors.tools.arguments` says which of it is understood."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongCall:
    """A call in the right tags that the rules refuse. The reason never quotes what the policy wrote."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a call can refer to."""

    full_size: Size
    """Of the full view."""
    token_side: int
    """Pixels of a visual token's side."""
    shown: tuple[View, ...]
    """The pictures shown so far, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What the system prompt says of a tool."""

    description: str
    parameters: Schema
    """Of the arguments: an object. Calls are checked against it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool costs the visual tokens of the view that it shows (`actors.views.tokens_of`)."""

    name: str
    declare: Callable[[ToolsConfig], Declaration]
    show: Callable[[Scene, Mapping[str, Any], ToolsConfig], View | WrongCall]
    """The view for arguments that fit the declared schema, or why they cannot be followed. Pure."""
    max_calls: int | None
    """Calls per episode, unless `rollout.tools.max_calls` says otherwise; None leaves it to the number of turns."""
    shows: Literal["full", "region"]
    """The full view, or a region of it: for what is said and estimated of its cost before it is called."""
    followup: str
    """Text next to the view that it shows, for prompt styles that have none of their own."""
