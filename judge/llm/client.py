"""An LLM as judge, behind any OpenAI-compatible endpoint: one call per prediction, one try per call.

A call gives a verdict, or a `NoVerdict` whose kind says what went wrong. Tries and limits are up to `judge.pool`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from openai import APIError, AsyncOpenAI

from actors.errors import JudgeError
from configs.judges import ROUND_TRIP_S, JudgeConfig
from judge.llm.endpoint import NO_KEY, connect, describe_failure, one_line, proxy_of, read_key
from judge.llm.prompt import build_messages, call_options, clean_texts, prompt_of, read_completion
from judge.llm.version import judge_version, version_for
from judge.outages import PROBE
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Task, Usage

PREFLIGHT_S = 15.0
REMEDIES = {
    Failure.DENIED: "correct the key, the model or the address",
    Failure.REJECTED: "set judge.llm.reply, judge.llm.thinks or judge.llm.max_reply_tokens to what it supports",
    Failure.UNREACHABLE: "start it, or correct the address",
}


class LLMJudge:
    """Asks about all predictions of a request at once.

    The driver makes it, and until its first call it is a plain value that travels to replicas: the wording and the
    secret of the run go with it, and only the key is read where it judges.
    """

    def __init__(self, config: JudgeConfig) -> None:
        """Reads the wording and draws the secret of the run; nothing is connected.

        Raises:
            ValueError: the wording cannot be used.
        """
        self._name, self._config = config.chain[-1], config
        tasks: tuple[Task, ...] = ("verdict", "grade", "extract")
        self._prompts = {task: prompt_of(config, task) for task in tasks}
        self._secret = secrets.token_bytes(32)
        self._version = judge_version(config)
        self._client: AsyncOpenAI | None = None
        self._is_key_stale = False
        self._keys: set[str] = set()

    async def grade(self, request: JudgeRequest) -> list[Outcome]:
        """One outcome per prediction, each with the usage of its call."""
        try:
            client = self._connected()
        except JudgeError as error:
            return [NoVerdict(reason=str(error), failure=Failure.DENIED) for _ in request.predictions]
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(self._judge(client, request, prediction)) for prediction in request.predictions]
        return [call.result() for call in calls]

    async def aclose(self) -> None:
        """Close the connections. Another `grade` would open new ones."""
        client, self._client = self._client, None
        if client:
            await client.close()

    def _connected(self) -> AsyncOpenAI:
        """The client, with the key as it stands now if the endpoint refused the one before. Raises as these two."""
        if self._client is None or self._is_key_stale:
            key = read_key(self._config.llm)
            self._keys.add(key)
            if self._client is None:
                self._client = connect(self._config.llm, key, is_own=self._name == "cluster")
            self._client.api_key, self._is_key_stale = key or NO_KEY, False
        return self._client

    async def _judge(self, client: AsyncOpenAI, request: JudgeRequest, prediction: str) -> Outcome:
        llm = self._config.llm
        asked, cap = (request.question, request.reference, prediction), self._config.max_answer_chars
        texts = clean_texts(*asked, max_field_chars=llm.max_field_chars, max_answer_chars=cap)
        if not texts["reference"]:
            return NoVerdict(reason="the reference answer is empty", failure=Failure.REJECTED)
        messages = build_messages(self._prompts[request.task], texts, self._secret)
        outcome = await self._call(client, messages, request)
        reason = outcome.reason
        if isinstance(outcome, NoVerdict) and self._name != "cluster" and (proxy := proxy_of(llm.base_url)[1]):
            reason = f"through {proxy}: {reason}"
        return replace(outcome, reason=one_line(reason, self._keys))

    async def _call(self, client: AsyncOpenAI, messages: Any, request: JudgeRequest) -> Outcome:
        llm = self._config.llm
        try:
            # One deadline for all of it: the client's own starts anew with every byte of a slow reply.
            async with asyncio.timeout(llm.try_timeout_s) as deadline:
                raw = client.chat.completions.with_raw_response
                response = await raw.create(messages=messages, **call_options(llm, request.task, request.run))
        except TimeoutError:
            if not deadline.expired():
                raise
            reason = f"no reply within judge.llm.try_timeout_s={llm.try_timeout_s:g}"
            return NoVerdict(reason=reason, usage=Usage(num_calls=1, num_lost_calls=1))
        except APIError as error:
            outcome = describe_failure(error)
            self._is_key_stale |= outcome.failure is Failure.DENIED
            return outcome
        version = version_for(self._version, request, self._config, self._prompts.__getitem__)
        body, task = response.http_response.text, request.task
        return read_completion(body, llm.reply, judge=self._name, judge_version=version, task=task)


async def preflight_judge(config: JudgeConfig, *, warn: Callable[[str], None], timeout_s: float = PREFLIGHT_S) -> None:
    """Ask the endpoint one settled question. Needs no Ray; rules alone, and an LLM still to be served, call nobody.

    `warn` is told of what may pass: too many calls (429), server errors, a slow or unusable reply.

    Raises:
        ValueError: the wording cannot be used.
        JudgeError: the key cannot be read, or the endpoint cannot be reached or refuses what it is asked.
    """
    if not config.has_llm or "cluster" in config.chain:
        return
    read_key(config.llm)
    hasty = replace(config.llm, try_timeout_s=timeout_s)
    judge = LLMJudge(replace(config, llm=hasty, timeout_s=timeout_s + ROUND_TRIP_S))
    try:
        (outcome,) = await judge.grade(PROBE)
    finally:
        await judge.aclose()
    if outcome.failure is None:
        return
    message = f"judge.llm.base_url={config.llm.base_url!r} with judge.llm.model={config.llm.model!r}: {outcome.reason}"
    may_pass = outcome.failure is Failure.UNREACHABLE and (outcome.status or outcome.usage.num_lost_calls)
    if outcome.failure not in REMEDIES or may_pass:
        return warn(f"{message}; verdicts may be delayed or missing")
    raise JudgeError(f"{message}; {REMEDIES[outcome.failure]}")
