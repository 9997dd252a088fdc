"""Ray's logs under names for people, and the cause of a failure out of them."""

from pathlib import Path

import pytest

from actors.errors import CheckpointError, LearnerError, RolloutError
from cluster.logs import RunLogs, named_logs, read_end
from tests.actors.test_causes import captured

POINTER = (
    "ActorDiedError: RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)
WORKER = ":job_id:01000000\n:actor_name:RolloutWorker\n"


def write(folder, name, text):
    (folder / name).write_text(text)


def test_logs_of_a_job_are_named_for_actor_and_process(tmp_path):
    write(tmp_path, "worker-aa-01000000-4711.out", ":job_id:01000000\n:actor_name:RolloutWorker\nhello\n")
    write(tmp_path, "worker-aa-01000000-4711.err", ":job_id:01000000\n:actor_name:RolloutWorker\n")
    write(tmp_path, "worker-bb-01000000-4712.err", ":job_id:01000000\n")
    write(tmp_path, "worker-cc-02000000-4713.err", ":job_id:02000000\n:actor_name:RankHost\n")
    write(tmp_path, "worker-dd-ffffffff-4714.out", ":job_id:01000000\n:actor_name:ServeReplica\n")
    write(tmp_path, "worker-ee-ffffffff-4715.out", "")
    write(tmp_path, "raylet.err", "")
    found = named_logs(tmp_path, "01000000")
    names = ["RolloutWorker-4711.err", "RolloutWorker-4711.out", "ServeReplica-4714.out", "worker-4712.err"]
    assert sorted(found) == names
    assert found["RolloutWorker-4711.out"].read_text().endswith("hello\n")


def test_the_end_of_a_log_is_read_and_a_missing_one_is_empty(tmp_path):
    write(tmp_path, "log", "a" * 100 + "end")
    assert read_end(tmp_path / "log", 4) == "aend"
    assert read_end(tmp_path / "nothing", 4) == ""


@pytest.fixture
def session(tmp_path):
    """The logs of two workers: the engine of one could not start, the other had trouble of its own."""
    folder = tmp_path / "session"
    folder.mkdir()
    write(folder, "worker-aa-01000000-4711.out", WORKER + captured("vllm_seed.out.txt"))
    write(folder, "worker-aa-01000000-4711.err", WORKER + captured("vllm_seed.err.txt"))
    write(folder, "worker-bb-01000000-4712.out", WORKER + "KeyError: 'another'\n")
    return folder


def failure(message, *, pid=None, kind=RolloutError):
    """As `crossing` raises it: the process is named by what it came from."""
    error = kind(message)
    error.__cause__ = RuntimeError(f"ray::RolloutWorker.__init__() (pid={pid}, ip=10.0.0.1)") if pid else None
    return error


@pytest.mark.parametrize("folder", ["logs", None])
def test_an_error_that_points_elsewhere_is_told_by_the_log_of_its_own_process(folder, session, tmp_path):
    kept = tmp_path / folder if folder else None
    told = RunLogs(kept, session=session, job="01000000").explain(failure(f"rollout worker 3: {POINTER}", pid=4711))
    where = kept / "RolloutWorker-4711.out" if kept else session / "worker-aa-01000000-4711.out"
    assert told == f"rollout worker 3: ValueError: Seed must be between 0 and 2**32 - 1; log: {where}"
    assert "Seed must be" in where.read_text()


def test_without_a_process_the_newest_log_with_a_cause_counts(session, tmp_path):
    told = RunLogs(None, session=session, job="01000000").explain(failure("rollout worker 3: the actor died"))
    assert told.startswith("rollout worker 3: ")
    assert "KeyError: 'another'" in told or "Seed must be" in told


def test_an_error_that_says_why_is_told_as_it_is(session, tmp_path):
    logs = RunLogs(None, session=session, job="01000000")
    told = logs.explain(failure("rollout worker 3: ValueError: no such tokenizer", pid=4711))
    assert told.startswith("rollout worker 3: ValueError: no such tokenizer; log: ")
    assert "4711" in told


def test_where_no_log_knows_the_cause_the_error_and_the_folder_are_told(tmp_path):
    (tmp_path / "session").mkdir()
    logs = RunLogs(tmp_path / "logs", session=tmp_path / "session", job="01000000")
    assert logs.explain(failure("worker 0: the actor died")) == f"worker 0: the actor died; log: {tmp_path / 'logs'}"


@pytest.mark.parametrize("kind", [RolloutError, LearnerError])
@pytest.mark.parametrize("is_grouped", [False, True])
def test_a_failed_part_leaves_a_run_with_its_cause_and_the_traceback_is_kept(kind, is_grouped, session, tmp_path):
    logs = RunLogs(tmp_path / "logs", session=session, job="01000000")
    error = failure(f"rollout worker 3: {POINTER}", pid=4711, kind=kind)
    with pytest.raises(kind, match=r"Seed must be between 0 and 2\*\*32 - 1; log: "), logs.explained():
        raise ExceptionGroup("tasks", [ExceptionGroup("inner", [error])]) if is_grouped else error
    assert POINTER in (tmp_path / "logs" / "driver.log").read_text()


@pytest.mark.parametrize("error", [CheckpointError("it does not verify"), KeyError("a bug")])
def test_what_no_part_failed_with_passes_as_it_is(error, session, tmp_path):
    with pytest.raises(type(error)) as passed, RunLogs(None, session=session, job="01000000").explained():
        raise error
    assert passed.value is error


def test_the_folder_of_a_resumed_run_shows_the_logs_of_now(session, tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    write(folder, "RolloutWorker-4711.out", "of an earlier run, whose process had the same id")
    (folder / "RolloutWorker-4711.err").symlink_to(tmp_path / "gone")
    RunLogs(folder, session=session, job="01000000").link()
    assert "Seed must be" in (folder / "RolloutWorker-4711.out").read_text()
    assert "Engine core initialization failed" in (folder / "RolloutWorker-4711.err").read_text()


def test_where_there_are_no_links_the_log_of_ray_is_named(session, tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    logs = RunLogs(tmp_path / "logs", session=session, job="01000000")
    assert str(session) in logs.explain(failure(f"rollout worker 3: {POINTER}", pid=4711))
