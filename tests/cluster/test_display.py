import io

import pytest
from rich.console import Console

from cluster.display import Display, judge_line
from configs.judges import JudgeConfig
from configs.schema import Config
from tests.judge.scripted import llm_config

FIGURES = {"reward/mean": 0.5, "time/judge_wait_s": 0.25, "judge/llm_calls": 120.0, "judge/cost_usd": 0.0123}


@pytest.mark.parametrize(("judge", "is_shown"), [(JudgeConfig(), False), (llm_config(), True)])
def test_a_step_shows_what_an_llm_judge_took_and_is_silent_about_rules(judge, is_shown):
    out = io.StringIO()
    display = Display(Config(judge=judge), Console(file=out, width=200))
    display.step_done(1, FIGURES)
    assert "reward 0.500" in out.getvalue()
    assert ("judge wait 0.2 s, LLM calls 120, cost $0.0123" in out.getvalue()) is is_shown


def test_the_last_line_tells_calls_and_money():
    totals = {"llm_calls": 1200, "cache_hits": 34, "prompt_tokens": 90_000, "reply_tokens": 6_000, "cost_usd": 0.1234}
    assert judge_line(totals) == "judge: 1,200 LLM calls, 34 verdicts known before, 96,000 tokens, $0.1234"
