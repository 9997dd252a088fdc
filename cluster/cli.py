"""The `visionthink` command. Heavy imports are deferred to the commands that need them, so that --help is fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.checkpoint_cli import checkpoint_app, export
from cluster.config_cli import show_config, show_version
from cluster.datasets.cli import data_app
from cluster.datasets.shipped import make_missing_data, missing_task
from cluster.evaluation.cli import evaluate
from cluster.hub import fetch_named
from cluster.jobs.cli import add_job_commands
from cluster.jobs.package import check_outlives_job
from cluster.judging.cli import judge_app
from cluster.manifests.cli import cluster_app
from cluster.planning.cli import plan
from cluster.preflight.environment import fix_wheel_tags
from cluster.serving.cli import ask, serve
from cluster.shell import (
    ConfigName,
    Json,
    Overrides,
    console,
    print_json,
    process_started_at,
    report_errors,
    run_async,
)
from cluster.status.cli import scale, status
from cluster.stopping import Stopping
from cluster.viewer.cli import report, view
from configs.load import load_config
from configs.paths import resolve_paths
from configs.tasks import DEFAULT_TASK, TaskName

app = typer.Typer(
    name="visionthink",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a vision-language model to answer from a quarter of the visual tokens and to request the full image "
    "only when the question needs it.",
)
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")
app.add_typer(checkpoint_app, name="checkpoint")
app.command()(export)
app.command(name="eval")(evaluate)
app.add_typer(cluster_app, name="cluster")
app.command()(ask)
app.command()(serve)
app.callback()(show_version)
app.command(name="config")(show_config)
app.command()(plan)
app.command()(status)
app.command()(scale)
app.command()(view)
app.command()(report)


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    resume: Annotated[
        bool | None,
        typer.Option(
            help="Resume the newest run of this name, or start a new one under the next free name. Default: with "
            "run.name=NAME that run is started or resumed, without it a new run starts.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option(help="Start run.name=NAME from step 0; its records move to NAME/attempts/N.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a policy with multi-turn GRPO, then evaluate it on the held-out split.

    Writes runs/NAME/ with config.yaml, metrics.jsonl, TensorBoard events, all episodes, checkpoints, the exported
    policy and report.html. With run.name=NAME the same command starts a run and, given again, resumes it.
    """
    started_at = process_started_at()
    with report_errors():
        from cluster.display import Display, judge_line
        from cluster.folders import resolve_run
        from cluster.launch import launch
        from cluster.runtime.notices import stop_when_preempted
        from cluster.train import train as train_loop

        chosen = resolve_run(config, overrides or [], resume=resume, restart=restart)
        settings, display = chosen.config, Display(chosen.config)
        for warning in chosen.warnings:
            display.warn(warning)
        display.say(chosen.line)
        if chosen.summary is not None:
            if as_json:
                print_json(chosen.summary)
            return
        check_outlives_job(settings, os.environ)
        settings = fetch_named(settings, earlier=chosen.earlier, say=display.say)
        make_missing_data(settings)
        stopping = Stopping(grace_s=settings.run.stop_grace_s, is_run=True)
        resume, restart = chosen.resumes, chosen.restarts

        async def run() -> dict[str, Any]:
            started = launch(settings, resume=resume, restart=restart, display=display, started_at=started_at)
            async with started as parts:
                with stop_when_preempted(stopping):
                    save = parts.checkpoints.save_last
                    async with stopping.saving(save, finished=lambda: parts.journal.step):
                        return await train_loop(settings, parts)

        summary = run_async(run(), stopping)
        display.evaluation_done(summary["heldout"])
        if settings.judge.has_llm:
            display.say(judge_line(summary["judge"]))
        display.say(f"report: {summary['run']}/report.html")
        if as_json:
            print_json(summary)


@app.command()
def warmstart(
    out: Annotated[Path, typer.Option(help="Output folder for the model.")] = Path("runs/warmstart"),
    task: Annotated[
        TaskName, typer.Option(help="shapes trains configs/tiny from scratch, crop trains configs/tiny_crop from it.")
    ] = DEFAULT_TASK,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: the task's.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Random seed of weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="Device: cpu or cuda.")] = "cpu",
    num_workers: Annotated[int, typer.Option(help="Data-loading processes; 0 loads in the main process.")] = 0,
    family: Annotated[str, typer.Option(help="Family of the model: qwen2_5_vl or qwen3_vl.")] = "qwen2_5_vl",
    as_json: Json = False,
) -> None:
    """Train a tiny model (configs/tiny, configs/tiny_crop) on supervised episodes of its task, and evaluate it."""
    with report_errors():
        from rich.progress import Progress

        from learner.families.lookup import find_family
        from learner.tiny.probe import probe, probe_lessons
        from learner.tiny.tasks import TASKS
        from learner.tiny.warmstart import warm_start

        find_family({"model_type": family}, f"--family={family}")
        chosen = TASKS[task]
        with Progress(console=console) as progress:
            bar = progress.add_task("warm start", total=steps or chosen.steps)

            def shown(step: int, loss: float) -> None:
                progress.update(bar, completed=step + 1, description=f"warm start, loss {loss:.3f}")

            warm_start(
                out,
                chosen,
                family=family,
                seed=seed,
                steps=steps,
                device=device,
                num_workers=num_workers,
                progress=shown,
            )
        figures = probe(out, chosen, probe_lessons(chosen, 600, seed=seed + 1), device=device)
        for name, figure in figures.items():
            console.print(f"{name:40} {figure:.3f}", highlight=False)
        if as_json:
            print_json(dict(figures))


@app.command()
def doctor(overrides: Overrides = None, config: ConfigName = "tiny", as_json: Json = False) -> None:
    """Check this machine and a config before a run: versions, GPUs, ports, Ray, data, judge, disk. Needs no GPU.

    Prints one line per check, with the remedy where something is wrong, and ends with exit code 1 on an error.
    With an LLM judge it asks for ten verdicts.
    """
    with report_errors():
        from cluster.preflight.doctor import doctor_items, examine
        from cluster.preflight.show import show_findings

        settings = resolve_paths(load_config(config, overrides or []))
        items = doctor_items(settings, makes_data=missing_task(settings.data) is not None)
        if show_findings(examine(items), as_json=as_json):
            raise typer.Exit(1)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, e.g. one per penalty.")],
    out: Annotated[Path, typer.Option(help="Output PNG.")] = Path("compare.png"),
    as_json: Json = False,
) -> None:
    """Plot several runs over steps (as in Fig. 3a of the paper), and print their last held-out figures."""
    with report_errors():
        from rich.table import Table

        from cluster.records.compare import heldout_figures, heldout_tables, plot_runs

        plot_runs(runs, out)
        found = heldout_figures(runs)
        if as_json:
            print_json({"picture": str(out), "heldout": found})
            return
        for heads, rows in heldout_tables(found):
            table = Table("run", *heads, title="held-out, last evaluation")
            for label, figures in rows.items():
                table.add_row(label, *("-" if figure is None else f"{figure:.4g}" for figure in figures))
            console.print(table)
        typer.echo(str(out))


add_job_commands(app)


def main() -> None:
    fix_wheel_tags()
    app()


if __name__ == "__main__":
    main()
