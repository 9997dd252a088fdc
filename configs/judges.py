"""The settings of the judges: who decides, under which limits, and what a failing judge may cost."""

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
"""To a judge and back: so much sooner must a judge give up a call than its caller gives up the judge."""
MAX_ONE_WORD_CHARS = 16
"""A longer name of one word alone may be a key."""


def cache_file(environment: Mapping[str, str]) -> str:
    """Where a user's programs keep what they can do without (XDG Base Directory Specification)."""
    folder = Path(environment.get("XDG_CACHE_HOME", ""))
    return str((folder if folder.is_absolute() else Path("~/.cache")) / "visionthink" / "verdicts.sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class LLMJudgeConfig:
    """An LLM behind an OpenAI-compatible endpoint, wherever it runs."""

    model: str = ""
    """Name by which the endpoint knows the model; with `cluster` in judge.chain, the folder of a local model."""
    revision: str = ""
    """Of the model, where its name does not say it: verdicts of one are not taken for those of another."""
    base_url: str = "https://api.openai.com/v1"
    """Endpoint. Not read when `cluster` serves the model."""
    azure_api_version: str = ""
    """Set it for Azure: base_url is then the resource's address, model the deployment's name."""
    api_key_file: str = ""
    """File that holds the key, readable where judges run. The key itself never stands in a config."""
    api_key_env: str = ""
    """Or the environment variable that holds it there. Neither: the endpoint wants no key."""
    prompt: str = "judge"
    """Wording of the question to the judge: `judge`, or the path of a YAML file with the same keys."""
    reply: Literal["json", "choice", "text"] = "json"
    """`json`: the endpoint keeps a JSON schema. `choice`: vLLM's structured output, one token. `text`: no help."""
    thinks: bool = False
    """For models that think before they reply (o-series, gpt-5): they take no temperature, and count their thoughts in
    max_reply_tokens."""
    max_reply_tokens: int = 16
    """Tokens a judge may use for its verdict."""
    max_field_chars: int = 4000
    """Question and reference are cut to this many characters before they go to a judge."""
    try_timeout_s: float = 20.0
    """Deadline of one call."""
    max_concurrent: int = 64
    """Most calls under way at a time, one per answer. A 429 halves it for a while."""
    requests_per_minute: int = 0
    """Most calls per minute; 0 sets no bound."""
    tokens_per_minute: int = 0
    """Most tokens per minute, prompt and reply; 0 sets no bound."""
    prompt_price: float = 0.0
    """USD per million prompt tokens."""
    reply_price: float = 0.0
    """USD per million reply tokens."""

    def __post_init__(self) -> None:
        tokens = "at least 2: one for the verdict, one for its end"
        require(self.max_reply_tokens >= 2, "judge.llm.max_reply_tokens", self.max_reply_tokens, tokens)
        room = "at least 256 with judge.llm.thinks, for the thoughts as well"
        enough = not self.thinks or self.max_reply_tokens >= 256
        require(enough, "judge.llm.max_reply_tokens", self.max_reply_tokens, room)
        for name in ("max_field_chars", "max_concurrent"):
            require(getattr(self, name) >= 1, f"judge.llm.{name}", getattr(self, name), "at least 1")
        for name in ("requests_per_minute", "tokens_per_minute"):
            require(getattr(self, name) >= 0, f"judge.llm.{name}", getattr(self, name), "0 for no bound, or more")
        for name in ("prompt_price", "reply_price"):
            require(getattr(self, name) >= 0, f"judge.llm.{name}", getattr(self, name), "USD per million tokens, or 0")
        _require_seconds("judge.llm.try_timeout_s", self.try_timeout_s)
        self._check_address_and_key()

    def _check_address_and_key(self) -> None:
        """Values that may be the key itself are refused, so that no run's folder holds them, and are not shown."""
        has_extras = any(sign in self.base_url for sign in "@?#")
        remedy = "the address alone, without user, password or query; use judge.llm.api_key_file"
        require(not has_extras, "judge.llm.base_url", "(hidden)", remedy)
        remedy = "write http://HOST:PORT/v1 or https://HOST/v1"
        shown = self.base_url if self.base_url.startswith(("http://", "https://")) else "(hidden)"
        require(_is_address(self.base_url), "judge.llm.base_url", shown, remedy)
        remedy = "give the name of an environment variable in capitals, such as OPENAI_API_KEY, not the key"
        is_name = not self.api_key_env or _is_variable_name(self.api_key_env)
        require(is_name, "judge.llm.api_key_env", "(hidden)", remedy)
        is_path = not self.api_key_file or _is_path(self.api_key_file)
        remedy = "give the path of the file that holds the key, such as ./judge.key, not the key"
        require(is_path, "judge.llm.api_key_file", "(hidden)", remedy)
        require(
            not (self.api_key_file and self.api_key_env),
            "judge.llm.api_key_env",
            self.api_key_env,
            "give either judge.llm.api_key_file or judge.llm.api_key_env",
        )


def _require_seconds(name: str, seconds: float) -> None:
    """Every wait has its end."""
    require(0 < seconds < math.inf, name, seconds, "seconds above 0, and not without end")


def _is_variable_name(text: str) -> bool:
    """Capitals, in words: keys are of small letters, or long and of one word."""
    is_name = re.fullmatch(r"[A-Z_][A-Z0-9_]*", text) is not None
    return is_name and ("_" in text or len(text) <= MAX_ONE_WORD_CHARS)


def _is_path(text: str) -> bool:
    """Names of folders and files, or a file with a short ending: keys with dots in them have long parts."""
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
    """Fewest engines; 0 gives the GPUs back between steps and runs."""
    max_replicas: int = 1
    """Most engines."""
    num_gpus: float = 1.0
    """GPUs (or a share of one) per engine, more than one by tensor parallelism; 0 runs vLLM's CPU build."""
    max_model_len: int = 4096
    """Tokens of the longest question with its verdict."""
    target_ongoing_requests: float = 32.0
    """Calls per engine at which Serve adds another."""
    downscale_delay_s: float = 300.0
    """Idle seconds before an engine goes."""
    kv_cache_gib: int = 1
    """Memory for the KV cache of a CPU engine."""
    num_threads: int = 1
    """Threads of a CPU engine: they work through one prompt after the other, so more of them judge faster."""
    start_timeout_s: float = 900.0
    """Deadline for the first engine to come up."""

    def __post_init__(self) -> None:
        for name in ("max_replicas", "max_model_len", "kv_cache_gib", "num_threads"):
            require(getattr(self, name) >= 1, f"judge.cluster.{name}", getattr(self, name), "at least 1")
        for name in ("min_replicas", "num_gpus", "downscale_delay_s"):
            is_count = 0 <= getattr(self, name) < math.inf
            require(is_count, f"judge.cluster.{name}", getattr(self, name), "0 or more, and finite")
        is_share_or_whole = self.num_gpus < 1 or float(self.num_gpus).is_integer()
        require(is_share_or_whole, "judge.cluster.num_gpus", self.num_gpus, "a share of one GPU, or a whole number")
        require(
            self.target_ongoing_requests > 0,
            "judge.cluster.target_ongoing_requests",
            self.target_ongoing_requests,
            "above 0",
        )
        _require_seconds("judge.cluster.start_timeout_s", self.start_timeout_s)
        require(
            self.max_replicas >= self.min_replicas,
            "judge.cluster.max_replicas",
            self.max_replicas,
            f"at least judge.cluster.min_replicas={self.min_replicas}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeConfig:
    chain: tuple[Literal["rules", "openai", "cluster"], ...] = ("rules",)
    """Who decides, in order: what one cannot decide with certainty goes to the next, e.g. [rules, openai]."""
    metric: Literal["strict", "relaxed", "anls"] = "strict"
    """What rules and LLM call right. `relaxed`: numbers within 5 % (ChartQA). `anls`: similar text (DocVQA)."""
    max_answer_chars: int = 2000
    """A longer answer is wrong unread."""
    min_replicas: int = 1
    """Fewest judges that Ray Serve keeps up."""
    max_replicas: int = 2
    """Most judges that Ray Serve starts when more calls are under way."""
    target_ongoing_requests: float = 8.0
    """Calls under way per judge at which Serve adds another. A call is about one answer, as in llm.max_concurrent."""
    upscale_delay_s: float = 0.3
    """Seconds of a longer queue before judges are added."""
    downscale_delay_s: float = 10.0
    """Seconds of a shorter queue before judges are taken away."""
    start_timeout_s: float = 120.0
    """Deadline for the first judges to come up."""
    timeout_s: float = 60.0
    """Deadline for the verdict on one answer, tries included; waits for a turn and outages not counted."""
    max_tries: int = 3
    """Calls about one answer before it counts as unscored."""
    max_pause_s: float = 1800.0
    """Longest outage of the judges that the run waits out before it stops, resumable."""
    cache: str = cache_file(os.environ)
    """File of LLM verdicts, shared by runs; on a local disk. Empty keeps none."""
    canary_share: float = 0.02
    """Share of groups beside which a settled row is judged, to see whether the judge still tells right from wrong."""
    canary_alarm: float = 0.05
    """Warn when this share of wrong canaries passes, beyond doubt (lower end of the 95 % interval)."""
    canary_stop: float = 0.2
    """Stop the run at this share."""
    llm: LLMJudgeConfig = field(default_factory=LLMJudgeConfig)
    cluster: ClusterJudgeConfig = field(default_factory=ClusterJudgeConfig)

    def __post_init__(self) -> None:
        require(self.min_replicas >= 0, "judge.min_replicas", self.min_replicas, "0 or more")
        require(
            self.max_replicas >= max(1, self.min_replicas),
            "judge.max_replicas",
            self.max_replicas,
            f"at least 1 and judge.min_replicas={self.min_replicas}",
        )
        require(
            self.target_ongoing_requests > 0, "judge.target_ongoing_requests", self.target_ongoing_requests, "above 0"
        )
        for name in ("timeout_s", "max_pause_s", "start_timeout_s"):
            _require_seconds(f"judge.{name}", getattr(self, name))
        for name in ("upscale_delay_s", "downscale_delay_s"):
            is_amount = 0 <= getattr(self, name) < math.inf
            require(is_amount, f"judge.{name}", getattr(self, name), "0 or more, and finite")
        for name in ("max_tries", "max_answer_chars"):
            require(getattr(self, name) >= 1, f"judge.{name}", getattr(self, name), "at least 1")
        for name in ("canary_share", "canary_alarm", "canary_stop"):
            require(0 <= getattr(self, name) <= 1, f"judge.{name}", getattr(self, name), "a share from 0 to 1")
        require(
            self.canary_alarm <= self.canary_stop,
            "judge.canary_alarm",
            self.canary_alarm,
            f"at most judge.canary_stop={self.canary_stop:g}: an alarm comes before the stop",
        )
        self._check_chain()

    def _check_chain(self) -> None:
        shown = list(self.chain)
        require(bool(self.chain), "judge.chain", shown, "name who judges, e.g. [rules] or [rules, openai]")
        require(len(set(self.chain)) == len(self.chain), "judge.chain", shown, "name each judge once")
        require("rules" not in self.chain[1:], "judge.chain", shown, "rules come first")
        both = {"openai", "cluster"} <= set(self.chain)
        require(not both, "judge.chain", shown, "take either openai or cluster: judge.llm describes one model")
        has_model = bool(self.llm.model) or self.chain == ("rules",)
        require(has_model, "judge.llm.model", self.llm.model, f"judge.chain={shown} needs a model")
        require(
            not self.has_llm or self.timeout_s >= self.llm.try_timeout_s + ROUND_TRIP_S,
            "judge.timeout_s",
            self.timeout_s,
            f"at least {ROUND_TRIP_S:g} s above judge.llm.try_timeout_s={self.llm.try_timeout_s:g}: one slow call "
            f"would cost an answer its verdict",
        )
        if self.has_llm:
            self._check_reach("judge", self)
        if "cluster" in self.chain:
            self._check_reach("judge.cluster", self.cluster)

    def _check_reach(self, section: str, pool: JudgeConfig | ClusterJudgeConfig) -> None:
        """Serve wants as many replicas as calls under way fill at their target: the largest pool must be among them."""
        wanted = math.ceil(self.llm.max_concurrent / pool.target_ongoing_requests)
        require(
            pool.max_replicas <= max(1, pool.min_replicas, wanted),
            f"{section}.max_replicas",
            pool.max_replicas,
            f"judge.llm.max_concurrent={self.llm.max_concurrent} calls under way at {section}.target_ongoing_requests="
            f"{pool.target_ongoing_requests:g} never want more than {wanted}; lower {section}.max_replicas to {wanted} "
            f"or {section}.target_ongoing_requests, or raise judge.llm.max_concurrent",
        )

    @property
    def has_llm(self) -> bool:
        return self.chain != ("rules",)
