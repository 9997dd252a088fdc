"""Which episodes a page shows: a filter from the query of an address, as SQL with bound values, and back. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from actors.needs import NEEDS
from actors.tools.registry import TOOLS

CHOICES: Mapping[str, Mapping[str, str]] = {
    "set": {"training": "set = 'training'", "heldout": "set = 'heldout'"},
    "kind": {name: f"kind = '{name}'" for name in ("policy", "always_quarter", "always_full")},
    "verdict": {"right": "is_correct", "wrong": "NOT is_correct", "none": "is_correct IS NULL"},
    "tool": {
        "asked": "asked",
        "direct": "NOT asked",
        **{name: f"list_contains(tools, '{name}')" for name in TOOLS},
        "refused": "refused_calls > 0",
    },
    "calls": {"1": "tool_calls = 1", "2": "tool_calls = 2", "3 or more": "tool_calls > 2"},
    "need": {**{name: f"need = '{name}'" for name in reversed(NEEDS)}, "unknown": "need IS NULL"},
    "status": {name: f"status = '{name}'" for name in ("answered", "malformed", "truncated")},
    "trained": {"yes": "is_trained", "no": "NOT is_trained"},
}
"""Parameter to its values, each with its condition."""
EXACT = ("sample", "judge", "reason", "file")
"""Parameters that are compared as they are."""
SORTS = (
    "step",
    "reward",
    "advantage",
    "visual_tokens",
    "tool_calls",
    "generated_tokens",
    "question",
    "answer",
    "oldest_version",
)
STEPS = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?", re.ASCII)
MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A question that people ask of a run."""

    title: str
    about: str
    condition: str
    needs_tool_choice: bool = False
    """Offered only for runs that have more to choose from than the full view."""


PRESETS: Mapping[str, Preset] = {
    "needless": Preset(
        title="asked needlessly",
        about="Called a tool although the quarter view is enough: by the data set, or, where that does not say, "
        "because another episode of the sample was right without a call.",
        condition="kind = 'policy' AND asked AND (need = 'quarter' OR (need IS NULL AND direct_right > 0))",
    ),
    "missed": Preset(
        title="should have asked",
        about="Wrong from the quarter view alone, where more is needed: by the data set, or, where that does not say, "
        "because another episode of the sample was right after a call, or with the full view.",
        condition="kind = 'policy' AND NOT asked AND is_correct IS FALSE "
        "AND (need IN ('region', 'full') OR (need IS NULL AND called_right > 0))",
    ),
    "tool": Preset(
        title="wrong tool",
        about="Did not answer after exactly the view that the data set says is needed: after more, less or another "
        "one, or not at all. Any region counts as the one that is.",
        condition="kind = 'policy' AND is_right_tool IS FALSE",
        needs_tool_choice=True,
    ),
    "wrong": Preset(title="wrong", about="Judged wrong, or without an answer.", condition="is_correct IS FALSE"),
    "masked": Preset(
        title="masked",
        about="Without a verdict: left out of the group's reward and of the accuracy.",
        condition="is_correct IS NULL",
    ),
    "malformed": Preset(
        title="malformed",
        about="A turn broke the format, or ended at the token limit.",
        condition="is_well_formed IS FALSE",
    ),
    "disagree": Preset(
        title="judges disagree",
        about="The same answer to the same question was judged right in one episode and wrong in another.",
        condition="(question, reference, coalesce(answer, '')) IN (SELECT question, reference, answer FROM disputed)",
    ),
}


def choices(*, with_tool_choice: bool) -> dict[str, list[str]]:
    """The values of each parameter that a page offers."""
    names = {name: list(values) for name, values in CHOICES.items()}
    return names if with_tool_choice else names | {"need": [need for need in names["need"] if need != "region"]}


def presets(*, with_tool_choice: bool) -> dict[str, Preset]:
    """The presets that a page offers."""
    return {name: preset for name, preset in PRESETS.items() if with_tool_choice or not preset.needs_tool_choice}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Parameters of an address that choose episodes. Parameters of other meaning are left alone.

    Raises:
        ValueError: a parameter has a value that it cannot have.
    """

    values: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if len(value) > MAX_TEXT:
                raise ValueError(f"{name} is invalid: at most {MAX_TEXT} characters")
            allowed = PRESETS if name == "preset" else CHOICES.get(name)
            if allowed is not None and value not in allowed:
                raise ValueError(f"{name}={value!r} is invalid: give one of {', '.join(allowed)}")
            if name == "sort" and value.removeprefix("-") not in SORTS:
                raise ValueError(f"sort={value!r} is invalid: give one of {', '.join(SORTS)}, with - for descending")
            if name == "step" and not STEPS.fullmatch(value):
                raise ValueError(f"step={value!r} is invalid: give a step such as 12, or several such as 10-20")

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filter:
        """From the parameters of an address; empty ones do not count."""
        names = {*CHOICES, *EXACT, "preset", "sort", "step", "q"}
        return cls(values={name: value for name, value in query.items() if name in names and value})

    def get(self, name: str) -> str:
        return self.values.get(name, "")

    def query(self) -> str:
        """As the query of an address."""
        return urlencode(self.values)

    def where(self) -> tuple[str, list[object]]:
        """Condition and the values bound to its question marks."""
        parts, bound = ["TRUE"], list[object]()
        for name, value in self.values.items():
            if name in CHOICES:
                parts.append(CHOICES[name][value])
            elif name == "preset":
                parts.append(PRESETS[value].condition)
            elif name in EXACT:
                parts.append(f"{name} = ?")
                bound.append(value)
        if match := STEPS.fullmatch(self.get("step")):
            parts.append("step BETWEEN ? AND ?")
            bound += [int(match[1]), int(match[2] or match[1])]
        if text := self.get("q"):
            parts.append("contains(searched, lower(?))")
            bound.append(text)
        return " AND ".join(f"({part})" for part in parts), bound

    def order(self) -> str:
        """Newest first, and the episodes of a group together, unless told otherwise."""
        chosen = self.get("sort")
        column, direction = chosen.removeprefix("-"), "DESC" if chosen.startswith("-") else "ASC"
        first = f"{column} {direction} NULLS LAST, " if chosen else ""
        return f'{first}step DESC, set DESC, file DESC, sample, kind DESC, "index", ordinal'
