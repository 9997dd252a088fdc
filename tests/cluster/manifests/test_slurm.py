"""The batch script for Slurm: its directives, and what it does, with stand-ins for the commands of Slurm and Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.manifests.plan import cluster_plan
from cluster.manifests.render import render
from cluster.manifests.slurm import allocate
from tests.cluster.manifests.cases import CASES, request, with_sizes

DEADLINE_S = 20.0


def script(name: str, **settings: object) -> str:
    config = CASES[name]
    return render(request("slurm", config, **settings), config, None)


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("name", CASES)
def test_bash_reads_the_script(name):
    done = subprocess.run(["bash", "-n"], input=script(name), text=True, capture_output=True, check=False, timeout=10)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CASES)
def test_the_job_is_announced_its_end_and_comes_back(name):
    text = script(name)
    found = directives(text)
    assert found["requeue"] == ""
    kind, _, seconds = found["signal"].partition("@")
    assert kind == "B:TERM"
    assert int(seconds) >= 30
    assert found["ntasks-per-node"] == "1"
    assert text.index("#SBATCH") < text.index("set -euo"), "directives come before the first command"


def test_the_paper_run_is_a_job_of_four_nodes():
    found = directives(script("7b", partition="gpu", account="lab", time_limit="8:00:00"))
    assert (found["nodes"], found["gpus-per-node"]) == ("4", "8")
    assert (found["partition"], found["account"], found["time"]) == ("gpu", "lab", "8:00:00")
    assert "gpus-per-node" not in directives(script("tiny"))


def test_a_range_of_sizes_is_a_range_of_nodes():
    config = with_sizes(CASES["7b"], "8..16", "8..16")
    size = allocate(cluster_plan(config, None), 8)
    assert (size.min_nodes, size.max_nodes, size.num_gpus) == (2, 4, 8)
    small = allocate(cluster_plan(CASES["3b-2gpu"], None), 8)
    assert (small.min_nodes, small.max_nodes, small.num_gpus) == (1, 1, 2)


def test_options_cannot_carry_commands():
    for setting in ({"partition": "a b"}, {"account": "$(id)"}, {"time_limit": "1;id"}):
        with pytest.raises(ValueError, match="is invalid"):
            script("tiny", **setting)


STAND_INS = {
    "srun": 'echo "srun $*" >>$LOG; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "hostname": "echo 10.0.0.1",
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; else echo "scontrol $*" >>$LOG; fi',
    "ray": 'if [ "$1" = start ]; then echo "ray $*" >>$LOG; exec sleep 60; fi; exit 0',
    "python": (
        'if [ "$1" = -c ]; then exec $REAL "$@"; fi; echo "python $* $RAY_ADDRESS $RAY_AUTH_MODE" >>$LOG; '
        'trap "exit $STOPPED" TERM; stat -c "mode %a" $RAY_AUTH_TOKEN_PATH >>$LOG; '
        '[ "$STAYS" = 0 ] && exit $ENDED; while :; do sleep 0.1; done'
    ),
}


class Job:
    """The script of the tiny run, started as Slurm would."""

    def __init__(self, folder: Path, *, stays: bool, ended: int = 0, stopped: int = 0) -> None:
        self.folder, self.log = folder, folder / "log"
        for name, body in STAND_INS.items():
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
        (folder / "job.sh").write_text(script("tiny"))
        environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "LOG": str(self.log),
            "REAL": sys.executable,
            "PYTHON": str(folder / "python"),
            "SLURM_SUBMIT_DIR": str(folder),
            "SLURM_JOB_ID": "77",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "STAYS": str(int(stays)),
            "ENDED": str(ended),
            "STOPPED": str(stopped),
        }
        self.process = subprocess.Popen(["bash", str(folder / "job.sh")], env=environment, start_new_session=True)

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, word: str) -> None:
        self.wait_until(lambda lines: any(line.startswith(word) for line in lines))

    def wait_until(self, is_met: Callable[[list[str]], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_met(self.lines()):
            assert time.monotonic() < deadline, self.lines()
            time.sleep(0.05)

    def end(self) -> int:
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


def test_all_nodes_start_and_the_run_has_a_private_token_that_goes_with_the_job(tmp_path):
    job = Job(tmp_path, stays=True)
    job.wait_for("mode")
    job.wait_until(lambda lines: sum("--address=10.0.0.1:20077" in line for line in lines) >= 4)
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    lines = job.lines()
    heads = [line for line in lines if line.startswith("srun") and "--head" in line]
    workers = [line for line in lines if line.startswith("srun") and "--address=10.0.0.1:20077" in line]
    assert len(heads) == 1
    assert "--nodelist=n1 " in heads[0]
    assert "--dashboard-host=127.0.0.1" in heads[0]
    assert {word for line in workers for word in line.split() if "nodelist" in word} == {
        "--nodelist=n2",
        "--nodelist=n3",
    }
    assert "mode 600" in lines
    (run,) = [line for line in lines if line.startswith("python")]
    assert run.endswith("run.name=tiny 10.0.0.1:20077 token")
    assert not list((tmp_path / ".ray").iterdir())
    assert not [line for line in lines if line.startswith("scontrol")]


def test_a_failed_run_ends_the_job_with_its_exit_code(tmp_path):
    job = Job(tmp_path, stays=False, ended=4)
    assert job.end() == 4
    assert not [line for line in job.lines() if line.startswith("scontrol")]


def test_a_notice_reaches_the_run_and_the_job_comes_back(tmp_path):
    job = Job(tmp_path, stays=True, stopped=75)
    job.wait_for("mode")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 75
    assert "scontrol requeue 77" in job.lines()
    assert not list((tmp_path / ".ray").iterdir())


def test_a_run_that_ends_well_after_a_notice_does_not_come_back(tmp_path):
    job = Job(tmp_path, stays=True, stopped=0)
    job.wait_for("mode")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    assert not [line for line in job.lines() if line.startswith("scontrol")]
