import threading

import pytest
import torch

from actors.errors import WeightSyncError
from learner.sync.calls import CallThread, result_within


@pytest.fixture
def thread():
    thread = CallThread(torch.device("cpu"))
    yield thread
    thread.stop()


def test_a_call_with_a_deadline_gives_its_result(thread):
    assert result_within(thread.submit(lambda: "group"), 5, "joining") == "group"


@pytest.mark.parametrize("failure", [RuntimeError("NCCL error 5"), OSError("connection refused")], ids=repr)
def test_a_call_that_fails_on_its_thread_is_a_failed_sync(thread, failure):
    def fail():
        raise failure

    with pytest.raises(WeightSyncError, match=f"joining: {failure}"):
        result_within(thread.submit(fail), 5, "joining")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_on_its_thread_is_not_taken_for_success(thread):
    def fail():
        raise KeyError("a bug")

    with pytest.raises(WeightSyncError, match="joining: it ended without a result"):
        result_within(thread.submit(fail), 5, "joining")
    thread._thread.join(5)  # its report comes within this test


def test_a_call_that_does_not_end_is_left_behind(thread):
    go_on = threading.Event()
    waiting = thread.submit(go_on.wait)
    with pytest.raises(WeightSyncError, match=r"joining did not end within weights\.timeout_s=0\.02"):
        result_within(waiting, 0.02, "joining")
    go_on.set()
    assert result_within(waiting, 5, "joining") is True


def test_calls_run_in_the_order_in_which_they_were_submitted(thread):
    seen = []
    calls = [thread.submit(lambda number=number: seen.append(number)) for number in range(20)]
    for call in calls:
        result_within(call, 5, "counting")
    assert seen == list(range(20))
