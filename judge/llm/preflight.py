"""What keeps an LLM judge from judging, found before anything starts: wording, model folder, key, endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from openai import APIError, APIStatusError, Timeout

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.llm.apikey import read_key
from judge.llm.endpoint import connect, describe_failure, proxy_of
from judge.llm.prompt import build_messages, call_options, clean_material, load_wording
from judge.llm.reply import read_completion
from judge.llm.served_model import check_model_folder
from judge.verdict import Failure, NoVerdict

TIMEOUT_S = 10.0
REMEDIES = {
    Failure.DENIED: "mend the key, the model or the address",
    Failure.REJECTED: "ask for what it takes: judge.llm.reply, judge.llm.thinks, judge.llm.max_reply_tokens",
}


async def preflight_judge(
    config: JudgeConfig, *, warn: Callable[[str], None], timeout_s: float = TIMEOUT_S
) -> None:
    """Ask the endpoint one settled question. Needs no Ray; rules alone, and an LLM still to be served, call nobody.

    Args:
        warn: told of what may pass: too many calls (429), server errors, a slow or unusable reply.
        timeout_s: deadline of the call.

    Raises:
        ValueError: the wording cannot be used.
        JudgeError: the key cannot be read, the model folder cannot be served, the endpoint cannot be reached, or
            refuses key, model, address or form of the question.
    """
    if not config.has_llm:
        return
    prompt = load_wording(config.llm.prompt).filled(config)
    if "cluster" in config.chain:
        return check_model_folder(Path(config.llm.model))
    key, llm = read_key(config.llm), config.llm
    where = f"judge.llm.base_url={llm.base_url!r} with judge.llm.model={llm.model!r}"
    if proxy := proxy_of(llm.base_url):
        where += f", asked through {proxy},"
    material = clean_material("What kind of vehicle?", "car", "automobile", max_field_chars=99, max_answer_chars=99)
    messages = cast(Any, build_messages(prompt, material, b"preflight"))
    async with connect(llm, key) as client:
        try:
            async with asyncio.timeout(timeout_s) as deadline:
                response = await client.chat.completions.with_raw_response.create(
                    messages=messages, timeout=Timeout(None, connect=timeout_s / 2), **call_options(llm)
                )
        except TimeoutError:
            if not deadline.expired():
                raise
            return warn(f"{where} did not reply within {timeout_s:g} s: verdicts may take long")
        except APIError as error:
            failure = describe_failure(error, [key])
            if remedy := REMEDIES.get(failure.failure):
                raise JudgeError(f"{where} refuses a question ({failure.reason}): {remedy}") from error
            if not isinstance(error, APIStatusError):
                raise JudgeError(f"{where} cannot be reached ({failure.reason}): bring it up, or mend the address") from error
            return warn(f"{where} does not judge right now ({failure.reason}): verdicts will wait for it")
    outcome = read_completion(response.http_response.text, llm.reply, judge="", judge_version="")
    if isinstance(outcome, NoVerdict):
        warn(f"{where} gave no verdict on a settled question: {outcome.reason}")

