from cluster.waits import VerdictWait


def test_only_seconds_in_which_nothing_was_played_and_something_was_judged_count():
    at = 0.0
    wait = VerdictWait(lambda: at)
    with wait.playing():
        at = 1.0
        with wait.judging():
            at = 3.0  # another group is still being played
    at = 10.0  # nothing at all
    with wait.judging():
        at = 12.0
        assert wait.seconds == 2.0
        with wait.judging():
            at = 13.0
        with wait.playing():
            at = 20.0
    assert wait.seconds == 3.0
