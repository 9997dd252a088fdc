"""Keys are read where they are used, and shown nowhere."""

import pytest

from actors.errors import JudgeError
from configs.judges import LLMJudgeConfig
from judge.llm.endpoint import one_line, read_key

KEY = "sk-very-secret-0123456789"


def test_the_key_comes_from_the_file_or_the_variable_and_is_empty_without_either(tmp_path, monkeypatch):
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "not-asked-for")
    assert read_key(LLMJudgeConfig(api_key_file=str(file))) == KEY
    assert read_key(LLMJudgeConfig(api_key_env="JUDGE_KEY")) == KEY
    assert read_key(LLMJudgeConfig()) == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: .*No such file"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xff\xfe", "more than a key"),
        (f"{KEY}\n{KEY}".encode(), "more than a key"),
        (f"OPENAI_API_KEY = {KEY}".encode(), "more than a key"),
        ("ключ".encode(), "more than a key"),
        (b"k" * 20_000, "more than a key"),
    ],
)
def test_a_file_without_a_key_is_an_error_with_setting_value_and_remedy_but_no_key(content, words, tmp_path):
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(JudgeError, match=words) as error:
        read_key(LLMJudgeConfig(api_key_file=str(file)))
    assert f"judge.llm.api_key_file={str(file)!r}" in str(error.value)
    assert KEY not in str(error.value)


def test_a_folder_is_no_key_and_a_variable_must_be_set(tmp_path, monkeypatch):
    with pytest.raises(JudgeError, match="cannot be read"):
        read_key(LLMJudgeConfig(api_key_file=str(tmp_path)))
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(JudgeError, match="JUDGE_KEY' is empty or not set"):
        read_key(LLMJudgeConfig(api_key_env="JUDGE_KEY"))
    monkeypatch.setenv("JUDGE_KEY", "")
    with pytest.raises(JudgeError, match="is empty"):
        read_key(LLMJudgeConfig(api_key_env="JUDGE_KEY"))


@pytest.mark.parametrize(
    "key",
    [
        KEY,
        "gsk_aB3dE5fG7hJ9",
        "d41d8cd98f00b204e9800998ecf8427e",
        "AKIAIOSFODNN7EXAMPLE",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "a1b2c3.d4e5f6a7b8c9",
        "kQ7/9pXw+Zt2vB8=",
    ],
)
@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("api_key_env", "name of an environment variable"),
        ("api_key_file", "path of a file that holds the key"),
        ("base_url", "must be http"),
    ],
)
def test_a_key_written_where_its_place_or_an_address_belongs_is_refused_unshown(key, field, remedy):
    with pytest.raises(ValueError, match=rf"judge\.llm\.{field}.*{remedy}") as error:
        LLMJudgeConfig(**{field: key})
    assert key not in str(error.value)


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "KEY", "GROQ_API_KEY_2", "_JUDGE"])
def test_names_of_variables_and_paths_are_taken(name):
    assert LLMJudgeConfig(api_key_env=name).api_key_env == name
    for path in ("./judge.key", "~/keys/judge", "judge.key", "/run/secrets/openai", "secrets/openai", "../key"):
        assert LLMJudgeConfig(api_key_file=path).api_key_file == path


def test_whole_and_cut_keys_are_hidden():
    assert one_line(f"a {KEY} b", [KEY, ""]) == "a [key] b"
    assert KEY[:8] not in one_line(f"provided: {KEY[:15]}", [KEY])
    assert one_line("nothing here", [KEY]) == "nothing here"
