import io
import re
from datetime import timedelta

import pytest
from rich.console import Console

from cluster.display import COLUMNS, Display, fitting_columns, judge_line, time_left
from configs.judges import JudgeConfig
from configs.schema import Config
from tests.judge.scripted import llm_config

FIGURES = {column.key: 0.5 for column in COLUMNS}
LLM_FIGURES = {"time/judge_wait_s": 0.25, "judge/llm_calls": 120.0, "judge/cost_usd": 0.0123}


def printed(display, out):
    display.step_done(1, FIGURES | LLM_FIGURES)
    return out.getvalue()


@pytest.mark.parametrize(("judge", "is_shown"), [(JudgeConfig(), False), (llm_config(), True)])
def test_a_step_shows_what_an_llm_judge_took_and_is_silent_about_rules(judge, is_shown):
    out = io.StringIO()
    text = printed(Display(Config(judge=judge), Console(file=out, width=200)), out)
    assert "reward 0.500" in text
    assert ("judge wait 0.2 s, LLM calls 120, cost $0.0123" in text) is is_shown


def test_lines_of_a_log_carry_the_time_of_day():
    out = io.StringIO()
    display = Display(Config(), Console(file=out, width=200))
    display.warn("careful")
    display.step_done(1, FIGURES)
    display.evaluation_done({"accuracy": 1.0, "ask_share": 0.38, "accuracy_quarter": 0.705, "accuracy_full": 0.995})
    assert "always quarter: accuracy 70.5%, visual tokens 25.0%" in out.getvalue()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in out.getvalue().splitlines())


def test_what_others_wrote_cannot_command_the_terminal():
    out = io.StringIO()
    display = Display(Config(), Console(file=out, width=200))
    display.say("a reply: \x1b[2J \ud83d")
    display.warn("a reply: \x1b]0;taken\x07")
    assert "\x1b" not in out.getvalue()
    assert "a reply: ␛[2J" in out.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 50), (40, 10)])
@pytest.mark.parametrize("judge", [JudgeConfig(), llm_config()])
def test_the_live_screen_fits_the_terminal_one_line_a_row(judge, width, height):
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    display = Display(Config(judge=judge), console)
    for step in range(1, 41):
        display.step_done(step, FIGURES | LLM_FIGURES | {"time/step_s": 123.4})
    console.print(display)
    lines = out.getvalue().splitlines()
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.lstrip().startswith("40 ")]) == 1, "the newest step is among them"
    assert "ETA" in out.getvalue() or width < 80


def test_columns_go_by_need():
    assert fitting_columns(COLUMNS, 300) == list(COLUMNS)
    assert fitting_columns(COLUMNS, 1) == [COLUMNS[0]]
    assert [column.head for column in fitting_columns(COLUMNS, 80)][:4] == [
        "reward",
        "accuracy",
        "tool calls",
        "visual tokens",
    ]


def test_the_eta_is_the_median_of_the_latest_steps():
    assert time_left([], 3) is None
    assert time_left([100.0, 2.0, 2.0, 2.0, 2.0, 9.0], 10) == timedelta(seconds=20)


def test_the_last_line_tells_calls_and_money():
    totals = {"llm_calls": 1200, "cache_hits": 34, "prompt_tokens": 90_000, "reply_tokens": 6_000, "cost_usd": 0.1234}
    assert judge_line(totals) == "judge: 1,200 LLM calls, 34 cached verdicts, 96,000 tokens, $0.1234"
