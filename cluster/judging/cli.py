"""The `visionthink judge` commands: can the judges be trusted, and does their pool follow the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.shell import ConfigName, Json, Overrides, print_json, progress_bar, run_async, shown_errors, warn_user
from configs.load import load_config

judge_app = typer.Typer(no_args_is_help=True, help="Measure the judges.")


@judge_app.command()
def check(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    sets: Annotated[
        list[Path] | None,
        typer.Option("--set", help="JSON lines to check in place of the shipped rows; may be given several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Can this judge be trusted? Compares its verdicts with those of people.

    A row has question, reference, prediction and verdict (1 or 0); a set
    without a right answer is an attack set. An LLM is asked as in a run, within
    the limits of judge.llm. Rows without a verdict are in no rate. `decided` is
    the share of gold rows that rules settle with certainty, before any LLM.
    """
    with shown_errors():
        from cluster.judging.check import check_judge, check_summary, check_tables

        report = run_async(check_judge(load_config(config, overrides or []).judge, sets or ()))
        _show(check_tables(report), check_summary(report), report.figures(), as_json)


@judge_app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/tiny.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Judge a run's recorded answers again: which verdicts would have changed?

    Verdicts that the same LLM gave stand; the rest comes from the cache or is
    asked. --json lists every changed answer.
    """
    with shown_errors():
        from cluster.judging.replay import replay_run, replay_summary, replay_tables

        if not (run / "config.yaml").is_file():
            raise ValueError(f"{run} has no config.yaml: name the folder of a run")
        config = load_config(str(run / "config.yaml"), overrides or [])
        with progress_bar("steps") as advance:
            report = run_async(replay_run(run, config.judge, advance=advance, warn=warn_user))
        _show(replay_tables(report), replay_summary(report), report.figures(), as_json)


@judge_app.command()
def load(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    seconds: Annotated[float, typer.Option(help="Length of the load: quiet, busy, quiet again.")] = 50.0,
    rate: Annotated[
        float | None, typer.Option(help="Groups per second while busy. Default: what judge.max_replicas can serve.")
    ] = None,
    latency: Annotated[float, typer.Option(help="Median seconds that a judge takes for an answer.")] = 0.5,
    out: Annotated[Path, typer.Option(help="PNG of the replicas over time.")] = Path("judge_load.png"),
    as_json: Json = False,
) -> None:
    """Does the pool of judges follow a load? A delayed judge stands in for its LLM.

    Answers take the same way as in a run: the limits of judge.llm, tries, and
    the replicas that Ray Serve adds and removes.
    """
    with shown_errors():
        from cluster.connect import connect
        from cluster.judging.load import follow_load, load_table, plan_load, plot_load

        settings = load_config(config, overrides or [])
        size, seed = settings.rollout.group_size, settings.run.seed
        plan = plan_load(settings.judge, group_size=size, seconds=seconds, rate=rate, latency_s=latency, seed=seed)
        connect()
        with progress_bar("seconds") as advance:
            trace = run_async(follow_load(plan, on_progress=advance))
        plot_load(trace, out)
        _show([load_table(trace)], f"picture: {out}", trace.figures(), as_json)


def _show(tables: Sequence[Table], summary: str, figures: dict[str, object], as_json: bool) -> None:
    """On stdout, or with --json on stderr and the figures on stdout. Text is no markup."""
    Console(stderr=as_json, highlight=False).print(*tables, markup=False)
    typer.echo(summary, err=as_json)
    if as_json:
        print_json(figures)
