"""A part that fails on its way up: what a person sees is the cause and the path of the log."""

import os
import subprocess
import sys

import pytest
import ray

from actors.errors import RolloutError
from cluster.logs import RunLogs
from cluster.ray_actors import crossing
from tests.actors.test_causes import captured

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]

POINTER = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"


class Part:
    """Fails as vLLM does: the cause is in the output of a process of its own, the exception only points there."""

    def __init__(self, output: str, message: str) -> None:
        subprocess.run([sys.executable, "-c", f"print({output!r})"], check=True)
        if message:
            raise RuntimeError(message)

    def die(self) -> None:
        os._exit(1)

    def ready(self) -> None:
        return


async def failure_of(output: str, message: str) -> Exception:
    actor = ray.remote(Part).options(num_cpus=0).remote(output, message)
    with pytest.raises(RolloutError) as failure:
        await crossing(actor.ready.remote(), RolloutError, "rollout worker 3")
    return failure.value


async def test_the_cause_is_found_in_the_log_where_the_error_only_points_there(local_ray, tmp_path):
    logs = RunLogs.of_this_job(tmp_path / "logs")
    told = logs.explain(await failure_of(captured("vllm_seed.out.txt"), POINTER))
    assert told.startswith("rollout worker 3: ValueError: Seed must be between 0 and 2**32 - 1; log: ")
    assert "\n" not in told
    log = tmp_path / "logs" / told.rpartition("/")[2]
    assert str(log) in told
    assert "Seed must be between" in log.read_text()
    assert POINTER in (tmp_path / "logs" / "driver.log").read_text()


async def test_an_error_that_says_why_is_shown_as_it_is_with_its_log(local_ray, tmp_path):
    told = RunLogs.of_this_job(tmp_path / "logs").explain(await failure_of("KeyError: other", "no such model"))
    assert "no such model; log: " in told
    assert "KeyError" not in told


async def test_logs_stay_in_the_runs_folder_when_ray_is_gone(local_ray, tmp_path):
    logs = RunLogs.of_this_job(tmp_path / "logs")
    await failure_of("said by an engine", POINTER)
    logs.link()
    assert all(path.is_symlink() for path in (tmp_path / "logs").iterdir())
    logs.close()
    kept = [path for path in (tmp_path / "logs").iterdir() if path.is_file()]
    assert kept
    assert not any(path.is_symlink() for path in kept)
    assert any("said by an engine" in path.read_text() for path in kept)
    assert all(path.name.startswith("Part-") or path.name.startswith("worker-") for path in kept)
