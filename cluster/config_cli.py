"""`visionthink config` and `visionthink --version`."""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from cluster.shell import ConfigName, Json, Overrides, print_json, report_errors
from configs.load import describe_fields, load_config, to_yaml
from configs.paths import ROOT
from configs.suggest import did_you_mean


def our_version() -> str:
    """Of the installed package, or of the project's folder, from which a Ray job runs uninstalled."""
    project = ROOT / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return version("visionthink")
    except PackageNotFoundError:
        return "unknown"


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"visionthink {our_version()}")
        raise typer.Exit


def show_version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Train a vision-language model to answer from a quarter of the visual tokens and to request the full image only
    when the question needs it.
    """


def show_config(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    fields: Annotated[
        bool, typer.Option(help="List settings with type, default and meaning; arguments are the beginnings of keys.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the merged config of a run, or with --fields the reference of its settings.

    `config --fields judge.llm` lists those that begin with judge.llm, one a line.
    Lists may be written without brackets, which shells change: judge.chain=rules,openai.
    """
    with report_errors():
        if fields:
            _list_fields(overrides or [""], as_json)
            return
        settings = load_config(config, overrides or [])
        if as_json:
            print_json(asdict(settings))
        else:
            typer.echo(to_yaml(settings), nl=False)


def _list_fields(prefixes: list[str], as_json: bool) -> None:
    described = describe_fields()
    for prefix in prefixes:
        if not any(field.key.startswith(prefix) for field in described):
            keys = [field.key for field in described]
            near = did_you_mean(prefix, {*keys, *(key.rpartition(".")[0] for key in keys)})
            raise ValueError(f"no setting begins with {prefix!r}{near}")
    found = [field for field in described if field.key.startswith(tuple(prefixes))]
    if as_json:
        print_json({"fields": [asdict(field) for field in found]})
        return
    for field in found:
        typer.echo(f"{field.key}: {field.type} = {field.default}  # {field.doc}")
