"""The manifests that are shipped beside this file; `python -m cluster.manifests.shipped` writes them again.

They are the same on every machine: a model that is not shipped counts as not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from actors.config_json import read_config_json
from cluster.manifests.render import Kind, Request, default_target, render
from configs.load import load_config
from configs.paths import ROOT
from learner.families.lookup import read_shape

FOLDER = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """One file: what it is rendered from."""

    kind: Kind
    config_name: str
    overrides: Sequence[str] = ()
    settings: tuple[tuple[str, str], ...] = ()
    """Of the target."""
    from_zero: bool = False


SHIPPED: Mapping[str, Shipped] = {
    "kuberay-cpu.yaml": Shipped(kind="kuberay", config_name="tiny"),
    "kuberay-gpu.yaml": Shipped(kind="kuberay", config_name="visionthink_7b_4x8gpu", from_zero=True),
    "rayjob-cpu.yaml": Shipped(kind="rayjob", config_name="tiny", settings=(("queue", "training"),)),
    "rayjob-gpu.yaml": Shipped(kind="rayjob", config_name="visionthink_3b_2gpu"),
    "aws.yaml": Shipped(kind="aws", config_name="visionthink_7b_4x8gpu", settings=(("nfs", "fs.example.internal:/"),)),
    "gcp.yaml": Shipped(
        kind="gcp",
        config_name="visionthink_3b_2gpu",
        settings=(("nfs", "fs.example.internal:/visionthink"), ("project", "my-project")),
    ),
    "slurm.sh": Shipped(kind="slurm", config_name="visionthink_7b_4x8gpu"),
}


def shipped_text(file: str) -> str:
    one = SHIPPED[file]
    config = load_config(one.config_name, one.overrides)
    folder = ROOT / config.model.path
    is_shipped = config.model.path.startswith("configs/")
    shape = read_shape(read_config_json(folder)) if is_shipped else None
    request = Request(
        kind=one.kind,
        config_name=one.config_name,
        overrides=tuple(one.overrides),
        target=replace(default_target(config), **dict(one.settings)),  # type: ignore[arg-type]
        from_zero=one.from_zero,
    )
    return render(request, config, shape, out=file)


def main() -> None:
    for file in SHIPPED:
        (FOLDER / file).write_text(shipped_text(file), encoding="utf-8")
        typer.echo(str(FOLDER / file))


if __name__ == "__main__":
    main()
