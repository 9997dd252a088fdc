"""Build hooks of the site: settings from the schema, commands from the program, and a nav of the pages that exist."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cluster.cli import app  # noqa: E402
from configs.load import describe_fields  # noqa: E402


def on_config(config: Any) -> Any:
    """Leave pages that are not there out of the nav."""
    config["nav"] = list(_there(config["nav"], Path(config["docs_dir"])))
    return config


def _there(entries: list[Any], folder: Path) -> Iterator[Any]:
    for entry in entries:
        ((title, target),) = entry.items()
        if isinstance(target, list):
            yield {title: list(_there(target, folder))}
        elif (folder / target).is_file():
            yield entry


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the two references in."""
    for mark, make in (("<!-- settings -->", settings), ("<!-- commands -->", commands)):
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    return markdown


def settings() -> str:
    """A table per section of the schema."""
    lines, last = [], ""
    for field in describe_fields():
        section, _, name = field.key.rpartition(".")
        if section != last:
            lines += ["", f"## {section}", "", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
            last = section
        cells = (f"`{name}`", f"`{field.type}`", f"`{field.default}`" if field.default else "", field.doc)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def commands() -> str:
    """A heading per command, with its text and options."""
    root = typer.main.get_command(app)
    return "\n".join(line for name, command in leaves("visionthink", root) for line in _described(name, command))


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Commands that do something, by their whole names."""
    if not hasattr(command, "commands"):  # a group, of click or of the copy of it that Typer has
        yield name, command
        return
    for child in sorted(command.commands):
        yield from leaves(f"{name} {child}", command.commands[child])


def _described(name: str, command: Any) -> Iterator[str]:
    yield from ("", f"### {name}", "", command.help or "", "")
    for parameter in command.params:
        text = " ".join(str(getattr(parameter, "help", "") or "").split())
        names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
        yield f"- {names}{': ' if text else ''}{text}"
