"""Settings of the judges: who decides, within which limits, and how failures are handled."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from configs.require import require

ROUND_TRIP_S = 1.0
"""Time to reach a judge and return: a judge's own timeout must be shorter than its caller's by this much."""
MAX_ONE_WORD_CHARS = 16
"""A longer name without an underscore may be a key."""


def cache_file(environment: Mapping[str, str]) -> str:
    """The default verdict cache, in the user's cache folder (XDG Base Directory Specification)."""
    folder = Path(environment.get("XDG_CACHE_HOME", ""))
    return str((folder if folder.is_absolute() else Path("~/.cache")) / "visionthink" / "verdicts.sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMJudgeConfig:
    """An LLM behind an OpenAI-compatible endpoint, wherever it runs."""

    model: str = ""
    """Model name at the endpoint; with `cluster` in judge.chain, a local model folder."""
    revision: str = ""
    """Model revision, where the name does not include it. Cached verdicts are kept apart by revision."""
    base_url: str = "https://api.openai.com/v1"
    """Endpoint URL. Ignored when `cluster` serves the model."""
    azure_api_version: str = ""
    """API version for Azure OpenAI; base_url is then the resource URL and model the deployment name."""
    api_key_file: str = ""
    """File with the API key, readable where judges run. The key itself never goes into a config."""
    api_key_env: str = ""
    """Alternatively, the environment variable with the key. If neither is set, no key is sent."""
    prompt: str = "judge"
    """Judge prompt template: `judge`, or the path of a YAML file with the same keys."""
    reply: Literal["json", "choice", "text"] = "json"
    """Reply format. `json`: JSON schema. `choice`: vLLM structured outputs, one token. `text`: unconstrained."""
    thinks: bool = False
    """Set for reasoning models (o-series, gpt-5): no temperature is sent, and reasoning tokens count against
    max_reply_tokens."""
    max_reply_tokens: int = 16
    """Maximum tokens of a judge's reply."""
    max_field_chars: int = 4000
    """Question and reference are truncated to this many characters."""
    try_timeout_s: float = 20.0
    """Timeout of one call."""
    max_concurrent: int = 64
    """Maximum concurrent calls (one call judges one answer). An HTTP 429 halves it temporarily."""
    requests_per_minute: int = 0
    """Rate limit in calls per minute; 0 means no limit."""
    tokens_per_minute: int = 0
    """Rate limit in tokens per minute, prompt and reply; 0 means no limit."""
    prompt_price: float = 0.0
    """USD per million prompt tokens."""
    reply_price: float = 0.0
    """USD per million reply tokens."""

    def __post_init__(self) -> None:
        tokens = "must be at least 2: one for the verdict, one for its end"
        require(self.max_reply_tokens >= 2, "judge.llm.max_reply_tokens", self.max_reply_tokens, tokens)
        room = "must be at least 256 with judge.llm.thinks, to leave room for the reasoning"
        enough = not self.thinks or self.max_reply_tokens >= 256
        require(enough, "judge.llm.max_reply_tokens", self.max_reply_tokens, room)
        for name in ("max_field_chars", "max_concurrent"):
            require(getattr(self, name) >= 1, f"judge.llm.{name}", getattr(self, name), "must be at least 1")
        for name in ("requests_per_minute", "tokens_per_minute"):
            require(
                getattr(self, name) >= 0,
                f"judge.llm.{name}",
                getattr(self, name),
                "must be at least 0; 0 means no limit",
            )
        for name in ("prompt_price", "reply_price"):
            require(
                getattr(self, name) >= 0,
                f"judge.llm.{name}",
                getattr(self, name),
                "must be at least 0 (USD per million tokens)",
            )
        _require_seconds("judge.llm.try_timeout_s", self.try_timeout_s)
        self._check_address_and_key()

    def _check_address_and_key(self) -> None:
        """Reject values that may be the key itself without showing them, so that no run folder contains one."""
        has_extras = any(sign in self.base_url for sign in "@?#")
        remedy = "must have no user, password or query; give the key in judge.llm.api_key_file"
        require(not has_extras, "judge.llm.base_url", "(hidden)", remedy)
        remedy = "must be http://HOST:PORT/v1 or https://HOST/v1"
        shown = self.base_url if self.base_url.startswith(("http://", "https://")) else "(hidden)"
        require(_is_address(self.base_url), "judge.llm.base_url", shown, remedy)
        remedy = "must be the name of an environment variable, such as OPENAI_API_KEY, not the key itself"
        is_name = not self.api_key_env or _is_variable_name(self.api_key_env)
        require(is_name, "judge.llm.api_key_env", "(hidden)", remedy)
        is_path = not self.api_key_file or _is_path(self.api_key_file)
        remedy = "must be the path of a file that holds the key, such as ./judge.key, not the key itself"
        require(is_path, "judge.llm.api_key_file", "(hidden)", remedy)
        require(
            not (self.api_key_file and self.api_key_env),
            "judge.llm.api_key_env",
            self.api_key_env,
            "must be empty where judge.llm.api_key_file is set: give one of the two",
        )


def _require_seconds(name: str, seconds: float) -> None:
    """A timeout is positive and finite."""
    require(0 < seconds < math.inf, name, seconds, "must be above 0 and finite")


def _is_variable_name(text: str) -> bool:
    """Whether it is a variable name in capitals: keys have lower-case letters, or are one long word."""
    is_name = re.fullmatch(r"[A-Z_][A-Z0-9_]*", text) is not None
    return is_name and ("_" in text or len(text) <= MAX_ONE_WORD_CHARS)


def _is_path(text: str) -> bool:
    """Whether it is a path, or a file name with a short extension: keys with dots have long parts."""
    is_marked = text.startswith(("/", "./", "../", "~"))
    return is_marked or re.fullmatch(r"[\w.-]+(/[\w.-]+)+|[\w-]{1,40}\.\w{1,5}", text) is not None


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
        is_port = url.port is None or url.port > 0
    except ValueError:
        return False
    is_one_word = text.isprintable() and " " not in text
    return is_one_word and is_port and url.scheme in ("http", "https") and bool(url.hostname)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJudgeConfig:
    """An LLM that Ray Serve runs inside the cluster with vLLM."""

    min_replicas: int = 0
    """Minimum engines; 0 releases the GPUs when idle."""
    max_replicas: int = 1
    """Maximum engines."""
    num_gpus: float = 1.0
    """GPUs per engine: a fraction, or a tensor-parallel size; 0 uses vLLM's CPU build."""
    max_model_len: int = 4096
    """Maximum tokens of a judge prompt with its reply."""
    target_ongoing_requests: float = 32.0
    """Concurrent calls per engine above which Serve adds an engine."""
    downscale_delay_s: float = 300.0
    """Seconds of lower load before an engine is removed."""
    kv_cache_gib: int = 1
    """KV cache of a CPU engine, in GiB."""
    num_threads: int = 1
    """Threads of a CPU engine; more threads judge faster."""
    start_timeout_s: float = 900.0
    """Timeout for the first engine to start."""

    def __post_init__(self) -> None:
        for name in ("max_replicas", "max_model_len", "kv_cache_gib", "num_threads"):
            require(getattr(self, name) >= 1, f"judge.cluster.{name}", getattr(self, name), "must be at least 1")
        for name in ("min_replicas", "num_gpus", "downscale_delay_s"):
            is_count = 0 <= getattr(self, name) < math.inf
            require(is_count, f"judge.cluster.{name}", getattr(self, name), "must be at least 0 and finite")
        is_share_or_whole = self.num_gpus < 1 or float(self.num_gpus).is_integer()
        require(
            is_share_or_whole, "judge.cluster.num_gpus", self.num_gpus, "must be a fraction below 1 or a whole number"
        )
        require(
            self.target_ongoing_requests > 0,
            "judge.cluster.target_ongoing_requests",
            self.target_ongoing_requests,
            "must be above 0",
        )
        _require_seconds("judge.cluster.start_timeout_s", self.start_timeout_s)
        require(
            self.max_replicas >= self.min_replicas,
            "judge.cluster.max_replicas",
            self.max_replicas,
            f"must be at least judge.cluster.min_replicas={self.min_replicas}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    chain: tuple[Literal["rules", "openai", "cluster"], ...] = ("rules",)
    """Judges in order; answers that one cannot decide with certainty go to the next, e.g. [rules, openai]."""
    metric: Literal["strict", "relaxed", "anls"] = "strict"
    """Criterion for a correct answer. `relaxed`: numbers within 5 % (ChartQA). `anls`: similar text (DocVQA)."""
    max_answer_chars: int = 2000
    """Longer answers count as wrong without being judged."""
    min_replicas: int = 1
    """Minimum judge replicas in Ray Serve."""
    max_replicas: int = 2
    """Maximum judge replicas in Ray Serve."""
    target_ongoing_requests: float = 8.0
    """Concurrent calls per replica above which Serve adds a replica. One call judges one answer."""
    upscale_delay_s: float = 0.3
    """Seconds of higher load before replicas are added."""
    downscale_delay_s: float = 10.0
    """Seconds of lower load before replicas are removed."""
    start_timeout_s: float = 120.0
    """Timeout for the first replicas to start."""
    timeout_s: float = 60.0
    """Timeout for the verdict on one answer, retries included; time spent queueing or in an outage does not count."""
    max_tries: int = 3
    """Maximum calls per answer; after that it has no verdict."""
    max_pause_s: float = 1800.0
    """Longest judge outage that the run waits out; after that it stops and can be resumed."""
    cache: str = cache_file(os.environ)
    """Cache file of LLM verdicts, shared by runs; must be on a local disk. Empty disables it."""
    canary_share: float = 0.02
    """Fraction of groups with which a canary (a row with a known verdict) is judged, to monitor the judge."""
    canary_alarm: float = 0.05
    """Warn when the judge's false-positive rate on canaries exceeds this (lower end of the 95 % interval)."""
    canary_stop: float = 0.2
    """Stop the run when it exceeds this (lower end of the 95 % interval)."""
    llm: LLMJudgeConfig = field(default_factory=LLMJudgeConfig)
    cluster: ClusterJudgeConfig = field(default_factory=ClusterJudgeConfig)

    def __post_init__(self) -> None:
        require(self.min_replicas >= 0, "judge.min_replicas", self.min_replicas, "must be at least 0")
        require(
            self.max_replicas >= max(1, self.min_replicas),
            "judge.max_replicas",
            self.max_replicas,
            f"must be at least 1 and at least judge.min_replicas={self.min_replicas}",
        )
        require(
            self.target_ongoing_requests > 0,
            "judge.target_ongoing_requests",
            self.target_ongoing_requests,
            "must be above 0",
        )
        for name in ("timeout_s", "max_pause_s", "start_timeout_s"):
            _require_seconds(f"judge.{name}", getattr(self, name))
        for name in ("upscale_delay_s", "downscale_delay_s"):
            is_amount = 0 <= getattr(self, name) < math.inf
            require(is_amount, f"judge.{name}", getattr(self, name), "must be at least 0 and finite")
        for name in ("max_tries", "max_answer_chars"):
            require(getattr(self, name) >= 1, f"judge.{name}", getattr(self, name), "must be at least 1")
        for name in ("canary_share", "canary_alarm", "canary_stop"):
            require(0 <= getattr(self, name) <= 1, f"judge.{name}", getattr(self, name), "must be from 0 to 1")
        require(
            self.canary_alarm <= self.canary_stop,
            "judge.canary_alarm",
            self.canary_alarm,
            f"must be at most judge.canary_stop={self.canary_stop:g}: the warning comes before the stop",
        )
        self._check_chain()

    def _check_chain(self) -> None:
        shown = list(self.chain)
        require(bool(self.chain), "judge.chain", shown, "must name at least one judge, e.g. [rules] or [rules, openai]")
        require(len(set(self.chain)) == len(self.chain), "judge.chain", shown, "must name each judge once")
        require("rules" not in self.chain[1:], "judge.chain", shown, "must have rules first")
        both = {"openai", "cluster"} <= set(self.chain)
        require(not both, "judge.chain", shown, "must not have both openai and cluster: judge.llm describes one model")
        has_model = bool(self.llm.model) or self.chain == ("rules",)
        require(has_model, "judge.llm.model", self.llm.model, f"must be set for judge.chain={shown}")
        require(
            not self.has_llm or self.timeout_s >= self.llm.try_timeout_s + ROUND_TRIP_S,
            "judge.timeout_s",
            self.timeout_s,
            f"must be at least {ROUND_TRIP_S:g} s above judge.llm.try_timeout_s={self.llm.try_timeout_s:g}: otherwise "
            f"one slow call leaves an answer without a verdict",
        )
        if self.has_llm:
            self._check_reach("judge", self)
        if "cluster" in self.chain:
            self._check_reach("judge.cluster", self.cluster)

    def _check_reach(self, section: str, pool: JudgeConfig | ClusterJudgeConfig) -> None:
        """Reject a max_replicas that is never reached: Serve scales to concurrent calls / target_ongoing_requests."""
        wanted = math.ceil(self.llm.max_concurrent / pool.target_ongoing_requests)
        require(
            pool.max_replicas <= max(1, pool.min_replicas, wanted),
            f"{section}.max_replicas",
            pool.max_replicas,
            f"must be at most {wanted}, as judge.llm.max_concurrent={self.llm.max_concurrent} calls at "
            f"{section}.target_ongoing_requests={pool.target_ongoing_requests:g} never need more; lower "
            f"{section}.target_ongoing_requests or raise judge.llm.max_concurrent",
        )

    @property
    def has_llm(self) -> bool:
        return self.chain != ("rules",)
