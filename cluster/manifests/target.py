"""Where a cluster runs and what it is called: all that a manifest needs beside the plan. Pure."""

from __future__ import annotations

import math
import os
import posixpath
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from configs.judges import JudgeConfig, cache_file
from configs.require import require
from configs.schema import Config

MAX_NAME = 47
"""Of a RayJob in KubeRay, which appends to it; that of a RayCluster may be 53."""
HOME = "/home/visionthink"
"""Of the image's user."""
SECRET_FOLDER = f"{HOME}/secrets"
JUDGE_KEY = "judge-key"
"""Key of the Secret, and name of the file, with the API key of the judge."""
SHUTDOWN_S = 30
"""Beyond the time in which a run saves: for Ray to end its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Settings of a manifest; each has an option in `visionthink cluster render`."""

    name: str
    image: str
    namespace: str = "default"
    mount: str = "/mnt/visionthink"
    """Folder of the shared storage on every node."""
    storage_gib: int = 500
    storage_class: str = ""
    claim: str = ""
    """An existing PersistentVolumeClaim; empty makes one."""
    secret: str = "visionthink"
    """Kubernetes Secret with the judge's API key, by name."""
    queue: str = ""
    """Kueue's LocalQueue."""
    region: str = ""
    zone: str = ""
    project: str = ""
    nfs: str = ""
    """HOST:/PATH of the shared storage of virtual machines."""
    spot: bool = False
    """Rollouts and judges on spot machines."""
    partition: str = ""
    account: str = ""
    time_limit: str = "24:00:00"
    retries: int = 3
    """Clusters that a RayJob builds after the first one."""

    def __post_init__(self) -> None:
        require(re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", self.name) is not None, "--name", self.name, _NAME)
        require(len(self.name) <= MAX_NAME, "--name", self.name, f"must have at most {MAX_NAME} characters")
        require(self.mount.startswith("/") and len(self.mount) > 1, "--mount", self.mount, "must be an absolute path")
        for option in ("image", "namespace", "mount", "claim", "secret", "queue", "nfs", "storage_class"):
            text = getattr(self, option)
            is_word = re.fullmatch(r"[\w./:@-]*", text) is not None
            require(is_word, f"--{option.replace('_', '-')}", text, "may contain only letters, digits and _ . / : @ -")
        require(self.storage_gib >= 1, "--storage-gib", self.storage_gib, "must be at least 1")
        require(self.retries >= 0, "--retries", self.retries, "must be at least 0")


_NAME = "must consist of lowercase letters, digits and dashes, start with a letter and end with a letter or digit"


def cluster_name(run_name: str) -> str:
    """The name of a run as a DNS label, which Kubernetes and the clouds want."""
    label = re.sub(r"[^a-z0-9]+", "-", run_name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"run-{label}".strip("-")
    return label[:MAX_NAME].rstrip("-")


def on_cluster(config: Config, target: Target) -> Config:
    """The config as the cluster's nodes use it: paths below the shared storage, the judge's key in a file.

    Raises:
        ValueError: run.dir would not be on the shared storage.
    """
    llm, judge = config.judge.llm, config.judge
    if needs_key(judge):
        llm = replace(llm, api_key_env="", api_key_file=f"{SECRET_FOLDER}/{JUDGE_KEY}")
    if "cluster" in judge.chain:
        llm = replace(llm, model=_shared(llm.model, target))
    # The default cache depends on the environment of whoever renders.
    cache = cache_file({}) if judge.cache == cache_file(os.environ) else _shared(judge.cache, target)
    llm = replace(llm, prompt=_wording(llm.prompt, target))
    folder = _shared(config.run.dir, target)
    is_shared = "://" in folder or folder.startswith(f"{target.mount.rstrip('/')}/")
    require(is_shared, "run.dir", folder, f"must be relative or below --mount={target.mount}, the shared storage")
    return replace(
        config,
        run=replace(config.run, dir=folder),
        model=replace(
            config.model, path=_shared(config.model.path, target), prompt=_wording(config.model.prompt, target)
        ),
        data=replace(
            config.data, train=_shared(config.data.train, target), heldout=_shared(config.data.heldout, target)
        ),
        judge=replace(judge, cache=cache, llm=llm),
    )


def grace_s(config: Config) -> int:
    """Seconds from the notice to the end of a node."""
    return math.ceil(config.run.stop_grace_s) + SHUTDOWN_S


def needs_key(judge: JudgeConfig) -> bool:
    """Whether a judge reads an API key."""
    return judge.has_llm and bool(judge.llm.api_key_file or judge.llm.api_key_env)


def changes(config: Config) -> dict[str, Any]:
    """The settings that differ from the schema's defaults: `load_config` reads them back as the same config."""
    return _difference(asdict(config), asdict(Config()))


def _difference(given: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            if inner := _difference(value, default[name]):
                found[name] = inner
        elif value != default[name]:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _shared(path: str, target: Target) -> str:
    """A relative path is one on the shared storage, unless it is shipped in the image."""
    is_settled = not path or path.startswith(("/", "~", "configs/")) or "://" in path
    return path if is_settled else posixpath.normpath(posixpath.join(target.mount, path))


def _wording(name: str, target: Target) -> str:
    return _shared(name, target) if "/" in name else name
