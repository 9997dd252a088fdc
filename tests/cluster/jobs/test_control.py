"""Jobs are known by their run, and one that is stopped is awaited no longer than it may take."""

import pytest
from ray.job_submission import JobStatus

from actors.errors import RunError
from cluster.jobs.control import COMMAND, GRACE, RUN, RUN_DIR, await_end, find_job, list_jobs
from cluster.stopping import CONTINUE
from tests.cluster.jobs.builders import make_details


def job(name, run, status, *, started=1, code=None):
    metadata = {COMMAND: "train", RUN: run, RUN_DIR: "/runs", GRACE: "30"}
    return make_details(status, submission_id=name, metadata=metadata, start_time=started * 1000, driver_exit_code=code)


class FakeCluster:
    """Jobs, and the states that one of them takes while it is asked about."""

    def __init__(self, *jobs, states=(), log=""):
        self.jobs = jobs
        self.states = list(states)
        self.log = log

    def list_jobs(self):
        return list(self.jobs)

    def stop_job(self, job_id):
        return True

    def get_job_info(self, job_id):
        return make_details(self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def get_job_logs(self, job_id):
        return self.log


CLUSTER = FakeCluster(
    job("a-1", "a", JobStatus.FAILED, started=1, code=75),
    job("a-2", "a", JobStatus.RUNNING, started=2),
    job("a-3", "a", JobStatus.FAILED, started=3, code=1),
    job("b-1", "b", JobStatus.SUCCEEDED, started=4, code=0),
    job("b-2", "b", JobStatus.STOPPED, started=5),
    make_details(JobStatus.RUNNING, metadata=None),  # of somebody else
    make_details(JobStatus.RUNNING, submission_id=None),
)


def test_our_jobs_are_listed_newest_first_with_run_and_state():
    shown = [(job.job, job.run, job.state) for job in list_jobs(CLUSTER)]
    assert shown == [
        ("b-2", "b", "stopped"),
        ("b-1", "b", "done"),
        ("a-3", "a", "failed"),
        ("a-2", "a", "running"),
        ("a-1", "a", "saved"),
    ]


@pytest.mark.parametrize(("name", "found"), [("a-1", "a-1"), ("a", "a-2"), ("b", "b-2")])
def test_a_job_is_found_by_its_id_or_its_run_a_running_one_first(name, found):
    assert find_job(list_jobs(CLUSTER), name).job == found


@pytest.mark.parametrize(
    "entrypoint", ["python -m cluster.cli train run.name=a", "visionthink train", "exec sh cluster/jobs/start.sh train"]
)
def test_a_job_that_others_submitted_is_listed_by_its_command(entrypoint):
    (shown,) = list_jobs(FakeCluster(make_details(JobStatus.RUNNING, entrypoint=entrypoint, metadata=None)))
    assert (shown.command, shown.state, shown.grace_s) == ("train", "running", 0)


def test_a_name_that_nobody_has_is_told_with_the_way_to_list_them():
    with pytest.raises(RunError, match="no job or run 'c' on this cluster: `visionthink jobs`"):
        find_job(list_jobs(CLUSTER), "c")


def test_a_job_that_is_stopped_is_awaited_and_its_last_word_told():
    line = f"stopped by SIGTERM: step 3 is saved; {CONTINUE}"
    cluster = FakeCluster(states=[JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.STOPPED], log=f"a\n{line}\n")
    ended = await_end(cluster, find_job(list_jobs(CLUSTER), "a"), sleep=lambda _: None)
    assert (ended.exit_code, ended.line) == (75, line)


def test_a_job_that_does_not_end_is_awaited_for_its_grace_time_and_no_longer():
    cluster, now = FakeCluster(states=[JobStatus.RUNNING]), [0.0]
    with pytest.raises(RunError, match="did not end within 60 s"):
        await_end(
            cluster,
            find_job(list_jobs(CLUSTER), "a"),
            clock=lambda: now[0],
            sleep=lambda s: now.__setitem__(0, now[0] + s),
        )
    assert 60 < now[0] < 62
