"""The `visionthink cluster` commands: which nodes a run needs, and the files that bring them up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actors.config_json import read_config_json
from cluster.manifests.plan import Plan, cluster_plan
from cluster.manifests.render import MACHINES, Kind, Request, default_target, render
from cluster.manifests.target import Target
from cluster.shell import ConfigName, Json, Overrides, print_json, report_errors
from configs.load import load_config
from configs.paths import find_folder
from configs.schema import Config
from learner.memory import ModelShape

cluster_app = typer.Typer(no_args_is_help=True, help="Plan a cluster for a config and write its manifests.")

GpusPerNode = Annotated[int, typer.Option(min=1, help="Maximum GPUs per node.")]
FromZero = Annotated[bool, typer.Option("--from-zero", help="Scale from zero: nodes come only when a run needs them.")]


@cluster_app.command()
def plan(
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    kind: Annotated[Kind | None, typer.Option(help="Choose machine types of a cloud (aws, gcp).")] = None,
    gpus_per_node: GpusPerNode = 8,
    as_json: Json = False,
) -> None:
    """Show the nodes that a run needs, from its smallest to its largest size.

    rollout.num_workers and learner.num_ranks may be ranges such as 2..6: then
    nodes come and go, and so do the members that they hold. Host memory is
    estimated from the model's config.json.
    """
    with report_errors():
        settings = load_config(config, overrides or [])
        machines = MACHINES.get(kind, ()) if kind else ()
        found = cluster_plan(settings, _shape(settings), gpus_per_node=gpus_per_node, machines=machines)
        Console(stderr=as_json, highlight=False).print(_table(found), *found.notes, sep="\n", markup=False)
        if as_json:
            print_json(asdict(found))


def _kubernetes(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Kubernetes")


def _cloud(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="AWS and Google Cloud")


def _slurm(text: str) -> Any:
    return typer.Option(help=text, rich_help_panel="Slurm")


@cluster_app.command(name="render")
def render_command(
    kind: Annotated[Kind, typer.Option(help="kuberay: a standing cluster. rayjob: one run with its own cluster.")],
    overrides: Overrides = None,
    config: ConfigName = "tiny",
    out: Annotated[Path | None, typer.Option(help="Output file. Default: stdout.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the cluster or job. Default: run.name.")] = None,
    image: Annotated[str | None, typer.Option(help="Image of all nodes. Default: visionthink:gpu or :cpu.")] = None,
    mount: Annotated[str, typer.Option(help="Folder of the shared storage on every node.")] = "/mnt/visionthink",
    gpus_per_node: GpusPerNode = 8,
    from_zero: FromZero = False,
    namespace: Annotated[str, _kubernetes("Namespace.")] = "default",
    storage_gib: Annotated[int, _kubernetes("Size in GiB of the PersistentVolumeClaim for the shared storage.")] = 500,
    storage_class: Annotated[str, _kubernetes("Storage class of that claim; it must support ReadWriteMany.")] = "",
    claim: Annotated[str, _kubernetes("Use this existing PersistentVolumeClaim instead of creating one.")] = "",
    secret: Annotated[str, _kubernetes("Secret with the judge's key, by name.")] = "visionthink",
    queue: Annotated[str, _kubernetes("Kueue LocalQueue for the job.")] = "",
    retries: Annotated[int, _kubernetes("rayjob: new clusters after a failure; each resumes the run.")] = 3,
    region: Annotated[str, _cloud("Region.")] = "",
    zone: Annotated[str, _cloud("Availability zone.")] = "",
    project: Annotated[str, _cloud("Project of Google Cloud.")] = "",
    nfs: Annotated[str, _cloud("HOST:/PATH of the shared storage.")] = "",
    spot: Annotated[bool, _cloud("Rollouts and judges on spot machines.")] = False,
    partition: Annotated[str, _slurm("Partition.")] = "",
    account: Annotated[str, _slurm("Account.")] = "",
    time_limit: Annotated[str, _slurm("Time limit of one job.")] = "24:00:00",
    as_json: Json = False,
) -> None:
    """Write the file that brings up a cluster for a config.

    Its nodes are those of `visionthink cluster plan`. The head of the file says
    how to use it. Relative paths of the config (models, data, runs) are below
    the shared storage; secrets are named and never shown.
    """
    options = {key: value for key, value in locals().items() if key in Target.__dataclass_fields__}
    with report_errors():
        settings = load_config(config, overrides or [])
        default = default_target(settings)
        options |= {"name": name or default.name, "image": image or default.image}
        request = Request(
            kind=kind,
            config_name=config,
            overrides=tuple(overrides or ()),
            target=Target(**options),
            gpus_per_node=gpus_per_node,
            from_zero=from_zero,
        )
        text = render(request, settings, _shape(settings), out=str(out) if out else "FILE")
        _write(text, out, kind, as_json)


def _write(text: str, out: Path | None, kind: Kind, as_json: bool) -> None:
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ValueError(f"--out={out} cannot be written to: {error.strerror}; give another path") from error
    if as_json:
        print_json({"kind": kind, "out": str(out) if out else None, "text": text})
    else:
        typer.echo(str(out) if out else text, nl=out is not None)


def _shape(config: Config) -> ModelShape | None:
    """The policy's shape where its config.json is on this machine and of a known family."""
    from learner.families.lookup import find_shape  # imports NumPy, which no word about the command needs

    try:
        return find_shape(read_config_json(find_folder(config.model.path, Path.cwd())))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={config.model.path!r} cannot be read: {error}") from error


def _table(plan: Plan) -> Table:
    table = Table("group", "nodes", "members per node", "CPUs", "GPUs", "memory GiB", "machine")
    rows = [("head", "1", "", plan.head)]
    for group in plan.groups:
        low, high = group.min_nodes, group.max_nodes
        nodes = str(low) if low == high else f"{low}..{high}"
        rows.append((group.name, nodes, str(group.members_per_node), group.node))
    for name, nodes, members, node in rows:
        cells = (str(node.num_cpus), str(node.num_gpus), str(node.memory_gib), node.machine or "any")
        table.add_row(name, nodes, members, *cells)
    return table
