"""The pages: every command in them exists with its options and settings, links lead somewhere, and the site builds."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import typer.main

from cluster.cli import app
from configs.load import FOLDER, describe_fields
from configs.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
KEYS = {field.key for field in describe_fields()}
STARTS = re.compile(r"(?:^|[\s`&;/])(visionthink (?!is\b|teaches)[^`\n]*)")
PLACEHOLDER = re.compile(r"[A-Z_]+(?:[./][A-Z_]+)*|\.\.\.|\[.*|.*\]|section\.key=value")


def commands_of(text: str) -> list[str]:
    """Commands in code of a page: in blocks, indented lines and backticks. What follows two spaces is a remark."""
    found: list[str] = []
    fenced = False
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        code = [line] if fenced or line.startswith("    ") else re.findall(r"`([^`]+)`", line)
        for piece in code:
            for part in re.split(r"\s*(?:&&|;|\|)\s+", piece):
                if match := STARTS.search(part):
                    found.append(re.split(r"\s{2,}|\s#\s", match[1].strip())[0])
    return found


def problem_of(words: list[str]) -> str | None:
    """Why a command line (without the program's name) cannot be understood; None if it can."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            options = {name for parameter in command.params for name in parameter.opts}
            known = not words or words[0] in {*options, "--help"}
            return None if known else f"no option {words[0]}"
        if words[0] not in command.commands:
            return f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    options = {name: parameter for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    takes_settings = "overrides" in [parameter.name for parameter in command.params]
    while words:
        word, *words = words
        if word == "--":
            return problem_of(words)
        if word.startswith("-"):
            name, _, value = word.partition("=")
            if name not in options and name != "--help":
                return f"{command.name} has no option {name}"
            if name != "--help" and not getattr(options[name], "is_flag", False) and not value:
                value, *words = words or ["MISSING"]
                if name == "--config" and not PLACEHOLDER.fullmatch(value) and not (FOLDER / f"{value}.yaml").exists():
                    return f"no config {value}"
        elif takes_settings and "=" in word and not PLACEHOLDER.fullmatch(word):
            key = word.partition("=")[0].strip("[]")
            if key not in KEYS and not re.fullmatch(r".*\.[A-Z]", key):
                return f"no setting {key}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_exists_with_its_options_and_settings(page):
    wrong = {}
    for command in commands_of(page.read_text(encoding="utf-8")):
        words = [word.strip("[]") if word.startswith("[--") else word for word in shlex.split(command)[1:]]
        if problem := problem_of([word for word in words if word not in ("...", "[")]):
            wrong[command] = problem
    assert wrong == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("train run.name=x --resume", None),
        ("train train.num_step=3", "no setting train.num_step"),
        ("train --config visionthink_7b", "no config visionthink_7b"),
        ("submit --address http://HEAD:8265 -- train --restrat", "train has no option --restrat"),
        ("judge chekc", "no command 'chekc'"),
        ("--version", None),
    ],
)
def test_a_mistake_in_a_command_is_found(line, problem):
    assert problem_of(shlex.split(line)) == problem


def test_commands_are_found_in_blocks_and_in_backticks():
    text = "`visionthink plan --json`\n\n    uv run visionthink train x.y=1   a remark\n\n```\nvisionthink eval\n```"
    assert commands_of(text) == ["visionthink plan --json", "visionthink train x.y=1", "visionthink eval"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page):
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_site_builds_without_a_warning_and_has_every_setting_and_command(tmp_path):
    if find_spec("material") is None:
        pytest.skip("the group `docs` is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "configuration" / "index.html").read_text()
    assert [key for key in KEYS if f"<code>{key.rpartition('.')[2]}</code>" not in settings] == []
    assert "visionthink judge replay" in (tmp_path / "commands" / "index.html").read_text()
    assert (tmp_path / "loop.svg").is_file()
