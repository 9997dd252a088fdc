"""When a run says that there is nothing left to learn, and when it stops."""

from cluster.signal import SignalWatch, StepSignal


def watched(counts, *, stop_after=0, num_wanted=32):
    watch = SignalWatch(stop_after=stop_after)
    told = []
    for step, num_trained in enumerate(counts, 1):
        signal = StepSignal(step=step, num_trained=num_trained, num_scored=64, num_wanted=num_wanted)
        told.append(watch.add(signal))
        if watch.should_stop:
            break
    return watch, told


def test_steps_with_enough_signal_say_nothing():
    watch, told = watched([32, 20, 8])
    assert told == [None, None, None]
    assert not watch.never_had_signal


def test_the_first_starved_step_of_a_row_is_told_once():
    _, told = watched([32, 7, 6, 5, 30, 3])
    assert [text is not None for text in told] == [False, True, False, False, False, True]
    assert "step 2: 7 of 64 groups had a signal" in told[1]
    assert "train.stop_without_signal" in told[1]


def test_a_step_without_any_group_to_train_on_says_so_each_time():
    _, told = watched([0, 0])
    assert all("no group to train on" in text for text in told)


def test_starved_steps_in_a_row_stop_a_run_that_asked_for_it():
    watch, told = watched([32, 7, 30, 7, 7, 7, 7], stop_after=3)
    assert len(told) == 6
    assert watch.should_stop
    assert "the run stops here" in told[-1]


def test_by_default_no_run_stops():
    assert not watched([0] * 50)[0].should_stop


def test_a_run_that_never_had_a_signal_is_known_as_one():
    assert watched([0, 0])[0].never_had_signal
    assert not watched([0, 1])[0].never_had_signal
    assert not watched([])[0].never_had_signal, "a resumed run that was complete has nothing to complain of"
