"""The `visionthink` command. Heavy imports wait until a command needs them, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from actors.errors import DataError
from cluster.environment import settle_environment
from cluster.judging.cli import judge_app
from cluster.shell import ConfigName, Json, Overrides, console, print_json, process_started_at, run_async, shown_errors
from configs.load import describe_fields, load_config, to_yaml
from configs.paths import resolve_paths
from configs.schema import Config, DataConfig

app = typer.Typer(
    name="visionthink",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Teach a vision-language model to look at a quarter of the visual tokens first and to ask for the full image "
    "only when the question needs it.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make data sets.")
app.add_typer(data_app, name="data")
app.add_typer(judge_app, name="judge")

DEFAULT_SHAPES = Path("data/shapes")
"""The data set that `train` makes by itself when it is missing."""


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    resume: Annotated[
        bool, typer.Option(help="Go on from the newest checkpoint of the newest run of this name.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a policy: rollouts, judges, learner, weights back; then play the held-out split.

    Leaves runs/NAME/ with config.yaml, metrics.jsonl, TensorBoard events, every episode, checkpoints, the exported
    policy and report.html.
    """
    started_at = process_started_at()
    with shown_errors():
        from cluster.display import Display, evaluation_table, judge_line
        from cluster.folders import resolve_run
        from cluster.launch import launch
        from cluster.train import train as train_loop

        settings = resolve_run(config, overrides or [], resume=resume)
        make_missing_data(settings)
        display = Display(settings)
        display.say(f"run folder {settings.run.dir}/{settings.run.name}")

        async def run() -> dict[str, Any]:
            async with launch(settings, resume=resume, display=display, started_at=started_at) as parts:
                return await train_loop(settings, parts)

        summary = run_async(run())
        console.print(evaluation_table(summary["heldout"]))
        if settings.judge.has_llm:
            console.print(judge_line(summary["judge"]), highlight=False)
        console.print(f"report: {summary['run']}/report.html", highlight=False)
        if as_json:
            print_json(summary)


@app.command(name="eval")
def evaluate(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    policy: Annotated[
        Path | None,
        typer.Option(help="A run, RUN/checkpoints/step-N or a model folder; model.path of the config otherwise."),
    ] = None,
    episodes: Annotated[
        Path | None,
        typer.Option(help="Parquet file for every episode; RUN/heldout/eval-STEP.parquet where the policy is a run's."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Play a split greedily: the policy, always-quarter and always-full side by side.

    The policy of a run is played with that run's settings, unless --config says otherwise.
    """
    with shown_errors():
        from actors.data.dataset import Dataset
        from cluster.display import Display, evaluation_table
        from cluster.evaluate import Evaluation
        from cluster.evaluate import evaluate as play_split
        from cluster.folders import CONFIG
        from cluster.launch import launch_fleet
        from cluster.policies import find_policy, materialize
        from cluster.records.episodes import rows_of_evaluation, write_episodes

        source = find_policy(policy) if policy else None
        chosen = [f"model.path={materialize(source)}", "model.load=weights"] if source else []
        base = str(source.run / CONFIG) if source and source.run and config == "tiny" else config
        settings = resolve_paths(load_config(base, [*(overrides or []), *chosen]))
        make_missing_data(settings)
        heldout, display = Dataset.open(settings.data.heldout), Display(settings)

        async def play() -> Evaluation:
            async with launch_fleet(settings, display=display) as fleet:
                return await play_split(fleet, heldout, settings, display)

        evaluation = run_async(play())
        step = source.step if source and source.step is not None else 0
        if episodes is None and source is not None and source.run is not None:
            episodes = source.run / "heldout" / f"eval-{step:06d}.parquet"
        if episodes is not None:
            episodes.parent.mkdir(parents=True, exist_ok=True)
            write_episodes(episodes, rows_of_evaluation(step, evaluation.plays))
            console.print(f"episodes: {episodes}", highlight=False)
        console.print(evaluation_table(evaluation.figures()))
        if as_json:
            print_json(evaluation.figures())


@app.command()
def export(
    policy: Annotated[Path, typer.Argument(help="A run (its newest checkpoint) or RUN/checkpoints/step-N.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/exports/step-N otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """Write the policy of a checkpoint as a Hugging Face folder that vLLM and transformers load."""
    with shown_errors():
        from cluster.policies import find_policy, materialize

        source = find_policy(policy)
        folder = materialize(source, out)
        if as_json:
            print_json({"export": str(folder), "step": source.step})
        else:
            typer.echo(str(folder))


@data_app.command(name="make")
def data_make(
    out: Annotated[Path, typer.Option(help="Folder for train.parquet and heldout.parquet.")] = DEFAULT_SHAPES,
    train_rows: Annotated[int, typer.Option(help="Rows of the training split.")] = 8000,
    heldout_rows: Annotated[int, typer.Option(help="Rows of the held-out split.")] = 500,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    as_json: Json = False,
) -> None:
    """Draw the task family whose need for resolution is known: shapes, colours, coarse and fine stripes."""
    with shown_errors():
        make_data(out, train_rows, heldout_rows, seed)
        if as_json:
            print_json({"out": str(out), "train_rows": train_rows, "heldout_rows": heldout_rows, "seed": seed})


@app.command()
def warmstart(
    out: Annotated[Path, typer.Option(help="Folder for the model.")] = Path("runs/warmstart"),
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 2500,
    seed: Annotated[int, typer.Option(help="Seeds weights and data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    num_workers: Annotated[int, typer.Option(help="Processes that draw pictures; 0 draws them in this one.")] = 0,
    as_json: Json = False,
) -> None:
    """Train the tiny model from scratch on supervised episodes, as the shipped configs/tiny was made, and probe it."""
    with shown_errors():
        from rich.progress import Progress

        from learner.tiny.probe import probe, probe_rows
        from learner.tiny.warmstart import warm_start

        with Progress(console=console) as progress:
            bar = progress.add_task("warm start", total=steps)

            def shown(step: int, loss: float) -> None:
                progress.update(bar, completed=step + 1, description=f"warm start, loss {loss:.3f}")

            warm_start(out, seed=seed, steps=steps, device=device, num_workers=num_workers, progress=shown)
        figures = probe(out, probe_rows(600, seed=seed + 1), device=device)
        for name, figure in figures.items():
            console.print(f"{name:40} {figure:.3f}", highlight=False)
        if as_json:
            print_json(dict(figures))


@app.command(name="config")
def show_config(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    fields: Annotated[bool, typer.Option(help="Explain every setting instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a run would use, defaults and overrides merged; or, with --fields, what each setting means."""
    with shown_errors():
        if fields:
            from rich.table import Table

            table = Table("setting", "type", "default", "meaning")
            for field in describe_fields():
                table.add_row(field.key, field.type, field.default, field.doc)
            Console().print(table)
            return
        settings = load_config(config, overrides or [])
        if as_json:
            from dataclasses import asdict

            print_json(asdict(settings))
        else:
            typer.echo(to_yaml(settings), nl=False)


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")], as_json: Json = False) -> None:
    """Write a run's report.html again: curves, and episodes with their pictures."""
    with shown_errors():
        from cluster.records.report import write_report

        path = str(write_report(run))
        if as_json:
            print_json({"report": path})
        else:
            typer.echo(path)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, e.g. one per penalty.")],
    out: Annotated[Path, typer.Option(help="Picture to write.")] = Path("compare.png"),
    as_json: Json = False,
) -> None:
    """Draw several runs into one figure: share that asks and accuracy over steps (Fig. 3a of the paper)."""
    with shown_errors():
        from cluster.records.plots import plot_penalties

        plot_penalties(runs, [run.name for run in runs], out)
        if as_json:
            print_json({"picture": str(out)})
        else:
            typer.echo(str(out))


@app.command()
def submit(
    arguments: Annotated[list[str], typer.Argument(help="The command to run there, e.g. train train.num_steps=40.")],
    address: Annotated[str, typer.Option(help="Dashboard of the cluster.")] = "http://127.0.0.1:8265",
) -> None:
    """Run a visionthink command as a Ray job from this folder; follows its log and ends with its exit code."""
    with shown_errors():
        from cluster.jobs.submit import submit_job

        raise typer.Exit(submit_job(arguments, address))


def make_missing_data(settings: Config) -> None:
    """Draw the default data set if it is wanted and not there, in whichever folder. Any other path has to exist."""
    folder = missing_shapes(settings.data)
    if folder is None:
        return
    try:
        make_data(folder, 8000, 500, 0)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to ({error.strerror}): give data.train and data.heldout, or draw the set "
            f"elsewhere with `visionthink data make --out FOLDER`"
        ) from error


def missing_shapes(data: DataConfig) -> Path | None:
    """Where the default data set has to be drawn; None where other data is wanted, or it is there."""
    paths = (Path(data.train), Path(data.heldout))
    folder = paths[0].parent
    is_default = paths == (folder / "train.parquet", folder / "heldout.parquet")
    is_default = is_default and folder.parts[-len(DEFAULT_SHAPES.parts) :] == DEFAULT_SHAPES.parts
    return folder if is_default and not all(path.exists() for path in paths) else None


def make_data(out: Path, train_rows: int, heldout_rows: int, seed: int) -> None:
    from rich.progress import Progress

    from actors.data.shapes import make_shapes

    with Progress(console=console) as progress:
        bar = progress.add_task(f"drawing {out}", total=train_rows + heldout_rows)
        make_shapes(
            out,
            train_rows=train_rows,
            heldout_rows=heldout_rows,
            seed=seed,
            progress=lambda split, num_rows: progress.advance(bar, num_rows),
        )


def main() -> None:
    settle_environment()
    app()


if __name__ == "__main__":
    main()
