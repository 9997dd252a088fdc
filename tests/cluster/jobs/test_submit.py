"""A job is followed to its end, whatever the way to its log does."""

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
from ray.job_submission import JobStatus

from actors.errors import RunError
from cluster.jobs import submit
from cluster.jobs.package import START
from cluster.jobs.submit import follow_job, submit_job

LOG = "one\ntwo\nthree\nfour\n"


class FakeClient:
    """A dashboard whose streams break off after so many characters, each taking the next entry of `breaks`."""

    def __init__(self, breaks, *, ends_as=JobStatus.SUCCEEDED, error=None, log=LOG) -> None:
        self.breaks = list(breaks)
        self.ends_as = ends_as
        self.error = error
        self.log = log

    def get_job_status(self, job_id: str) -> JobStatus:
        return JobStatus.RUNNING if self.breaks else self.ends_as  # of the last stream on

    def get_job_logs(self, job_id: str) -> str:
        return self.log

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        end = self.breaks.pop(0) if self.breaks else len(self.log)
        for start in range(0, end, 5):
            yield self.log[start : min(start + 5, end)]
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(submit, "RETRY_S", 0.0)


async def follow(client, **settings):
    shown: list[str] = []
    status = await follow_job(client, "job", shown.append, **settings)
    return status, "".join(shown)


@pytest.mark.parametrize("breaks", [[], [0], [7], [3, 3, 9, 12], [19, 2, 19]])
@pytest.mark.parametrize("error", [None, RuntimeError("closed with code 1006"), ConnectionResetError("gone")])
async def test_a_stream_that_ends_early_is_taken_up_where_it_was(breaks, error):
    assert await follow(FakeClient(breaks, error=error)) == (JobStatus.SUCCEEDED, LOG)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
async def test_the_outcome_is_the_jobs_not_the_streams(status):
    assert (await follow(FakeClient([5], ends_as=status)))[0] is status


async def test_the_end_of_the_log_is_shown_when_the_stream_missed_it():
    client = FakeClient([])
    stream = client.tail_job_logs

    async def short(job_id):
        async for text in stream(job_id):
            yield text[:2]
            return

    client.tail_job_logs = short
    assert await follow(client) == (JobStatus.SUCCEEDED, LOG)


async def test_a_proxy_that_lets_no_stream_through_hides_nothing():
    client = FakeClient([0, 0, 0, 0], error=RuntimeError("status 403, no upgrade"))
    grown = iter((5, 9, 12, len(LOG)))
    client.get_job_logs = lambda job: LOG[: next(grown)]
    shown: list[str] = []
    await follow_job(client, "job", shown.append)
    assert shown[:4] == [LOG[:5], LOG[5:9], LOG[9:12], LOG[12:]]


async def test_a_dashboard_that_is_lost_for_good_is_given_up():
    class Gone(FakeClient):
        def get_job_status(self, job_id: str) -> JobStatus:
            raise ConnectionError("no route to host")

    now = iter(range(0, 10_000, 100))
    with pytest.raises(ConnectionError, match="no route"):
        await follow(Gone([]), clock=lambda: float(next(now)))


async def test_a_connection_that_went_dead_without_a_word_is_made_anew(monkeypatch):
    monkeypatch.setattr(submit, "STREAM_S", 0.05)
    client = FakeClient([10, 15])
    stream = client.tail_job_logs
    num_streams = 0

    async def stuck(job_id):
        nonlocal num_streams
        num_streams += 1
        async for text in stream(job_id):
            yield text
        if num_streams == 1:
            await asyncio.Event().wait()

    client.tail_job_logs = stuck
    assert await follow(client) == (JobStatus.SUCCEEDED, LOG)
    assert num_streams == 2


class FakeDashboard:
    """Stands in for Ray's client where a job is handed in. What it was given is in `taken`."""

    taken: ClassVar[dict[str, object]] = {}
    failure: ClassVar[Exception | None] = None

    def __init__(self, address: str) -> None:
        if isinstance(self.failure, ConnectionError):
            raise self.failure

    def submit_job(self, **job: object) -> str:
        if self.failure is not None:
            raise self.failure
        type(self).taken = job
        return "raysubmit_1"


@pytest.fixture
def dashboard(monkeypatch, tmp_path):
    (tmp_path / START).parent.mkdir(parents=True)
    (tmp_path / START).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submit, "JobSubmissionClient", FakeDashboard)
    monkeypatch.setattr(FakeDashboard, "failure", None)
    return FakeDashboard


def outcome(monkeypatch, end):
    async def follow(*_):
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(submit, "follow_job", follow)


@pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 1), (JobStatus.STOPPED, 1)])
def test_the_command_ends_as_the_job_did(status, code, dashboard, monkeypatch, tmp_path):
    outcome(monkeypatch, status)
    assert submit_job(["train", "train.num_steps=3"], "http://127.0.0.1:8265") == code
    command = str(dashboard.taken["entrypoint"])
    assert f"train train.num_steps=3 run.dir={tmp_path}/runs" in command


def test_ctrl_c_leaves_the_job_alone_and_tells_how_to_stop_it(dashboard, monkeypatch, capsys):
    outcome(monkeypatch, KeyboardInterrupt())
    assert submit_job(["config"], "http://127.0.0.1:8265") == 130
    told = capsys.readouterr().err
    assert "job raysubmit_1 goes on" in told
    assert "ray job stop raysubmit_1 --address http://127.0.0.1:8265" in told


def test_a_dashboard_that_is_lost_on_the_way_does_not_mean_that_the_job_failed(dashboard, monkeypatch):
    outcome(monkeypatch, ConnectionError("no route to host"))
    with pytest.raises(RunError, match=r"no route to host; job raysubmit_1 goes on: .*ray job stop"):
        submit_job(["config"], "http://127.0.0.1:8265")


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ConnectionError("refused"), "no Ray dashboard answers at"),
        (RuntimeError("Request failed with status code 413: Maximum request body size exceeded."), "413"),
    ],
)
def test_a_job_that_was_not_taken_costs_one_line(failure, words, dashboard, monkeypatch):
    monkeypatch.setattr(FakeDashboard, "failure", failure)
    with pytest.raises(RunError, match=words) as refused:
        submit_job(["config"], "http://127.0.0.1:8265")
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_too_large_is_refused_before_anything_is_sent(dashboard, monkeypatch, tmp_path):
    (tmp_path / "weights").mkdir()
    with (tmp_path / "weights" / "w.bin").open("wb") as file:
        file.truncate(submit.MAX_UPLOAD_BYTES + 1)
    with pytest.raises(RunError, match=r"the largest are weights \("):
        submit_job(["config"], "http://127.0.0.1:8265")
    (tmp_path / "weights").rename(tmp_path / "models")
    outcome(monkeypatch, JobStatus.SUCCEEDED)
    assert submit_job(["config"], "http://127.0.0.1:8265") == 0


def test_another_folder_than_the_projects_is_refused(dashboard, monkeypatch, tmp_path):
    (tmp_path / START).unlink()
    with pytest.raises(RunError, match="submit from there"):
        submit_job(["config"], "http://127.0.0.1:8265")
