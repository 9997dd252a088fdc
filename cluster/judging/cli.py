"""The `visionthink judge` commands: can the judges be trusted, and does their pool follow the load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from cluster.shell import (
    ConfigName,
    Json,
    Overrides,
    console,
    print_json,
    progress_bar,
    run_async,
    shown_errors,
    warn_user,
)
from configs.judges import JudgeConfig
from configs.load import load_config

if TYPE_CHECKING:
    from cluster.judging.check import JudgeReport

judge_app = typer.Typer(no_args_is_help=True, help="Measure the judges.")


@judge_app.command()
def check(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    sets: Annotated[
        list[Path] | None,
        typer.Option(
            "--set", help="JSON lines to check instead of the shipped ones; give it several times if need be."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Ask the configured judge about the gold set and the attack set, and compare with the verdicts of people.

    A set without a right answer is an attack set. Runs in this process; Ray comes up only to serve the LLM of
    judge.cluster. An LLM is asked as in a run, within the limits of judge.llm, and what that took is shown; a row
    without a verdict is counted and in no rate.
    """
    with shown_errors():
        from cluster.judging.check import check_tables

        report = run_async(_check(load_config(config, overrides or []).judge, sets or []))
        for table in check_tables(report):
            Console(stderr=as_json).print(table)
        if as_json:
            print_json(report.figures())


@judge_app.command()
def replay(
    run: Annotated[Path, typer.Argument(help="Folder of a run, e.g. runs/tiny.")],
    overrides: Overrides = None,
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="Settings to score with in place of the run's own: a name or a YAML file."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the answers decided differently as JSON lines, for `judge check --set`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score a run's recorded episodes again, under other settings, and show what would have changed.

    Nothing is generated. What the same judge has decided stands; the rest comes from the cache or is asked.
    """
    with shown_errors():
        from cluster.judging.replay import find_judge, replay_run
        from cluster.judging.replay_tables import replay_tables, summary_lines

        judge = find_judge(run, overrides or [], config)
        with progress_bar("steps") as advance:
            report = run_async(replay_run(run, judge, out=out, advance=advance, warn=warn_user))
        shown = Console(stderr=as_json)
        for table in replay_tables(report):
            shown.print(table)
        for line in summary_lines(report):
            shown.print(line, highlight=False)
        if as_json:
            print_json(report.figures())


@judge_app.command()
def load(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    seconds: Annotated[float, typer.Option(help="Length of the load: quiet, busy, quiet again.")] = 50.0,
    rate: Annotated[
        float | None,
        typer.Option(help="Groups per second while busy. Default: what 2.5 replicas serve, so that 3 are right."),
    ] = None,
    latency: Annotated[float, typer.Option(help="Median seconds in which the delayed judge judges a group.")] = 0.5,
    sigma: Annotated[float, typer.Option(help="Spread of these seconds: standard deviation of their logarithm.")] = 0.5,
    burst: Annotated[float, typer.Option(help="Mean number of groups that end at the same moment.")] = 1.5,
    seed: Annotated[int, typer.Option(help="Of the arrivals and latencies: the same seed is the same load.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG of replicas, queue wait and throughput over time.")] = Path(
        "judge_load.png"
    ),
    as_json: Json = False,
) -> None:
    """Drive a pool of delayed judges with a seeded load, draw what it did, and measure verdicts per second.

    The pool is the configured one on a real Ray Serve, but may grow beyond the right size, so that it shows whether it
    does. Verdicts per second are those of the rules at saturation, by calls of a group and by calls of one answer.
    """
    with shown_errors():
        from cluster.judging.arrivals import Latency
        from cluster.judging.load import plan_load
        from cluster.judging.load_display import LoadProgress, load_table, measure_load

        settings = load_config(config, overrides or [])
        plan = plan_load(
            settings.judge,
            group_size=settings.rollout.group_size,
            seconds=seconds,
            rate=rate,
            latency=Latency(median_s=latency, sigma=sigma),
            burst=burst,
            seed=seed,
        )
        with LoadProgress(console) as progress:
            trace, saturation = run_async(measure_load(plan, settings.judge, progress))
        from cluster.judging.load_plot import plot_load

        plot_load(trace, out)
        Console(stderr=as_json).print(load_table(trace, saturation))
        console.print(f"picture: {out}", highlight=False)
        if as_json:
            print_json({**saturation.figures(), **trace.figures()})


async def _check(config: JudgeConfig, sets: Sequence[Path]) -> JudgeReport:
    from cluster.judging.check import check_judge

    if "cluster" not in config.chain:
        return await check_judge(config, sets)
    from cluster.launch import llm_in_cluster

    async with llm_in_cluster(config) as judge:
        return await check_judge(judge, sets)
