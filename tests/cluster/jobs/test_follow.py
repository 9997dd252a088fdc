"""A job is followed to its end, whatever the way to its log does."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from ray.job_submission import JobStatus

from cluster.jobs import follow as following
from cluster.jobs.follow import follow_job, how_it_ended
from cluster.stopping import CONTINUE
from tests.cluster.jobs.builders import make_details

LOG = "one\ntwo\nthree\nfour\n"


class FakeClient:
    """A dashboard whose streams break off after so many characters, each taking the next entry of `breaks`."""

    def __init__(self, breaks, *, ends_as=JobStatus.SUCCEEDED, error=None, log=LOG) -> None:
        self.breaks = list(breaks)
        self.ends_as = ends_as
        self.error = error
        self.log = log

    def get_job_info(self, job_id: str):
        return make_details(JobStatus.RUNNING if self.breaks else self.ends_as)  # of the last stream on

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
    monkeypatch.setattr(following, "RETRY_S", 0.0)


async def follow(client, **settings):
    shown: list[str] = []
    ended = await follow_job(client, "job", shown.append, **settings)
    return ended.status, "".join(shown)


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
        def get_job_info(self, job_id: str):
            raise ConnectionError("no route to host")

    now = iter(range(0, 10_000, 100))
    with pytest.raises(ConnectionError, match="no route"):
        await follow(Gone([]), clock=lambda: float(next(now)))


async def test_a_connection_that_went_dead_without_a_word_is_made_anew(monkeypatch):
    monkeypatch.setattr(following, "STREAM_S", 0.05)
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


SAVED = f"10:00:00 step 3\nstopped by SIGTERM: step 3 is saved; {CONTINUE}\n"
LOST = f"stopped by SIGTERM, but the last step is not saved: disk full; {CONTINUE} from the checkpoint before\n"


@pytest.mark.parametrize(
    ("status", "code", "log", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, LOG, 0),
        (JobStatus.FAILED, 1, LOG, 1),
        (JobStatus.FAILED, 75, SAVED, 75),
        (JobStatus.FAILED, -9, LOG, 137),
        (JobStatus.FAILED, None, "", 1),
        (JobStatus.STOPPED, None, SAVED, 75),
        (JobStatus.STOPPED, None, LOST, 143),
        (JobStatus.STOPPED, None, LOG, 143),
    ],
)
def test_the_exit_code_is_the_jobs_own_or_what_its_last_words_say(status, code, log, expected):
    ended = how_it_ended(make_details(status, driver_exit_code=code, message="runtime_env setup failed\nlong"), log)
    assert ended.exit_code == expected
    if log == SAVED:
        assert ended.line == f"stopped by SIGTERM: step 3 is saved; {CONTINUE}"
    if code is None and status is JobStatus.FAILED:
        assert ended.line == "runtime_env setup failed"
