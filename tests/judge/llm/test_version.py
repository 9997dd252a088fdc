"""A version changes with everything that can change a verdict, and with nothing else."""

from dataclasses import replace

import pytest
import yaml

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm import version
from judge.llm.prompt import FOLDER
from judge.llm.version import deciding_modules, judge_version

CONFIG = JudgeConfig(chain=("rules", "openai"), llm=LLMJudgeConfig(model="m"))


def changed(**settings):
    names = LLMJudgeConfig.__dataclass_fields__
    llm = {name: value for name, value in settings.items() if name in names}
    own = {name: value for name, value in settings.items() if name not in names}
    return judge_version(replace(CONFIG, llm=replace(CONFIG.llm, **llm), **own))


def test_a_version_is_short_and_repeatable():
    assert judge_version(CONFIG) == judge_version(replace(CONFIG))
    assert len(judge_version(CONFIG)) == 16
    assert int(judge_version(CONFIG), 16) >= 0


@pytest.mark.parametrize(
    "settings",
    [
        {"chain": ("openai",)},
        {"chain": ("rules", "cluster")},
        {"metric": "anls"},
        {"relative_tolerance": 0.5},
        {"max_answer_chars": 3},
        {"model": "n"},
        {"revision": "2"},
        {"reply": "choice"},
        {"max_reply_tokens": 3},
        {"thinks": True, "max_reply_tokens": 300},
        {"max_field_chars": 3},
    ],
    ids=str,
)
def test_what_can_change_a_verdict_changes_the_version(settings):
    assert changed(**settings) != judge_version(CONFIG)


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "http://elsewhere:1/v1"},
        {"api_key_env": "OTHER"},
        {"azure_api_version": "2025-01-01"},
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
def test_what_cannot_does_not(settings):
    assert changed(**settings) == judge_version(CONFIG)


def test_the_wording_counts_and_where_it_is_written_does_not(tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text("# a comment\n" + (FOLDER / "judge.yaml").read_text())
    assert changed(prompt=str(copy)) == judge_version(CONFIG)
    texts = yaml.safe_load(copy.read_text())
    copy.write_text(yaml.safe_dump({**texts, "system": texts["system"] + " Be kind."}))
    assert changed(prompt=str(copy)) != judge_version(CONFIG)


def test_a_changed_rule_is_a_new_version(monkeypatch):
    before, source = judge_version(CONFIG), version._source
    monkeypatch.setattr(version, "_source", lambda name: source(name) + ("#" if name == "judge.rules.quantity" else ""))
    assert judge_version(CONFIG) != before


def test_every_module_that_decides_counts():
    assert {"judge.rules.judge", "judge.rules.normalise", "judge.rules.quantity"} <= set(
        deciding_modules(version.RULES)
    )
    assert {"judge.llm.prompt", "judge.llm.fence", "judge.llm.reply"} <= set(deciding_modules(version.LLM))
    assert "judge.verdict" not in deciding_modules(version.ALWAYS + version.RULES + version.LLM)


def test_rules_alone_have_a_version_that_knows_no_llm():
    rules = JudgeConfig()
    assert judge_version(rules) == judge_version(replace(rules, llm=LLMJudgeConfig(model="m")))
