"""The cause of a failure, out of what real processes wrote: captured from vLLM, Ray and pydantic."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from actors.causes import MAX_CAUSE_CHARS, cause_in_log, gist, is_vague, last_cause
from actors.errors import JudgeError

FAILURES = Path(__file__).parent / "failures"
REMOTE = "ray::ServeReplica()\n  File x\n\nValueError: no such model\n"
FIELDS = """ray::Server()
pydantic_core._pydantic_core.ValidationError: 2 validation errors for LLMConfig
num_gpus
  Input should be a valid number [type=float_type, input_value='x', input_type=str]
    For further information visit https://errors.pydantic.dev/2.14/v/float_type
"""
CHAINED = """Traceback (most recent call last):
  File "a.py", line 1, in load
FileNotFoundError: no file model-00002-of-00004.safetensors

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 1, in start
RuntimeError: Worker failed, please see the stack trace above for the root cause
"""


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (JudgeError("the endpoint is down\nmore of it"), "the endpoint is down"),
        ("The actor died unexpectedly.\n\tclass_name: X", "The actor died unexpectedly."),
        ("The actor died because of an error raised in its creation task\n  x\nKeyError: 1", "KeyError: 1"),
        (REMOTE, "ValueError: no such model"),
        (f"The deployment failed. Error:\n\x1b[36mray::{REMOTE.removeprefix('ray::')}", "ValueError: no such model"),
        (f"The deployment failed to start 2 times in a row.\n{REMOTE}", "ValueError: no such model"),
        (RayTaskError("grade", REMOTE, JudgeError("endpoint down")), "endpoint down"),
        (FIELDS, "LLMConfig: num_gpus: Input should be a valid number"),
        (FIELDS.partition("ValidationError: ")[2], "LLMConfig: num_gpus: Input should be a valid number"),
        (CHAINED, "FileNotFoundError: no file model-00002-of-00004.safetensors"),
        ("ray::f()\nopenai.APIError:\n  the key is refused", "APIError: the key is refused"),
        (" \n", "no message"),
        ("x" * 9999, "x" * MAX_CAUSE_CHARS),
    ],
)
def test_the_gist_of_a_failure_is_the_line_that_says_why(error, line):
    assert gist(error) == line


def captured(name: str) -> str:
    return (FAILURES / name).read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vllm_max_model_len.err.txt", "ModelConfig: User-specified max_model_len (40048) is greater than the derived"),
        ("vllm_seed.out.txt", "ValueError: Seed must be between 0 and 2**32 - 1"),
        (
            "vllm_shared_memory.out.txt",
            "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation",
        ),
        (
            "vllm_shared_memory.err.txt",
            "RuntimeError: Insufficient space in /dev/shm for shared-memory allocation",
        ),
    ],
)
def test_the_log_of_an_engine_tells_its_own_error_not_where_to_look(name, words):
    cause = cause_in_log(captured(name))
    assert cause is not None
    assert cause.startswith(words)
    assert "errors.pydantic.dev" not in cause
    assert "input_value" not in cause


def test_a_log_that_only_points_elsewhere_tells_no_cause():
    text = captured("vllm_seed.err.txt")
    assert "Engine core initialization failed. See root cause above" in text
    assert cause_in_log(text) is None
    assert is_vague(gist(f"ray::RolloutWorker.__init__()\n{text}"))


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("loading\nFatal Python error: Segmentation fault\n\nThread 0x1:\n", "Fatal Python error: Segmentation fault"),
        ("terminate called after throwing\n  what():  std::bad_alloc\n", "what():  std::bad_alloc"),
        ("INFO: listening\nERROR 11-29 08:49:07 [core.py:9] nothing raised\n", None),
        ("zmq.error.ZMQError: Broken pipe\n", None),
    ],
)
def test_last_words_count_where_nothing_was_raised(log, cause):
    assert cause_in_log(log) == cause


def test_what_a_process_says_in_its_end_does_not_hide_the_cause():
    log = "ValueError: bad seed\nConnectionResetError: Connection reset by peer\n"
    assert last_cause(log) == "ValueError: bad seed"
