"""A job is handed in once, with what it needs and nothing secret, and its submitter ends as it did."""

import json
from pathlib import Path

import pytest
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from actors.errors import RunError
from cluster.jobs import submit
from cluster.jobs.control import COMMAND, RUN, RUN_DIR
from cluster.jobs.follow import Ended
from cluster.jobs.package import START, check_outlives_job
from cluster.jobs.submit import LOST, submit_job, submit_when_ready
from configs.load import load_config
from tests.cluster.jobs.builders import make_details

URL = "http://127.0.0.1:8265"


class FakeDashboard:
    """Stands in for Ray's client where a job is handed in. What it was given is in `taken`."""

    def __init__(self) -> None:
        self.taken: dict = {}
        self.failure: Exception | None = None
        self.jobs: list = []

    def list_jobs(self):
        return self.jobs

    def submit_job(self, **job: object) -> str:
        if self.failure is not None:
            raise self.failure
        self.taken = job
        return str(job["submission_id"])

    @property
    def environment(self) -> dict[str, str]:
        return self.taken["runtime_env"]["env_vars"]


@pytest.fixture
def dashboard(monkeypatch, tmp_path):
    (tmp_path / START).parent.mkdir(parents=True)
    (tmp_path / START).touch()
    monkeypatch.chdir(tmp_path)
    fake = FakeDashboard()
    monkeypatch.setattr(submit, "open_dashboard", lambda address: fake)
    return fake


def outcome(monkeypatch, end):
    async def follow(*_):
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setattr(submit, "follow_job", follow)


def ended(status=JobStatus.SUCCEEDED, code=0, line=""):
    return Ended(status=status, exit_code=code, line=line)


@pytest.mark.parametrize(("status", "code"), [(JobStatus.SUCCEEDED, 0), (JobStatus.FAILED, 2), (JobStatus.STOPPED, 75)])
def test_the_command_ends_as_the_job_did(status, code, dashboard, monkeypatch, tmp_path):
    outcome(monkeypatch, ended(status, code))
    assert submit_job(["train", "train.num_steps=3"], URL) == code
    command = str(dashboard.taken["entrypoint"])
    assert f"train train.num_steps=3 run.dir={tmp_path}/runs" in command


def test_ctrl_c_leaves_the_job_alone_and_tells_how_to_go_on(dashboard, monkeypatch, capsys):
    outcome(monkeypatch, KeyboardInterrupt())
    assert submit_job(["config"], URL) == 130
    told = capsys.readouterr().err
    job = dashboard.taken["submission_id"]
    assert f"job {job} continues" in told
    assert f"visionthink stop {job} --address {URL}" in told
    assert f"visionthink logs --follow {job} --address {URL}" in told


def test_a_dashboard_that_is_lost_on_the_way_does_not_mean_that_the_job_failed(dashboard, monkeypatch, capsys):
    outcome(monkeypatch, ConnectionError("no route to host"))
    assert submit_job(["config"], URL) == LOST
    assert "no route to host; job config-" in capsys.readouterr().err


def test_a_job_that_is_not_followed_is_named(dashboard, capsys, tmp_path):
    assert submit_job(["train", "run.name=a"], URL, follow=False, as_json=True) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"job": dashboard.taken["submission_id"], "address": URL, "run": "a", "run_dir": f"{tmp_path}/runs"}


def test_every_try_has_an_id_of_its_own_and_the_run_it_is_about(dashboard, tmp_path):
    ids = []
    for _ in range(2):
        submit_job(["train", "run.name=a"], URL, follow=False)
        ids.append(dashboard.taken["submission_id"])
    assert len(set(ids)) == 2
    assert all(name.startswith("a-") for name in ids)
    metadata = dashboard.taken["metadata"]
    assert (metadata[COMMAND], metadata[RUN], metadata[RUN_DIR]) == ("train", "a", f"{tmp_path}/runs")


@pytest.mark.parametrize(("status", "is_refused"), [(JobStatus.RUNNING, True), (JobStatus.STOPPED, False)])
def test_a_run_is_not_submitted_twice_at_a_time(status, is_refused, dashboard, tmp_path):
    metadata = {COMMAND: "train", RUN: "a", RUN_DIR: f"{tmp_path}/runs"}
    dashboard.jobs = [make_details(status, metadata=metadata, submission_id="a-1")]
    if is_refused:
        with pytest.raises(RunError, match=r"job a-1 trains run 'a' already: `visionthink stop a-1"):
            submit_job(["train", "run.name=a"], URL, follow=False)
        assert dashboard.taken == {}
    assert submit_job(["train", "run.name=b"], URL, follow=False) == 0
    assert submit_job(["train"], URL, follow=False) == 0
    if not is_refused:
        assert submit_job(["train", "run.name=a"], URL, follow=False) == 0


def test_ray_gives_a_run_its_grace_time_before_it_kills(dashboard):
    submit_job(["train", "run.stop_grace_s=50"], URL, follow=False)
    assert dashboard.environment["RAY_JOB_STOP_WAIT_TIME_S"] == "65"


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ConnectionError("refused"), "no Ray dashboard responds at"),
        (RuntimeError("Request failed with status code 413: Maximum request body size exceeded."), "413"),
        (AuthenticationError("Authentication required: x\n\nlong"), "requires a token: set RAY_AUTH_MODE=token"),
        (AuthenticationError("Authentication failed: x\n\nlong"), "rejected this token: .*RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_a_job_that_was_not_taken_costs_one_line_and_leaves_nothing(failure, words, dashboard, tmp_path):
    dashboard.failure = failure
    with pytest.raises(RunError, match=words) as refused:
        submit_job(["train"], URL)
    assert "\n" not in str(refused.value)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_too_large_is_refused_before_anything_is_sent(dashboard, monkeypatch, tmp_path):
    (tmp_path / "weights").mkdir()
    with (tmp_path / "weights" / "w.bin").open("wb") as file:
        file.truncate(submit.MAX_UPLOAD_BYTES + 1)
    with pytest.raises(RunError, match=r"the largest are weights \("):
        submit_job(["config"], URL)
    (tmp_path / "weights").rename(tmp_path / "models")
    outcome(monkeypatch, ended())
    assert submit_job(["config"], URL) == 0


def test_a_run_folder_that_cannot_be_written_to_costs_one_line(dashboard):
    Path("file").touch()
    with pytest.raises(RunError, match=r"run\.dir='.*/file/runs' cannot be written to .*set run\.dir"):
        submit_job(["train", "run.dir=file/runs"], URL)


def test_another_folder_than_the_projects_is_refused(dashboard, tmp_path):
    (tmp_path / START).unlink()
    with pytest.raises(RunError, match="submit from there"):
        submit_job(["config"], URL)


class TestWhatARunLeaves:
    """A job runs in a temporary folder, maybe on a machine that shares nothing with the submitter's."""

    def in_job(self, dashboard, run_dir):
        check_outlives_job(load_config("tiny", [f"run.dir={run_dir}"]), dashboard.environment)

    def test_is_found_where_the_submitter_looks_for_it(self, dashboard, tmp_path):
        submit_job(["train"], URL, follow=False)
        assert len(list((tmp_path / "runs").iterdir())) == 1
        self.in_job(dashboard, tmp_path / "runs")
        assert list((tmp_path / "runs").iterdir()) == [], "the mark is taken away"

    def test_is_refused_where_the_folder_is_another_one_there(self, dashboard, tmp_path):
        submit_job(["train"], URL, follow=False)
        (mark,) = (tmp_path / "runs").iterdir()
        mark.unlink()  # as on a machine with a folder of its own under this path
        with pytest.raises(ValueError, match=r"another folder here .*set run\.dir to an absolute path"):
            self.in_job(dashboard, tmp_path / "runs")

    def test_may_be_anywhere_that_a_person_named(self, dashboard):
        submit_job(["train", "run.dir=/shared/runs"], URL, follow=False)
        self.in_job(dashboard, "/shared/runs")

    @pytest.mark.parametrize("name", ["runs", "."])
    def test_never_lies_in_the_folder_that_goes_with_the_job(self, name):
        package = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_0123abcd")
        with pytest.raises(ValueError, match="temporary folder of this job"):
            check_outlives_job(load_config("tiny", [f"run.dir={package / name}"]), {})


class JustStarted:
    """A head whose agent comes up while it is asked, or never."""

    def __init__(
        self, num_refusals: int, reason: str = "No available agent to submit job, please try again later."
    ) -> None:
        self.num_refusals, self.reason, self.num_calls = num_refusals, reason, 0

    def submit_job(self, **job: object) -> str:
        self.num_calls += 1
        if self.num_calls <= self.num_refusals:
            raise RuntimeError(f"Request failed with status code 500: {self.reason}")
        return str(job["submission_id"])


def test_a_head_that_has_just_started_is_given_time(monkeypatch):
    monkeypatch.setattr(submit, "AGENT_PAUSE_S", 0.0)
    head = JustStarted(2)
    assert submit_when_ready(head, submission_id="a") == "a"
    assert head.num_calls == 3
    with pytest.raises(RuntimeError, match="No available agent"):
        submit_when_ready(JustStarted(10**9), wait_s=0.05, submission_id="a")


def test_another_refusal_is_told_at_once():
    head = JustStarted(1, "the upload is damaged")
    with pytest.raises(RuntimeError, match="damaged"):
        submit_when_ready(head, submission_id="a")
    assert head.num_calls == 1
