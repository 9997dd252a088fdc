import io
import re
from datetime import timedelta

import pytest
from rich.console import Console

from actors.needs import NEEDS
from cluster.display import COLUMNS, Display, fitting_columns, judge_line, time_left
from configs.judges import JudgeConfig
from configs.load import load_config
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


RIGHT_TOOLS = {f"policy/right_tool_share_{need}": 0.25 for need in NEEDS}
HELDOUT = {"accuracy": 0.98, "right_tool_share_quarter": 1.0, "right_tool_share_full": 0.99, "visual_token_share": 0.6}
REGIONS = {"right_tool_share_region": 0.96, "visual_token_optimum": 0.604}


def lines_of(config, figures, heldout, **console):
    out = io.StringIO()
    display = Display(config, Console(file=out, width=200, **console))
    display.step_done(1, FIGURES | figures)
    if console:
        display.console.print(display)
    display.evaluation_done(heldout)
    return out.getvalue()


def test_a_run_with_a_choice_of_tools_tells_where_each_was_the_right_one():
    text = lines_of(load_config("tiny_crop", []), RIGHT_TOOLS, HELDOUT | REGIONS)
    assert "visual tokens 50.0%, right tool: quarter / region / full 25.0% / 25.0% / 25.0%, trained" in text
    one = lines_of(load_config("tiny_crop", []), {"policy/right_tool_share_region": 0.25}, HELDOUT)
    assert "right tool: quarter / region / full - / 25.0% / -, trained" in one
    assert (
        "right tool by what is needed, policy: quarter view 100.0%, region 96.0%, full view 99.0%, "
        "visual tokens 60.0%, optimum 60.4%"
    ) in text


def test_a_terminal_has_them_as_columns_and_as_a_table():
    text = lines_of(
        load_config("tiny_crop", []), RIGHT_TOOLS, HELDOUT | REGIONS, force_terminal=True, color_system=None
    )
    assert re.search(r"visual tokens +quarter / region / full +trained", text)
    assert "25.0% / 25.0% / 25.0%" in text
    table = text.partition("right tool by what is needed")[2].splitlines()
    assert table[1].split() == ["quarter", "view", "region", "full", "view", "visual", "tokens", "optimum"]
    assert table[2].split() == ["policy", "100.0%", "96.0%", "99.0%", "60.0%", "60.4%"]


@pytest.mark.parametrize("console", [{}, {"force_terminal": True, "color_system": None}])
def test_right_tools_are_told_of_regions_and_never_of_the_full_view_alone(console):
    """Resize alone on rows that need a region is compared with crops; the paper's rows are in `if needed` already."""
    without = {name: share for name, share in RIGHT_TOOLS.items() if not name.endswith("region")}
    default = lines_of(Config(), without, HELDOUT, **console)
    times = (r"\d\d:\d\d:\d\d|\d:\d\d:\d\d", "")
    assert re.sub(*times, default) == re.sub(*times, lines_of(Config(), {}, HELDOUT, **console))
    assert "right tool" not in default
    assert "right tool" not in lines_of(load_config("tiny_crop", []), {}, {"accuracy": 0.5}, **console)
    assert "right tool:" in lines_of(Config(), RIGHT_TOOLS, HELDOUT | REGIONS, **console)


def test_what_others_wrote_cannot_command_the_terminal():
    out = io.StringIO()
    display = Display(Config(), Console(file=out, width=200))
    display.say("a reply: \x1b[2J \ud83d")
    display.warn("a reply: \x1b]0;taken\x07")
    assert "\x1b" not in out.getvalue()
    assert "a reply: ␛[2J" in out.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 12), (200, 50), (40, 10)])
@pytest.mark.parametrize("judge", [JudgeConfig(), llm_config()])
@pytest.mark.parametrize("right_tools", [{}, {f"policy/right_tool_share_{need}": 1.0 for need in NEEDS}])
def test_the_live_screen_fits_the_terminal_one_line_a_row(judge, right_tools, width, height):
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    display = Display(Config(judge=judge), console)
    for step in range(1, 41):
        display.step_done(step, FIGURES | LLM_FIGURES | {"time/step_s": 123.4} | right_tools)
    console.print(display)
    lines = out.getvalue().splitlines()
    assert ("100.0% / 100.0% / 100.0%" in out.getvalue()) is (bool(right_tools) and width >= 80)
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
