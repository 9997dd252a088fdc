"""The `visionthink data` commands: get a data set, check it, select from it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.shell import Json, print_json, report_errors

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
        from actors.data.dataset import Dataset
        from actors.hub import download, parse_name, snapshot_of

        asked = parse_name("dataset", name)
        if asked is None:
            raise ValueError(f"NAME={name!r} is invalid: must be hf://org/name[@revision][/split]")
        path = download(asked, out=out)
        num_rows = len(Dataset.open(path))
        pinned = snapshot_of(path)
        if as_json:
            print_json({"path": path, "rows": num_rows, "revision": pinned.revision if pinned else asked.revision})
        else:
            typer.echo(path)
