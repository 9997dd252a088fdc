"""The `visionthink judge` commands: can a judge be trusted, and does the judge pool scale with the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from cluster.shell import ConfigName, Json, Overrides, print_json, progress_bar, report_errors, run_async, warn_user
from configs.load import load_config, load_saved
from configs.paths import maybe_meant

judge_app = typer.Typer(no_args_is_help=True, help="Evaluate and benchmark the judges.")


@judge_app.command()
def check(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    sets: Annotated[
        list[Path] | None,
        typer.Option("--set", help="JSONL file to check instead of the shipped sets; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a judge against human verdicts: agreement, error rates, attack success.

    Each row has question, reference, prediction and verdict (1 or 0). A set
    without correct answers is an attack set. An LLM is called as in a run, within
    the limits of judge.llm. Rows without a verdict are excluded from the rates.
    `decided` is the fraction of gold rows that the rules decide with certainty.
    """
    with report_errors():
        from cluster.judging.check import check_judge, check_summary, check_tables

        report = run_async(check_judge(load_config(config, overrides or []).judge, sets or ()))
        _show(check_tables(report), check_summary(report), report.figures(), as_json)


@judge_app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Run folder, e.g. runs/tiny.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Judge the recorded answers of a run again and report which verdicts change.

    Verdicts of the same LLM judge are reused; all others come from the cache or
    from a new call. --json lists every changed answer.
    """
    with report_errors():
        from cluster.judging.replay import replay_run, replay_summary, replay_tables

        if not (run / "config.yaml").is_file():
            raise ValueError(f"{run} has no config.yaml: give a run folder{maybe_meant(run)}")
        config = load_saved(run / "config.yaml", overrides or [])[0]
        with progress_bar("steps") as advance:
            report = run_async(replay_run(run, config.judge, advance=advance, warn=warn_user))
        _show(replay_tables(report), replay_summary(report), report.figures(), as_json)


@judge_app.command()
def load(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    seconds: Annotated[float, typer.Option(help="Duration: idle, busy, idle again.")] = 50.0,
    rate: Annotated[
        float | None, typer.Option(help="Groups per second while busy. Default: what judge.max_replicas can handle.")
    ] = None,
    latency: Annotated[float, typer.Option(help="Median latency of one call, in seconds.")] = 0.5,
    out: Annotated[Path, typer.Option(help="Output PNG with replicas over time.")] = Path("judge_load.png"),
    as_json: Json = False,
) -> None:
    """Load-test the autoscaling judge pool, with a simulated latency in place of the LLM.

    Answers are judged as in a run: with the limits of judge.llm, retries, and
    the replicas that Ray Serve adds and removes.
    """
    with report_errors():
        from cluster.judging.load import follow_load, load_table, plan_load, plot_load
        from cluster.runtime.connect import connect

        settings = load_config(config, overrides or [])
        size, seed = settings.rollout.group_size, settings.run.seed
        plan = plan_load(settings.judge, group_size=size, seconds=seconds, rate=rate, latency_s=latency, seed=seed)
        connect()
        with progress_bar("seconds") as advance:
            trace = run_async(follow_load(plan, on_progress=advance))
        plot_load(trace, out)
        _show([load_table(trace)], f"plot: {out}", trace.figures(), as_json)


def _show(tables: Sequence[Table], summary: str, figures: dict[str, object], as_json: bool) -> None:
    """Print to stdout, or with --json to stderr and the figures to stdout. Text is not parsed as markup."""
    Console(stderr=as_json, highlight=False).print(*tables, markup=False)
    typer.echo(summary, err=as_json)
    if as_json:
        print_json(figures)
