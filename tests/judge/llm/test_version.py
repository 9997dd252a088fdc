"""The version of a judge, and with it the key of a verdict, is what the LLM saw and who answered, and nothing else."""

from dataclasses import replace

import pytest
import yaml

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm import version
from judge.llm.cache import verdict_key
from judge.llm.prompt import FOLDER
from judge.llm.version import judge_version

CONFIG = JudgeConfig(chain=("rules", "openai"), llm=LLMJudgeConfig(model="m", base_url="http://h/v1"))


def changed(**settings):
    names = LLMJudgeConfig.__dataclass_fields__
    llm = {name: value for name, value in settings.items() if name in names}
    own = {name: value for name, value in settings.items() if name not in names}
    return judge_version(replace(CONFIG, llm=replace(CONFIG.llm, **llm), **own))


def test_a_version_is_short_and_repeatable():
    assert judge_version(CONFIG) == judge_version(replace(CONFIG))
    assert len(judge_version(CONFIG)) == 16
    assert int(judge_version(CONFIG), 16) >= 0
    assert judge_version(JudgeConfig()) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://elsewhere:1/v1"},
        {"azure_api_version": "2025-01-01"},
        {"model": "n"},
        {"revision": "2"},
        {"metric": "anls"},
        {"metric": "relaxed"},
        {"reply": "choice"},
        {"reply": "text"},
        {"max_reply_tokens": 3},
        {"thinks": True, "max_reply_tokens": 300},
        {"max_field_chars": 3},
    ],
    ids=str,
)
def test_who_answers_and_what_it_sees_changes_the_version(settings):
    assert changed(**settings) != judge_version(CONFIG)


@pytest.mark.parametrize(
    "settings",
    [
        {"chain": ("openai",)},
        {"max_answer_chars": 3},
        {"base_url": "http://h/v1/"},
        {"api_key_env": "OTHER"},
        {"api_key_file": "./judge.key"},
        {"max_concurrent": 30},
        {"requests_per_minute": 3},
        {"prompt_price": 3.0},
        {"try_timeout_s": 3.0},
        {"timeout_s": 90.0},
        {"max_replicas": 8},
        {"max_tries": 9},
        {"cache": ""},
        {"canary_share": 0.5},
    ],
    ids=str,
)
def test_rules_limits_prices_and_keys_do_not(settings):
    assert changed(**settings) == judge_version(CONFIG)


def test_the_wording_counts_and_where_it_is_written_or_what_is_not_sent_does_not(tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text("# a comment\n" + (FOLDER / "judge.yaml").read_text())
    assert changed(prompt=str(copy)) == judge_version(CONFIG)
    texts = yaml.safe_load(copy.read_text())
    copy.write_text(yaml.safe_dump({**texts, "relaxed": "Be kind.", "digit_reply": "0 or 1"}))
    assert changed(prompt=str(copy)) == judge_version(CONFIG)
    copy.write_text(yaml.safe_dump({**texts, "system": texts["system"] + " Be kind."}))
    assert changed(prompt=str(copy)) != judge_version(CONFIG)


def test_another_way_to_build_or_read_is_told_by_its_number(monkeypatch):
    before = judge_version(CONFIG)
    monkeypatch.setattr(version, "FORMAT", 99)
    assert judge_version(CONFIG) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [("red", " red\n"), ("red", "re\u200bd"), ("a\r\nb", "a\nb"), ("<s>", "< s>")],
)
def test_texts_that_look_the_same_to_the_llm_have_one_key(one, other):
    assert verdict_key("q", "r", one, "v") == verdict_key("q", "r", other, "v")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("q", "caf\u00e9", "p", "v"), ("q", "cafe\u0301", "p", "v")),
        (("q", "\U0001f600", "p", "v"), ("q", "\ud83d\ude00", "p", "v")),
        (("q", "<s>", "p", "v"), ("q", "</s>", "p", "v")),
        (("q", "\u200b", "p", "v"), ("q", "\u200c", "p", "v")),
        (("q", "r", "p", "v"), ("q", "r", "P", "v")),
        (("q", "r", "p", "v"), ("q", "r", "p", "v2")),
    ],
)
def test_texts_that_it_can_tell_apart_have_two(one, other):
    assert verdict_key(*one) != verdict_key(*other)
