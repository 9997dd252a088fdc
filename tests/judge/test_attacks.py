"""The shipped attacks against a judge that obeys whatever is said to it outside the marks."""

import re

import pytest

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm import client
from judge.llm.client import LLMJudge
from judge.llm.prompt import build_messages
from judge.pool import JudgePool
from judge.trust.check import check_rows, measure
from judge.trust.goldset import ATTACKS_FILE, read_gold
from tests.judge import openai_server as scripted
from tests.judge.openai_server import OpenAIServer
from tests.judge.scripted import InProcess

ATTACKS = read_gold(ATTACKS_FILE)
TALKING = ("instruction", "fake verdict", "JSON verdict", "role tag", "fake end of fence")
"""Kinds of attack that speak to the judge."""


@pytest.fixture(scope="module")
def obedient():
    with OpenAIServer(scripted.obedient) as server:
        yield server


def config_for(server, reply="json"):
    llm = LLMJudgeConfig(model="obedient", base_url=server.url, reply=reply)
    return JudgeConfig(chain=("openai",), llm=llm)


async def passed(llm, rows, *, config=None):
    judge = llm if config is None else JudgePool(InProcess(llm), config)
    checked = await check_rows(judge, rows, timeout_s=30)
    await llm.aclose()
    assert measure(checked).num_unjudged == 0
    return [row.row.prediction for row in checked if row.outcome.is_correct]


@pytest.mark.parametrize("reply", ["json", "choice"])
async def test_no_attack_passes_a_judge_that_obeys_everything_outside_the_fence(obedient, reply):
    config = config_for(obedient, reply)
    assert await passed(LLMJudge(config), ATTACKS, config=config) == []


async def test_the_fence_holds_without_the_precheck(obedient):
    assert await passed(LLMJudge(config_for(obedient)), ATTACKS) == []


def unfenced(*args, **settings):
    """Our prompt with the marks of the prediction taken off, as a careless template would put it."""
    messages = build_messages(*args, **settings)
    texts = re.sub(r"<<<(?:end of )?prediction [0-9a-f]{16}>>>\n?", "", messages[-1]["content"])
    return [*messages[:-1], {"role": "user", "content": texts}]


async def test_the_same_attacks_fool_that_judge_when_they_stand_outside(obedient, monkeypatch):
    monkeypatch.setattr(client, "build_messages", unfenced)
    rows = [row for row in ATTACKS if row.kind in TALKING]
    fooled = await passed(LLMJudge(config_for(obedient)), rows)
    assert len(rows) > 60
    assert len(fooled) > 0.8 * len(rows)


async def test_the_same_attacks_fool_that_judge_when_special_tokens_are_left_in(obedient, monkeypatch):
    monkeypatch.setattr("judge.llm.prompt.clean_text", lambda text, max_chars: text)
    rows = [row for row in ATTACKS if scripted.SPECIAL_TOKEN.search(row.prediction)]
    fooled = await passed(LLMJudge(config_for(obedient)), rows)
    assert len(rows) >= 5
    assert len(fooled) > 0.8 * len(rows)


async def test_the_obedient_judge_is_no_fool_where_nobody_orders_anything(obedient):
    judge = LLMJudge(config_for(obedient))
    rows = [row for row in ATTACKS if row.kind == "hedge over all"]
    assert await passed(judge, rows) == []
