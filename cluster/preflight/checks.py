"""Checks before a run starts, for faults that would otherwise surface minutes later. All are reported at once.

Each problem is one line with the setting, its value and the remedy. Nothing here starts a process or imports Ray.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.data.benchmarks.dataset import open_samples
from actors.errors import DataError, RunError, VisionThinkError
from actors.hub import looks_like_hub_id
from actors.prompts import load_prompt_style
from actors.tools.registry import toolbox_of
from cluster.preflight.machine import (
    SharedMemory,
    folder_problem,
    gpu_bytes,
    launch_path_problem,
    shared_memory_needed,
    shared_memory_problem,
    socket_problem,
)
from cluster.preflight.model_files import (
    chat_problem,
    find_lfs_pointers,
    length_problem,
    model_folder_problems,
    read_json,
    weight_bytes,
)
from cluster.runtime.addresses import find_cluster, ray_folder
from configs.judges import JudgeConfig
from configs.schema import ColumnsConfig, Config
from judge.llm.prompt import load_wording
from learner.families.lookup import find_family, read_shape
from learner.memory import memory_message

Check = Callable[[], object]
"""Raises on a problem: a ValueError, an OSError or one of our errors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One of the things that are looked at before a run, and by `visionthink doctor`."""

    name: str
    look: Callable[[], Iterable[Exception]]
    """Yields the problems; a UserWarning is one that a run survives."""


def run_items(config: Config, *, learns: bool = True) -> list[Item]:
    """What is looked at before a run, in this order. Nothing here starts a process.

    Args:
        config: with resolved paths.
        learns: whether the run trains, and so needs data.train and a run folder.
    """
    data, style, tools = config.data, config.model.prompt, config.rollout.tools
    items = [
        Item(name="Ray on this machine", look=lambda: _problems(_machine_lines())),
        Item(name="run folder", look=lambda: _problems(_folder_lines(config))),
        Item(name="model", look=lambda: _problems(_model_lines(config))),
        Item(name="lengths and shared memory", look=lambda: _problems(_fitting_lines(config))),
        Item(name="GPU memory", look=lambda: _problems(_learner_lines(config))),
        Item(name="prompt", look=lambda: raised([lambda: load_prompt_style(style).check(toolbox_of(tools))])),
        Item(name="data.train", look=lambda: data_problems("data.train", data.train, data.columns)),
        Item(name="data.heldout", look=lambda: data_problems("data.heldout", data.heldout, data.columns)),
        Item(name="judge", look=lambda: _judge_problems(config.judge)),
    ]
    of_learners = ("run folder", "GPU memory", "data.train")
    return [item for item in items if learns or item.name not in of_learners]


def check_run(config: Config, *, learns: bool = True, more: Sequence[Check] = (), then: Sequence[Check] = ()) -> None:
    """Reject a run that would fail on this machine.

    Args:
        config: with resolved paths.
        learns: whether the run trains, and so needs data.train and a run folder.
        more: further checks, such as those of the cluster's address and of the judge's endpoint.
        then: checks that need valid model and data, such as that of a checkpoint's identity.

    Raises:
        RunError, ValueError, ...: the problem itself if there is only one; several are one line each.
    """
    problems = [problem for item in run_items(config, learns=learns) for problem in item.look()]
    dependent = () if problems else then
    raise_all([*problems, *raised([*more, *dependent])])


def check_judge(config: JudgeConfig, *, more: Sequence[Check] = ()) -> None:
    """As `check_run`, for a command that needs Ray only for its judges."""
    raise_all([*_problems(_machine_lines()), *_judge_problems(config), *raised(more)])


def raise_all(problems: Sequence[Exception]) -> None:
    """Raise a single problem unchanged, several as one error with a line each; without problems do nothing.

    Duplicates are reported once.
    """
    distinct: dict[str, Exception] = {}
    for problem in problems:
        distinct.setdefault(str(problem), problem)
    if len(distinct) == 1:
        raise next(iter(distinct.values()))
    if distinct:
        raise RunError("\n".join(distinct))


def _problems(lines: Iterator[str]) -> Iterator[Exception]:
    try:
        for line in lines:
            yield ValueError(line)
    except OSError as error:
        yield _unreadable(error)
    except (VisionThinkError, ValueError) as error:
        yield error


def raised(checks: Sequence[Check]) -> Iterator[Exception]:
    """What the checks raise of known errors."""
    for check in checks:
        try:
            check()
        except OSError as error:
            yield _unreadable(error)
        except (VisionThinkError, ValueError) as error:
            yield error


def _unreadable(error: OSError) -> RunError:
    return RunError(f"{error.filename or 'a file'} cannot be read: {error.strerror or error}")


def _folder_lines(config: Config) -> Iterator[str]:
    if problem := folder_problem("run.dir", config.run.dir):
        yield problem


def _model_lines(config: Config) -> Iterator[str]:
    needs_weights = config.model.load == "weights"
    flaws = list(model_folder_problems("model.path", config.model.path, needs_weights=needs_weights))
    yield from flaws
    if not flaws:
        content = read_json(Path(config.model.path) / "config.json")
        yield from map(str, raised([lambda: find_family(content, f"model.path={config.model.path!r}")]))


def _machine_lines() -> Iterator[str]:
    """Problems of this machine, if Ray would be started on it. A running cluster needs no such checks."""
    for error in raised([lambda: find_cluster(os.environ)]):
        yield str(error)
    if not starts_ray_here():
        return
    sessions, temporary = ray_folder(os.environ), Path(tempfile.gettempdir())
    spec = importlib.util.find_spec("ray")
    package = str(Path(spec.origin).parent) if spec and spec.origin else ""
    problems = (
        launch_path_problem(sys.executable, package, str(sessions)),
        socket_problem(sessions, temporary),
        folder_problem("RAY_TMPDIR", str(sessions)),
    )
    yield from (problem for problem in problems if problem)


def starts_ray_here() -> bool:
    """Whether Ray would be started on this machine; nothing is known about the machines of a running cluster."""
    try:
        return find_cluster(os.environ) is None
    except ValueError:
        return False


def _fitting_lines(config: Config) -> Iterator[str]:
    """Problems of sequence length and shared memory, of a model that can be loaded."""
    if any(_model_lines(config)):
        return
    rollout, folder = config.rollout, Path(config.model.path)
    lengths = (
        f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} + rollout.max_turn_tokens={rollout.max_turn_tokens}"
    )
    if problem := length_problem(rollout.max_model_len, lengths, folder, "model.path"):
        yield problem
    memory = SharedMemory.look_up() if starts_ray_here() else None
    if memory is None:
        return
    needed = shared_memory_needed(
        weight_bytes=weight_bytes(folder) if config.transport == "shared_memory" else 0,
        uses_queue=rollout.num_gpus == 0 or rollout.tensor_parallel_size > 1,
    )
    if problem := shared_memory_problem(memory, needed):
        yield problem


def _learner_lines(config: Config) -> Iterator[str]:
    """Why no learner rank fits a GPU of this machine. On other machines each rank checks its own GPU as it starts."""
    memory = gpu_bytes() if config.learner.num_gpus and starts_ray_here() else None
    if memory is None or any(_model_lines(config)):
        return
    model, in_bfloat16 = read_json(Path(config.model.path) / "config.json"), config.model.dtype == "bfloat16"
    if problem := memory_message(read_shape(model), config.learner, in_bfloat16=in_bfloat16, gpu_bytes=memory):
        yield problem


def data_problems(key: str, path: str, columns: ColumnsConfig) -> Iterator[Exception]:
    """Why the data set of a setting cannot be read, with the remedy."""
    pointers: list[Path] = []
    yield from raised([lambda: pointers.extend(find_lfs_pointers(Path(path)))])
    if pointers:
        remedy = f"{key}={path!r} has a Git LFS pointer instead of {pointers[0].name}: run `git lfs pull` in it"
        yield DataError(remedy)
        return
    for error in raised([lambda: open_samples(path, columns)]):
        yield DataError(f"{key}: {error}{_hub_remedy(path)}")


def _hub_remedy(path: str) -> str:
    """Remedy for a hub id given as a path; paths of a config are relative to the working directory."""
    file = Path(path)
    name = os.path.relpath(file)
    if file.exists() or file.parent.exists() or not looks_like_hub_id(name):
        return ""
    return f"; for the data set of that name on the Hugging Face Hub: hf://{name}"


def _judge_problems(config: JudgeConfig) -> Iterator[Exception]:
    if not config.has_llm:
        return
    yield from raised([lambda: load_wording(config.llm.prompt)])
    if "cluster" not in config.chain:
        return
    flaws = list(_problems(model_folder_problems("judge.llm.model", config.llm.model)))
    yield from flaws
    wanted = config.cluster.max_model_len
    setting = f"judge.cluster.max_model_len={wanted}"
    if not flaws:
        length = length_problem(wanted, setting, Path(config.llm.model), "judge.llm.model")
        yield from (ValueError(line) for line in (chat_problem("judge.llm.model", config.llm.model), length) if line)
