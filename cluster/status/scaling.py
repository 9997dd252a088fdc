"""Sizes of a live run: what `visionthink scale` asks for in RUN/scale.json, and what the driver makes of it.

RUN/sizes.json keeps what was accepted. It holds for the life of the run, over its resumptions too, until it is changed
again: by another request, or by a resumption whose setting differs from that of the run until then. A role that was
never changed has its size from the config.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.records.files import write_atomically
from cluster.runtime.placement import place
from cluster.status.files import read_snapshot, replace_file
from cluster.status.views import ScaleAnswer
from configs.ranges import Range, parse_range
from configs.schema import Config

REQUEST = "scale.json"
SIZES = "sizes.json"
SETTINGS = {"rollouts": "rollout.num_workers", "learner": "learner.num_ranks"}
"""Roles whose size can be changed, with the setting that a run starts with."""
MOST = 10_000
"""More members than this are a slip of the finger: each is asked of Ray."""

Sizes = Mapping[str, Range]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleRequest:
    """Sizes that a person asked for. They are checked by the driver, whoever wrote them."""

    id: str
    time: float
    """Wall-clock time of the request."""
    sizes: Mapping[str, str]
    """Role to size, as in `2..6`."""


def parse_sizes(sizes: Mapping[str, str]) -> dict[str, Range]:
    """Raises ValueError for a role that has no size to change, or a size that is none."""
    for role in sizes:
        if role == "judges":
            raise ValueError(
                "judges are scaled by Ray Serve, between judge.min_replicas and judge.max_replicas of the config"
            )
        if role not in SETTINGS:
            raise ValueError(f"{role} is not a role: sizes can be given for {' and '.join(SETTINGS)}")
    ranges = {role: parse_range(role, size) for role, size in sizes.items()}
    for role, size in ranges.items():
        if size.maximum > MOST:
            raise ValueError(f"{role}={size}: must be at most {MOST}")
    return ranges


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """`rollouts=2..6 learner=1..4` as role to size, checked.

    Raises:
        ValueError: an argument is not ROLE=SIZE, a role is named twice, or a size is none.
    """
    sizes: dict[str, str] = {}
    for argument in arguments:
        role, sign, size = argument.partition("=")
        if not sign:
            raise ValueError(f"{argument} is not ROLE=SIZE, as in rollouts=2..6")
        if role in sizes:
            raise ValueError(f"{role} is given twice")
        sizes[role] = size
    return {role: str(size) for role, size in parse_sizes(sizes).items()}


def configured_sizes(config: Config) -> dict[str, Range]:
    return {
        "rollouts": config.rollout.workers,
        "learner": config.learner.ranks,
    }


def size_problem(config: Config, sizes: Sizes) -> str | None:
    """Why a run with this config cannot have these sizes; None if it can, on a cluster that is large enough."""
    placed, num_ranks = place(config), sizes["learner"].maximum + config.learner.num_spares
    num_workers = sizes["rollouts"].maximum + config.rollout.num_spares
    num_gpus = num_workers * placed.worker.num_gpus + num_ranks * placed.rank.num_gpus
    if config.transport == "ipc" and num_gpus > 1:
        return (
            f"weights go over CUDA IPC inside the one GPU that all share, and these sizes take {num_gpus:g}: "
            "resume the run with weights.transport=nccl or shared_memory"
        )
    configured = configured_sizes(config)["learner"]
    if not config.learner.copy_state and sizes["learner"] != configured:
        return (
            f"learner={sizes['learner']}: must stay {configured} with learner.copy_state=false, "
            "with which ranks join at the start only: resume the run with learner.copy_state=true"
        )
    before = configured.minimum
    if config.learner.zero_stage == 3 and config.learner.num_gpus and sizes["learner"].minimum < before:
        return (
            f"learner={sizes['learner']}: under learner.zero_stage=3 a rank holds a share of the model, and only "
            f"shares of {before} and more ranks were checked against the GPUs: resume the run with learner.num_ranks"
        )
    return None


def shortage(config: Config, sizes: Sizes, available: Mapping[str, float]) -> str:
    """What the cluster lacks for the maximum of these sizes, as a remark; empty if it lacks nothing."""
    placed = place(config)
    rollouts = sizes["rollouts"].maximum + config.rollout.num_spares
    learner = sizes["learner"].maximum + config.learner.num_spares
    wanted = {
        "CPU": rollouts * placed.worker.num_cpus + learner * placed.rank.num_cpus,
        "GPU": rollouts * placed.worker.num_gpus + learner * placed.rank.num_gpus,
    }
    lacking = [
        f"{num:g} {kind}s where the cluster has {available.get(kind, 0.0):g}"
        for kind, num in wanted.items()
        if num > available.get(kind, 0.0)
    ]
    return f"all of them need {' and '.join(lacking)}: the others stay pending until nodes join" if lacking else ""


class SizeDesk:
    """The sizes in force, and the answers to requests.

    Args:
        remark: says of accepted sizes what they will wait for; may block for a moment.
    """

    def __init__(
        self,
        folder: Path,
        config: Config,
        *,
        remark: Callable[[Sizes], str] = lambda _: "",
    ) -> None:
        self._folder = folder
        self._config = config
        self._remark = remark
        self.answer: ScaleAnswer | None = _last_answer(folder)
        self._sizes: dict[str, Range] = configured_sizes(config) | self._kept()

    @property
    def sizes(self) -> Sizes:
        return self._sizes

    def desired(self, role: str) -> Range:
        """The size in force of a role."""
        return self._sizes[role]

    def consider(self, request: ScaleRequest) -> ScaleAnswer | None:
        """Accept or refuse a request as a whole; None for one that has its answer. An accepted one is kept on disk."""
        if self.answer is not None and self.answer.id == request.id:
            return None
        try:
            asked = parse_sizes(request.sizes)
            self._check(asked)
            self._keep({**self._kept(), **asked})
        except ValueError as error:
            reason, is_accepted = str(error), False
        except OSError as error:
            reason, is_accepted = f"{self._folder / SIZES} cannot be written: {error.strerror or error}", False
        else:
            is_accepted = True
            self._sizes = {**self._sizes, **asked}
            reason = self._remark(self._sizes)
        self.answer = ScaleAnswer(id=request.id, requested=dict(request.sizes), is_accepted=is_accepted, reason=reason)
        return self.answer

    def _check(self, asked: Sizes) -> None:
        if problem := size_problem(self._config, {**self._sizes, **asked}):
            raise ValueError(problem)

    def _keep(self, sizes: Sizes) -> None:
        configured = configured_sizes(self._config)
        fields = {role: {"size": str(size), "setting": str(configured[role])} for role, size in sizes.items()}
        write_atomically(self._folder / SIZES, json.dumps(fields))

    def _kept(self) -> dict[str, Range]:
        """Sizes accepted earlier in the run's life, of roles that have the same setting."""
        configured = configured_sizes(self._config)
        try:
            fields = json.loads((self._folder / SIZES).read_text(encoding="utf-8"))
            sizes = parse_sizes({role: kept["size"] for role, kept in fields.items()})
            settings = {role: kept["setting"] for role, kept in fields.items()}
        except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError):
            return {}
        return {role: size for role, size in sizes.items() if settings[role] == str(configured[role])}


def _last_answer(folder: Path) -> ScaleAnswer | None:
    """Of the driver before, so that a resumed run does not answer the same request again."""
    try:
        return read_snapshot(folder).status.scale
    except ValueError:
        return None


def write_request(folder: Path, request: ScaleRequest) -> None:
    fields = {"id": request.id, "time": request.time, "sizes": dict(request.sizes)}
    replace_file(folder / REQUEST, json.dumps(fields))


def read_request(folder: Path) -> ScaleRequest | None:
    """The last request; None where there is none, or something else stands in the file."""
    try:
        fields: Any = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        sizes = {str(role): str(size) for role, size in fields["sizes"].items()}
        return ScaleRequest(id=str(fields["id"]), time=float(fields.get("time", time.time())), sizes=sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def withdraw_request(folder: Path, request: ScaleRequest) -> None:
    """Take back a request that nobody answered, so that it does not come into force much later."""
    found = read_request(folder)
    if found is not None and found.id == request.id:
        (folder / REQUEST).unlink(missing_ok=True)
