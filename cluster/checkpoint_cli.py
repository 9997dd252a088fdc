"""The `visionthink checkpoint` commands, and `visionthink export`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import CheckpointError
from cluster.shell import Json, print_json, progress_bar, report_errors

checkpoint_app = typer.Typer(no_args_is_help=True, help="List, verify, export and remove the checkpoints of a run.")

Run = Annotated[Path, typer.Argument(help="Run folder, e.g. runs/tiny. Its settings say where the checkpoints lie.")]
Step = Annotated[int | None, typer.Option(help="Step of the checkpoint. Default: all.")]


@checkpoint_app.command(name="list")
def list_checkpoints(run: Run, as_json: Json = False) -> None:
    """List the checkpoints of a run, oldest first.

    A checkpoint is a folder step-N: manifest.json with the size and hash of every
    file, state.json with the data position, learner.json and one or more
    safetensors files per learner rank. Any number of ranks can resume it. Sizes
    and JSON are checked here; `visionthink checkpoint verify` reads everything.
    """
    with report_errors():
        rows = list(_described(run))
        if as_json:
            print_json({"checkpoints": rows})
            return
        table = Table("checkpoint", "step", "ranks", "files", "size", "saved", "state")
        for row in rows:
            size = f"{row['bytes'] / 1e6:,.0f} MB"
            cells = (row["name"], row["step"], row["num_ranks"], row["num_files"], size, row["saved_at"], row["state"])
            table.add_row(*("" if cell is None else str(cell) for cell in cells))
        Console().print(table)


@checkpoint_app.command()
def verify(run: Run, step: Step = None, as_json: Json = False) -> None:
    """Read every file of the checkpoints and compare it with its hash; exit code 1 if one is damaged.

    `train --resume` skips a damaged checkpoint and takes the newest before it.
    """
    with report_errors():
        from cluster.policies import checkpoints_of
        from learner.state.checkpoint import checkpoint_name

        checkpoints = checkpoints_of(run)
        names = checkpoints.list() if step is None else [checkpoint_name(step)]
        flaws: dict[str, str | None] = {}
        with progress_bar("checkpoints") as advance:
            for name in names:
                flaws[name] = checkpoints.find_flaw(name)
                advance(len(flaws), len(names))
        if as_json:
            print_json({"flaws": flaws})
        else:
            for name, flaw in flaws.items():
                typer.echo(f"{name}: {flaw or 'valid'}")
        if not names:
            raise CheckpointError(f"{checkpoints.url} has no checkpoint")
        if any(flaws.values()):
            raise typer.Exit(1)


@checkpoint_app.command()
def export(
    policy: Annotated[Path, typer.Argument(help="A run (its latest checkpoint) or RUN/checkpoints/step-N.")],
    step: Annotated[int | None, typer.Option(help="Step of the run's checkpoint. Default: the latest.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: RUN/exports/step-N.")] = None,
    as_json: Json = False,
) -> None:
    """Export a checkpoint as a Hugging Face model folder for vLLM and transformers."""
    with report_errors():
        from cluster.policies import find_policy, materialize

        source = find_policy(policy, step=step)
        folder = materialize(source, out)
        if as_json:
            print_json({"export": str(folder), "step": source.step})
        else:
            typer.echo(str(folder))


@checkpoint_app.command()
def prune(
    run: Run,
    keep: Annotated[int, typer.Option(min=1, help="Number of most recent checkpoints to keep.")],
    keep_every: Annotated[int, typer.Option(min=0, help="Keep steps that are multiples of this as well.")] = 0,
    as_json: Json = False,
) -> None:
    """Remove all but the most recent checkpoints of a run.

    A run does so by itself, by train.keep_checkpoints and
    train.keep_checkpoint_every. One that is being written is not touched.
    """
    with report_errors():
        from cluster.policies import checkpoints_of
        from learner.state.checkpoint import step_of

        checkpoints = checkpoints_of(run)
        newest = max(map(step_of, checkpoints.list()), default=0)
        removed = checkpoints.prune(newest=newest, keep=keep, keep_every=keep_every)
        left = checkpoints.list()
        if as_json:
            print_json({"removed": list(removed), "left": left})
        else:
            typer.echo(f"removed: {', '.join(removed) or 'none'}; left: {', '.join(left) or 'none'}")


def _described(run: Path) -> Iterator[dict[str, Any]]:
    """One row per checkpoint; what cannot be read of a damaged one is None."""
    import datetime

    from cluster.checkpoints import read_state
    from cluster.policies import checkpoints_of
    from learner.state.checkpoint import step_of
    from learner.state.share_files import LEARNER

    checkpoints = checkpoints_of(run)
    for name in checkpoints.list():
        sizes = checkpoints.storage.sizes(name)
        flaw = checkpoints.find_flaw(name, reads_tensors=False)
        saved_at = num_ranks = None
        if flaw is None:
            moment = datetime.datetime.fromtimestamp(read_state(checkpoints, name)["saved_at"]).astimezone()
            saved_at = moment.isoformat(sep=" ", timespec="seconds")
            num_ranks = len(checkpoints.read_json(name, LEARNER)["shares"])
        yield {
            "name": name,
            "step": step_of(name),
            "num_ranks": num_ranks,
            "num_files": len(sizes),
            "bytes": sum(sizes.values()),
            "saved_at": saved_at,
            "state": flaw or "complete",
        }
