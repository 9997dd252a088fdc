"""The `visionthink data` commands: get a data set, check it, select from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.datasets.bars import bars
from cluster.datasets.shipped import make_data, make_missing_data
from cluster.hub import fetch_named, name_in
from cluster.shell import (
    ConfigName,
    Json,
    Overrides,
    print_json,
    report_errors,
    run_async,
    warn_user,
)
from configs.load import load_config
from configs.paths import resolve_paths
from configs.require import require
from configs.tasks import DEFAULT_TASK, TaskName, task_folder

data_app = typer.Typer(no_args_is_help=True, help="Get, generate, check and select data sets.")


@data_app.command()
def get(
    name: Annotated[
        str,
        typer.Argument(
            help="hf://org/name, then @revision (a branch, tag or commit) and /split, /folder, /file or /glob if "
            "wanted. A page of the Hub (https://huggingface.co/datasets/...) is one too."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files. Default: the Hub's cache (HF_HOME), shared with others.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download one split of a data set of the Hugging Face Hub, and print the path that data.train takes.

    An interrupted download continues when the command is given again. HF_ENDPOINT
    names another hub, HF_TOKEN gives access to private and gated sets, and with
    HF_HUB_OFFLINE=1 only the cache is looked at.
    """
    with report_errors():
        from actors.data.tables import open_rows
        from actors.hub import download, snapshot_of

        asked = name_in("NAME", "dataset", name if "://" in name else f"hf://{name}")
        if asked is None:
            raise ValueError(f"NAME={name!r} is invalid: must be hf://org/name[@revision][/split]")
        path = download(asked, out=out)
        rows, pinned = open_rows(path), snapshot_of(path)
        columns = [name for _, schema in list(rows.schemas.values())[:1] for name in schema.names]
        if as_json:
            revision = pinned.revision if pinned else asked.revision
            print_json({"path": path, "rows": len(rows), "columns": columns, "revision": revision})
        else:
            warn_user(f"{len(rows)} rows with the columns {', '.join(columns)}; data.columns maps other names")
            typer.echo(path)


@data_app.command()
def make(
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder for train.parquet and heldout.parquet. Default: data/TASK.", show_default=False
        ),
    ] = None,
    task: Annotated[TaskName, typer.Option(help="shapes, or crop: questions about one region, too.")] = DEFAULT_TASK,
    train_rows: Annotated[int, typer.Option(help="Number of training rows.")] = 8000,
    heldout_rows: Annotated[int, typer.Option(help="Number of held-out rows.")] = 500,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives identical files.")] = 0,
    as_json: Json = False,
) -> None:
    """Generate the shapes task or the crop task, in which it is known which questions need what resolution where."""
    with report_errors():
        for name, number in (("--train-rows", train_rows), ("--heldout-rows", heldout_rows)):
            require(number >= 1, name, number, "must be at least 1")
        out = out or Path(task_folder(task))
        try:
            make_data(out, train_rows, heldout_rows, seed, task=task)
        except OSError as error:
            raise ValueError(f"--out={out} cannot be written to: {error.strerror}; give another folder") from error
        if as_json:
            print_json({"out": str(out), "train_rows": train_rows, "heldout_rows": heldout_rows, "seed": seed})
        else:
            typer.echo(str(out))


@data_app.command()
def check(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    rows: Annotated[int | None, typer.Option(help="Rows of each set to read, evenly spread. Default: all.")] = None,
    sheet: Annotated[Path, typer.Option(help="Contact sheet (PNG): both views, question and answer.")] = Path(
        "data_check.png"
    ),
    shown: Annotated[int, typer.Option(help="Rows of data.train on the contact sheet; 0 draws none.")] = 12,
    as_json: Json = False,
) -> None:
    """Read data.train and data.heldout as a run would, and report what is in them and what is wrong.

    Unreadable rows by reason, duplicates (same picture and question), leakage
    (held-out pictures or samples that are in the training set as well), visual
    tokens of both views, the share of rows that need the full view. Pictures are
    compared by their pixels. Exit code 1 if a run would stop or be spoiled.
    """
    with report_errors():
        from cluster.datasets.report import check_sets, report_lines
        from cluster.preflight.machine import folder_problem

        for name, number, least in (("--rows", rows, 1), ("--shown", shown, 0)):
            require(number is None or number >= least, name, number, f"must be at least {least}")
        require(not sheet.is_dir(), "--sheet", str(sheet), "is a folder; give the path of a PNG file in it")
        if shown and (problem := folder_problem("--sheet", str(sheet.parent))):
            raise ValueError(problem)
        settings = fetch_named(resolve_paths(load_config(config, overrides or [])), say=warn_user)
        make_missing_data(settings)
        found = check_sets(settings, limit=rows, num_shown=shown, sheet=sheet)
        for line in report_lines(found):
            typer.echo(line, err=as_json)
        if as_json:
            print_json(found)
        if found["problems"]:
            raise typer.Exit(1)


@data_app.command()
def select(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    out: Annotated[Path, typer.Option(help="Output folder; the same one again continues.")] = Path("data/selected"),
    rows: Annotated[int | None, typer.Option(help="Rows of data.train to try, at random. Default: all.")] = None,
    rollouts: Annotated[int, typer.Option(help="Rollouts on each view, at rollout.temperature.")] = 8,
    margin: Annotated[
        int | None,
        typer.Option(help="Right answers that the full view must have more. Default: 6 of 8.", show_default=False),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(help="Stop once both classes have this many. Default: try all rows.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Select training samples that teach when to ask for the full view, as in the paper.

    The model of model.path answers each question of data.train several times on
    the quarter view and as often on the full view, and the configured judge
    decides. All right on both: the quarter view is enough. Right at least 6 of 8
    times more often on the full view: it is needed. Both classes are balanced and
    written to OUT/train.parquet, which data.train reads, with the counts as
    columns. Samples that a judge failed on are excluded and counted.

    After a kill the same command continues; every finished sample is kept.
    """
    with report_errors():
        from cluster.datasets.select import run_selection
        from cluster.datasets.selection import Rule
        from cluster.display import Display

        rule = Rule(num_rollouts=rollouts, margin=margin, per_class=per_class)
        require(rows is None or rows >= 1, "--rows", rows, "must be at least 1")
        wanted = ("model.path", "data.train")
        settings = fetch_named(resolve_paths(load_config(config, overrides or [])), keys=wanted, say=warn_user)
        make_missing_data(settings)
        summary = run_async(run_selection(settings, out.absolute(), rule, limit=rows, display=Display(settings)))
        for line in bars(summary["histogram"], "right at full - right at quarter"):
            typer.echo(line, err=as_json)
        typer.echo(
            f"{summary['num_selected']} samples in {summary['table']}: half need the full view "
            f"({summary['num_full']} found), half do not ({summary['num_low']} found)",
            err=as_json,
        )
        if as_json:
            print_json(summary)
