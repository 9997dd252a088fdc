"""From a config and a target to the text of a manifest, with the commands that use it at its head. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Literal

import yaml

from cluster.manifests.kuberay import ray_cluster, ray_job
from cluster.manifests.launcher import AWS, GCP, aws, gcp
from cluster.manifests.plan import Machine, Plan, cluster_plan
from cluster.manifests.slurm import slurm
from cluster.manifests.target import JUDGE_KEY, Target, cluster_name, needs_key, on_cluster
from configs.schema import Config
from learner.memory import ModelShape

Kind = Literal["kuberay", "rayjob", "aws", "gcp", "slurm"]
MACHINES: Mapping[Kind, Sequence[Machine]] = {"aws": AWS, "gcp": GCP}
"""Kinds whose nodes are machine types; all others take nodes of any size."""
MOVED = (
    "run.dir",
    "model.path",
    "model.prompt",
    "data.train",
    "data.heldout",
    "judge.llm.model",
    "judge.llm.prompt",
    "judge.llm.api_key_env",
    "judge.llm.api_key_file",
)
"""Settings whose value is another one on the cluster's nodes."""
TITLES: Mapping[Kind, str] = {
    "kuberay": "A Ray cluster for VisionThink on Kubernetes (KubeRay 1.5.1 or later).",
    "rayjob": "A VisionThink run with its own Ray cluster on Kubernetes (KubeRay 1.5.1 or later).",
    "aws": "A Ray cluster for VisionThink on AWS.",
    "gcp": "A Ray cluster for VisionThink on Google Cloud.",
    "slurm": "A VisionThink run on Ray, as a job of Slurm.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to render."""

    kind: Kind
    config_name: str
    overrides: tuple[str, ...]
    target: Target
    gpus_per_node: int = 8
    from_zero: bool = False


def plan_for(request: Request, config: Config, shape: ModelShape | None) -> Plan:
    machines = MACHINES.get(request.kind, ())
    plan = cluster_plan(config, shape, gpus_per_node=request.gpus_per_node, machines=machines)
    return plan.from_zero() if request.from_zero else plan


def render(request: Request, config: Config, shape: ModelShape | None, *, out: str = "FILE") -> str:
    """The file's text.

    Args:
        out: name of the file in the commands of its header.

    Raises:
        ValueError: a setting of the target is missing or not valid.
        RunError: no machine holds a member.
    """
    plan, target = plan_for(request, config, shape), request.target
    header = "\n".join(f"# {line}".rstrip() for line in _header(request, config, out))
    match request.kind:
        case "kuberay":
            return _yaml(header, ray_cluster(plan, config, target))
        case "rayjob":
            return _yaml(header, ray_job(plan, config, target))
        case "aws":
            return _yaml(header, [aws(plan, config.judge, target)])
        case "gcp":
            return _yaml(header, [gcp(plan, config.judge, target)])
        case "slurm":
            train = _train(request, config, [])
            return slurm(plan, config, target, train=train, header=header, gpus_per_node=request.gpus_per_node)


def command_line(request: Request, config: Config, out: str) -> str:
    """The command that renders this file: options that are not defaults only."""
    words = ["visionthink", "cluster", "render", "--kind", request.kind, "--config", request.config_name]
    default = default_target(config)
    for field in fields(Target):
        value = getattr(request.target, field.name)
        if value != getattr(default, field.name):
            option = f"--{field.name.replace('_', '-')}"
            words += [option] if value is True else [option, str(value)]
    if request.gpus_per_node != Request.__dataclass_fields__["gpus_per_node"].default:
        words += ["--gpus-per-node", str(request.gpus_per_node)]
    words += ["--from-zero"] if request.from_zero else []
    return shlex.join([*words, "--out", out, *request.overrides])


def default_target(config: Config) -> Target:
    variant = "gpu" if config.rollout.num_gpus or config.learner.num_gpus else "cpu"
    return Target(name=cluster_name(config.run.name), image=f"visionthink:{variant}")


def _header(request: Request, config: Config, out: str) -> list[str]:
    target = request.target
    lines = [TITLES[request.kind], f"Written by: {command_line(request, config, out)}", ""]
    space = "" if target.namespace == "default" else f" -n {shlex.quote(target.namespace)}"
    if "/" not in target.image and request.kind != "slurm":
        lines.append(
            f"Image:  cluster/manifests/Dockerfile, pushed where all nodes pull it: --image REGISTRY/{target.image}"
        )
    if request.kind in ("kuberay", "rayjob"):
        if needs_key(config.judge):
            secret = f"kubectl{space} create secret generic {target.secret} --from-file={JUDGE_KEY}=./judge.key"
            lines.append(f"Once:   {secret}")
        lines.append(f"Start:  kubectl{space} apply -f {out}")
    if request.kind == "kuberay":
        name = target.name
        token = f"kubectl{space} get secret {name} -o jsonpath={{.data.auth_token}} | base64 -d"
        lines.append(f"Reach:  kubectl{space} port-forward svc/{name}-head-svc 8265")
        lines.append(f"Token:  export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$({token})")
        lines.append(f"Run:    visionthink submit -- {shlex.join(_train(request, config, _paths(config, target)))}")
    if request.kind == "rayjob":
        lines.append(f"Follow: kubectl{space} logs -f job/{target.name}")
    if request.kind in ("aws", "gcp"):
        needed = "boto3" if request.kind == "aws" else "google-api-python-client"
        lines.append(f"Once:   ray get-auth-token --generate, and an image built with --build-arg CLOUD={needed}")
        if needs_key(config.judge):
            lines.append("Once:   the judge's API key in ./judge.key")
        lines.append(f"Start:  RAY_AUTH_MODE=token ray up {out}")
        lines.append(f"Reach:  ray dashboard {out}")
        submit = shlex.join(_train(request, config, _paths(config, target)))
        lines.append(f"Run:    RAY_AUTH_MODE=token visionthink submit -- {submit}")
        lines.append(f"End:    ray down {out}")
    if request.kind == "slurm":
        lines.append(f"Start:  sbatch {out}, in the project's folder, on a file system that all nodes share")
        lines.append(
            "Where jobs are preempted, Slurm's PreemptParameters must have send_user_signal: else Ray ends first."
        )
    return lines


def _train(request: Request, config: Config, paths: Sequence[str]) -> list[str]:
    """The command that starts the run, or resumes the one of this name."""
    given = [override for override in request.overrides if not override.startswith("run.name=")]
    return ["train", "--config", request.config_name, *given, *paths, f"run.name={config.run.name}"]


def _paths(config: Config, target: Target) -> list[str]:
    """Overrides for the settings that differ on the cluster's nodes."""
    there = on_cluster(config, target)
    pairs = [(key, attrgetter(key)(config), attrgetter(key)(there)) for key in MOVED]
    return [f"{key}={new}" for key, old, new in pairs if new != old]


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes shared parts in full, and texts of several lines as such."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _yaml(header: str, documents: Sequence[Mapping[str, Any]]) -> str:
    options: dict[str, Any] = {"Dumper": _Dumper, "sort_keys": False, "width": 120}
    text: str = yaml.dump_all(list(documents), explicit_start=True, **options)
    return f"{header}\n{text}"
