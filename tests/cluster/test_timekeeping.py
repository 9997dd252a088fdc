from cluster.timekeeping import RunClock


def test_steps_count_and_what_lies_between_them_does_not():
    now = 100.0
    clock = RunClock(90.0, lambda: now)
    for seconds_between, seconds_of_step in ((5.0, 2.0), (7.0, 4.0)):
        now += seconds_between
        clock.begin_step()
        now += seconds_of_step
        assert clock.end_step(num_episodes=12) == seconds_of_step
    assert clock.figures() == {"first_step_s": 17.0, "episodes_per_s": 4.0, "wall_s": 28.0}


def test_a_run_without_a_step_has_no_rate():
    assert RunClock(0.0, lambda: 3.0).figures() == {"first_step_s": None, "episodes_per_s": None, "wall_s": 3.0}
