"""What Ray's failures become on their way to the pools."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest
import ray
from ray import exceptions
from ray.exceptions import RayError, RayTaskError

from actors.episode import SampleRef
from actors.errors import (
    BrokenWorkerError,
    DataError,
    LearnerError,
    LostBucketError,
    RolloutError,
    SampleError,
    WeightSyncError,
)
from actors.play import PlayRequest
from actors.weights.layout import WeightOffer
from cluster.runtime.failures import RAY_BUGS, UNAVAILABLE_S, await_remote, is_ray_failure
from cluster.runtime.starting import Spares, start_workers
from cluster.runtime.workers import RayWorker
from configs.schema import Config, ModelConfig, RolloutConfig
from tests.virtual_time import in_virtual_time, now

REQUEST = PlayRequest(
    ref=SampleRef(dataset="d", row=0, uid="0-0"),
    kind="policy",
    greedy=False,
    num_episodes=2,
    run="r",
    step=1,
    attempt=0,
)
OFFER = WeightOffer(version=1, num_buckets=3, delivery={"file": "/proc/77/fd/3"})
UNAVAILABLE = exceptions.ActorUnavailableError("connection reset", None)
DEAD = exceptions.ActorDiedError()
LOST = exceptions.ObjectLostError("00", None, "")
FULL = exceptions.ObjectStoreFullError("60 MB")
FAILURES = [
    DEAD,
    UNAVAILABLE,
    exceptions.NodeDiedError("node 7 is gone"),
    exceptions.OutOfMemoryError("memory on the node was low"),
    exceptions.WorkerCrashedError(),
    exceptions.LocalRayletDiedError(),
    exceptions.ActorUnschedulableError("no such node"),
    exceptions.ActorPlacementGroupRemoved(),
    exceptions.RuntimeEnvSetupError("no space"),
    exceptions.GetTimeoutError("late"),
    exceptions.OwnerDiedError("00", None, ""),
    LOST,
    FULL,
    exceptions.OutOfDiskError("95 %"),
]


def raised_by_task(cause: Exception) -> Exception:
    """As Ray raises it where it is awaited."""
    return RayTaskError(
        "play", "Traceback (most recent call last):\n  x", cause, "p", 1, "127.0.0.1"
    ).as_instanceof_cause()


async def fail(error):
    raise error


def name_of(error):
    return type(error).__name__


@pytest.mark.parametrize("failure", [RolloutError, LearnerError])
@pytest.mark.parametrize("error", FAILURES, ids=name_of)
async def test_a_machine_or_process_that_failed_is_the_failure_of_the_boundary(error, failure):
    with pytest.raises(failure, match=f"worker 3: {name_of(error)}: "):
        await await_remote(fail(error), failure, "worker 3")


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
async def test_the_same_where_it_happened_inside_the_call(error):
    with pytest.raises(RolloutError, match=f"worker 3: {name_of(error)}: "):
        await await_remote(fail(raised_by_task(error)), RolloutError, "worker 3")


@pytest.mark.parametrize("error", [SampleError("one"), RolloutError("two"), WeightSyncError("three"), ValueError("4")])
async def test_what_the_call_raised_itself_passes_with_its_kind(error):
    with pytest.raises(type(error), match=str(error)) as caught:
        await await_remote(fail(raised_by_task(error)), LearnerError, "rank 0")
    assert type(caught.value) is type(error)


@pytest.mark.parametrize("error", [KeyError("bug"), ZeroDivisionError(), TypeError("bug")], ids=name_of)
async def test_a_bug_in_the_call_stays_a_bug(error):
    with pytest.raises(type(error)) as caught:
        await await_remote(fail(raised_by_task(error)), RolloutError, "worker 3")
    assert not isinstance(caught.value, RolloutError)


def test_every_error_of_ray_is_a_failure_but_for_bugs_and_what_a_call_raised():
    kinds = {kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, RayError)}
    assert len(kinds) > 30
    no_failures = {kind for kind in kinds - {RayTaskError} if not is_ray_failure(kind.__new__(kind))}
    assert no_failures == {*RAY_BUGS, RayError}


def test_an_error_that_could_not_be_sent_is_not_a_failure_of_a_machine():
    """Ray puts a bare RayError in its place."""
    assert not is_ray_failure(RayTaskError("f", "traceback", RayError("isn't serializable"), "p", 1, "127.0.0.1"))


class FakeActor:
    """Answers each method with what its script says, in order: an exception is raised, anything else returned."""

    def __init__(self, *script):
        self._script = list(script)
        self.given = []

    @property
    def num_calls(self):
        return len(self.given)

    def __getattr__(self, name):
        async def answer():
            step = self._script.pop(0)
            if isinstance(step, Exception):
                raise step
            return step

        def remote(*given):
            self.given.append(given)
            return answer()

        return SimpleNamespace(
            remote=remote, options=lambda **_: SimpleNamespace(remote=lambda *_: (remote(), "image"))
        )


def make_worker(actor):
    return RayWorker("worker", actor, num_receivers=1)


CALLS = {
    "play": lambda worker: worker.play(REQUEST),
    "connect_weights": lambda worker: worker.connect_weights(None),
    "receive_weights": lambda worker: worker.receive_weights(OFFER, None),
    "commit_weights": lambda worker: worker.commit_weights(1, (7,)),
    "sleep": lambda worker: worker.sleep(),
    "disconnect_weights": lambda worker: worker.disconnect_weights(),
    "check_health": lambda worker: worker.check_health(),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_actor_that_cannot_be_reached_for_a_moment_is_asked_again(call):
    actor = FakeActor(UNAVAILABLE, UNAVAILABLE, "answer")
    in_virtual_time(lambda: CALLS[call](make_worker(actor)))()
    assert actor.num_calls == 3


@in_virtual_time
async def test_an_actor_that_stays_out_of_reach_has_failed_after_a_while():
    actor = FakeActor(*[UNAVAILABLE] * 1000)
    started = now()
    with pytest.raises(RolloutError, match=r"worker: ActorUnavailableError: .*connection reset"):
        await make_worker(actor).play(REQUEST)
    assert UNAVAILABLE_S <= now() - started < UNAVAILABLE_S + 1


async def test_a_dead_actor_is_not_asked_again():
    actor = FakeActor(DEAD, "never")
    with pytest.raises(RolloutError) as caught:
        await make_worker(actor).play(REQUEST)
    assert not isinstance(caught.value, SampleError)
    assert actor.num_calls == 1


@pytest.mark.parametrize("error", [LOST, FULL, exceptions.OutOfDiskError("95 %"), raised_by_task(FULL)], ids=name_of)
async def test_a_group_that_cannot_be_stored_is_lost_and_its_worker_is_not(error):
    with pytest.raises(SampleError):
        await make_worker(FakeActor(error)).play(REQUEST)


@pytest.mark.parametrize(("reaches_learner", "buckets"), [(True, ()), (False, ("bucket 0", "bucket 1", "bucket 2"))])
async def test_the_bytes_are_sent_along_where_the_learners_memory_cannot_be_reached(reaches_learner, buckets):
    actor = FakeActor(reaches_learner, None)
    worker = make_worker(actor)
    await worker.connect_weights("link")
    await worker.receive_weights(OFFER, lambda index: f"bucket {index}")
    assert actor.given == [("link",), (OFFER, *buckets)]


async def test_a_group_that_is_given_up_is_cancelled_on_its_worker(monkeypatch):
    cancelled = []
    monkeypatch.setattr(ray, "cancel", cancelled.append)
    forever = asyncio.get_running_loop().create_future()
    actor = SimpleNamespace(play=SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: (forever, "i"))))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await make_worker(actor).play(REQUEST)
    assert cancelled == [forever]


async def test_a_killed_worker_is_not_asked_to_shut_down(monkeypatch):
    killed, actor = [], FakeActor()
    monkeypatch.setattr(ray, "kill", killed.append)
    worker = make_worker(actor)
    worker.kill()
    await worker.shutdown()
    assert killed == [actor]
    assert actor.num_calls == 0


INIT_FAILED = exceptions.ActorDiedError(
    RayTaskError("__init__", "Traceback\nValueError: no such model", ValueError("x"), "p", 1)
)


async def test_an_error_of_the_workers_own_code_is_told_from_other_deaths_at_the_start():
    with pytest.raises(BrokenWorkerError, match="worker: ActorDiedError"):
        await make_worker(FakeActor(INIT_FAILED)).ready()
    with pytest.raises(RolloutError) as caught:
        await make_worker(FakeActor(DEAD)).ready()
    assert not isinstance(caught.value, BrokenWorkerError)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (raised_by_task(KeyError("bug")), BrokenWorkerError),
        (raised_by_task(ValueError("no such model")), BrokenWorkerError),
        (raised_by_task(DataError("no such file")), BrokenWorkerError),
        (DEAD, RolloutError),
    ],
    ids=str,
)
async def test_a_spare_that_fails_to_become_a_worker_fails_as_one_that_fails_to_start(failure, expected):
    worker = RayWorker("worker", FakeActor(), num_receivers=1, beginning=fail(failure))
    with pytest.raises(RolloutError, match="worker: ") as caught:
        await worker.ready()
    assert type(caught.value) is expected


class FakeSpare:
    """Its calls are done when they are in `done`."""

    def __init__(self, number):
        self.stand_by = SimpleNamespace(remote=lambda: (number, "up"))
        self.wait_for_ever = SimpleNamespace(remote=lambda: (number, "ended"))
        self.number = number


def test_a_spare_that_is_up_is_taken_and_those_that_are_gone_are_asked_for_again(monkeypatch):
    done, numbers = set(), itertools.count()
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: ([call for call in calls if call in done], []))
    spares = Spares(lambda: FakeSpare(next(numbers)), 2)
    assert spares.take() is None
    spares.fill()
    assert spares.take() is None, "neither is up"
    done |= {(0, "up"), (1, "up"), (0, "ended")}
    assert spares.take().number == 1, "the other one has died"
    assert spares.take() is None
    spares.fill()
    assert next(numbers) == 4, "two more were asked for"
    done.add((3, "up"))
    assert spares.take().number == 3


@in_virtual_time
async def test_a_moment_without_connection_is_not_the_end_of_a_process():
    actor = FakeActor(*[UNAVAILABLE] * 200, DEAD)
    started = now()
    assert "ActorDiedError" in await make_worker(actor).ended()
    assert now() - started > UNAVAILABLE_S


@pytest.mark.parametrize("cause", [LOST, DEAD, exceptions.OwnerDiedError("00", None, "")], ids=name_of)
async def test_bytes_that_ray_cannot_hand_over_are_not_the_receivers_fault(cause):
    worker = make_worker(FakeActor(False, raised_by_task(cause), DEAD))
    await worker.connect_weights("link")
    with pytest.raises(LostBucketError, match=name_of(cause)):
        await worker.receive_weights(OFFER, lambda index: f"bucket {index}")
    with pytest.raises(RolloutError):
        await worker.receive_weights(OFFER, lambda index: f"bucket {index}")


def test_a_prefill_that_holds_no_full_view_is_refused_before_any_actor_starts():
    config = Config(model=ModelConfig(max_pixels=1024**2), rollout=RolloutConfig(max_prefill_tokens=512))
    with pytest.raises(ValueError, match=r"rollout\.max_prefill_tokens=512 is invalid: must be at least 1337"):
        start_workers(config, None)
