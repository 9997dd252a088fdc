"""An LLM as judge, behind any OpenAI-compatible endpoint: one call per prediction, one try per call.

Tries, limits and outages are the pool's business (`judge.pool`). Here a call gives a verdict, or a `NoVerdict` whose
kind says what went wrong.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

from openai import APIError, AsyncOpenAI

from actors.errors import JudgeError
from configs.judges import JudgeConfig
from judge.llm.endpoint import NO_KEY, connect, describe_failure, one_line, proxy_of, read_key
from judge.llm.prompt import build_messages, call_options, clean_texts, load_wording, read_completion
from judge.llm.version import judge_version
from judge.verdict import Failure, JudgeRequest, NoVerdict, Outcome, Usage


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
        self._prompt = load_wording(config.llm.prompt).filled(config)
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
        outcome = await self._call(client, build_messages(self._prompt, texts, self._secret))
        reason = outcome.reason
        if isinstance(outcome, NoVerdict) and self._name != "cluster" and (proxy := proxy_of(llm.base_url)[1]):
            reason = f"through {proxy}: {reason}"
        return replace(outcome, reason=one_line(reason, self._keys))

    async def _call(self, client: AsyncOpenAI, messages: Any) -> Outcome:
        llm = self._config.llm
        try:
            # One deadline for all of it: the client's own starts anew with every byte of a slow reply.
            async with asyncio.timeout(llm.try_timeout_s) as deadline:
                raw = client.chat.completions.with_raw_response
                response = await raw.create(messages=messages, **call_options(llm))
        except TimeoutError:
            if not deadline.expired():
                raise
            reason = f"no reply within judge.llm.try_timeout_s={llm.try_timeout_s:g}"
            return NoVerdict(reason=reason, usage=Usage(num_calls=1, num_lost_calls=1))
        except APIError as error:
            outcome = describe_failure(error)
            self._is_key_stale |= outcome.failure is Failure.DENIED
            return outcome
        return read_completion(response.http_response.text, llm.reply, judge=self._name, judge_version=self._version)
