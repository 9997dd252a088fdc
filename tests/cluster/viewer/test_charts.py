"""Charts and warnings: from metrics to geometry and lines."""

import pytest

from cluster.records.events import Event
from cluster.viewer.alerts import alerts
from cluster.viewer.charts import HEIGHT, PANELS, WIDTH, line_charts, log_ticks, thin, tick, ticks_of, trade_off


def steps(num: int, **figures) -> list[dict[str, float]]:
    return [{"step": float(step)} | {k.replace("__", "/"): v for k, v in figures.items()} for step in range(1, num + 1)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1, 20, [5, 10, 15, 20]),
        (-0.07, 0.05, [-0.05, 0, 0.05]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert ticks_of(low, high) == pytest.approx(ticks)


def test_ticks_of_one_value_and_of_a_wide_range_of_powers():
    assert ticks_of(3, 3) == [3]
    assert log_ticks(1e-7, 1e-5) == pytest.approx([1e-7, 1e-6, 1e-5])
    assert len(log_ticks(1e-30, 1.0)) <= 6
    assert [tick(value) for value in (0, 0.25, -0.0001, 1500)] == ["0", "0.25", "-1e-4", "1500"]


def test_a_long_line_is_thinned_and_keeps_its_peaks():
    points = [(float(n), 1.0) for n in range(100_000)]
    points[54_321] = (54_321.0, 99.0)
    points[77_777] = (77_777.0, -99.0)
    kept = thin(points, 800)
    assert len(kept) <= 801
    assert {points[0], points[54_321], points[77_777], points[-1]} <= set(kept)
    assert kept == sorted(kept)


def test_charts_of_runs_share_the_axis_and_stay_inside():
    runs = {"a": steps(3, reward__accuracy=0.5), "b": steps(30, reward__accuracy=0.9, reward__format=1.0)}
    (chart,) = line_charts(runs, "curves")
    assert [line.label for line in chart.lines] == ["a: accuracy", "b: accuracy", "b: well formed"]
    assert [(line.colour, line.dash) for line in chart.lines] == [(0, 0), (1, 0), (1, 1)]
    assert chart.lines[0].points[0][2] == chart.lines[1].points[0][2], "step 1 of both"
    assert chart.lines[0].points[-1][2] < chart.lines[1].points[2][2] + 0.1
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for line in chart.lines for _, _, x, y in line.points)


@pytest.mark.parametrize("value", [0.0, 1e-9, -5.0, 1e12, float("nan"), float("inf")])
@pytest.mark.parametrize("num", [1, 2])
def test_every_chart_draws_any_number(value, num):
    metrics = [
        {"step": float(step)} | {key: value for panel in PANELS for key, _ in panel.curves} for step in range(num)
    ]
    for place in ("curves", "system", "judge"):
        for chart in line_charts({"run": metrics}, place):
            assert all("nan" not in line.path and "inf" not in line.path for line in chart.lines)
    assert line_charts({"run": []}, "curves") == []


def test_events_are_marked_where_they_cost_time():
    events = [
        Event(kind="leave", who="w", step=2),
        Event(kind="join", who="w", step=2),
        Event(kind="mask", who="j", step=1),
    ]
    (chart,) = line_charts({"run": steps(3, run__useful_time=0.5)}, "system", events)
    assert [label for _, label in chart.events] == ["step 2: join, leave"]


def test_the_trade_off_joins_quarter_and_full():
    found = [
        ("policy", "policy", 0.63, 1.0, (0.98, 1.0)),
        ("always quarter", "always_quarter", 0.25, 0.7, (0.63, 0.76)),
        ("always full", "always_full", 1.0, 1.0, (0.98, 1.0)),
    ]
    plot = trade_off(found)
    assert plot is not None
    policy, quarter, full = plot.marks
    assert quarter.x < policy.x < full.x
    assert quarter.y_high < quarter.y < quarter.y_low, "down is less"
    assert plot.baseline == f"M{quarter.x},{quarter.y}L{full.x},{full.y}"
    assert trade_off(found[:1]) is not None
    assert trade_off([]) is None


def lines(metrics, **changes) -> list[str]:
    return alerts(metrics, **({"prompts_per_step": 32, "unreadable": {}} | changes))


def test_a_run_that_learns_has_no_warning():
    assert lines(steps(9, groups__trained=30, groups__no_signal=2, policy__ask_share=0.4, reward__accuracy=0.8)) == []
    assert lines([]) == []


def test_warnings_name_the_step_from_which_they_hold():
    metrics = steps(16, groups__trained=32, groups__no_signal=0) + [
        {"step": float(n), "groups/trained": 1.0, "groups/no_signal": 63.0, "policy/ask_share": 0.0}
        for n in (17, 18, 19)
    ]
    (signal, rate) = lines(metrics)
    assert signal.startswith("no signal since step 17: 3 trained groups in 3 steps")
    assert rate == "the policy never asks for the full view since step 17"


def test_masked_lost_skipped_and_unreadable_are_told_with_their_numbers():
    metrics = steps(
        1, groups__trained=32, episodes__scored=90, episodes__unscored=10, groups__lost=2, learner__skipped_updates=1
    )
    found = lines(metrics, unreadable={"training/step-000002": "torn"}, cause="it was killed")
    assert found[0] == "it was killed"
    assert "training/step-000002: torn" in found[1]
    assert "10 of 100 episodes have no verdict" in found[2]
    assert [line.split()[0] for line in found[3:]] == ["1", "2"]


def test_a_fall_of_accuracy_is_told():
    metrics = steps(10, groups__trained=32, reward__accuracy=0.9) + [
        {"step": float(n), "groups/trained": 32.0, "reward/accuracy": 0.5} for n in range(11, 16)
    ]
    assert lines(metrics) == ["accuracy fell from 90.0% at step 5 to 50.0%"]


def test_more_runs_than_colours_still_look_different():
    runs = {f"run {n}": steps(2, reward__accuracy=n / 20) for n in range(12)}
    chart = next(chart for chart in line_charts(runs, "curves") if chart.title == "Accuracy and format")
    assert len({(line.colour, line.dash) for line in chart.lines}) == 12


def test_figures_beyond_any_axis_are_left_out():
    metrics = steps(3, reward__mean=1.0, learner__mismatch=0.5)
    metrics[1] |= {"reward/mean": 1e308, "learner/mismatch": 5e-324}
    metrics.append({"step": 1e300, "reward/mean": -1e308, "learner/mismatch": 1e308})
    for chart in line_charts({"a": metrics}, "curves"):
        (line,) = chart.lines
        assert [point[0] for point in line.points] == [1.0, 3.0]
