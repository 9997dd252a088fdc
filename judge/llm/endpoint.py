"""The way to an endpoint: its key, its client with or without a proxy, and what a failed call says."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import math
import os
import re
import socket
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from openai import APIError, APIStatusError, AsyncAzureOpenAI, AsyncOpenAI, OpenAIError, Timeout
from openai import DefaultAsyncHttpxClient as HttpClient

from actors.errors import JudgeError
from configs.judges import LLMJudgeConfig
from judge.verdict import Failure, NoVerdict, Usage

NO_KEY = "none"
"""Sent where the endpoint wants no key: without any the client would look for one in the environment."""
MAX_REASON_CHARS = 200
MIN_HIDDEN_CHARS = 8
"""The start of a key is hidden as well when at least so much of it stands there."""
_KEY = re.compile(r"[!-~]{1,16384}")
_PROXY = re.compile(r"(?:https?|socks5h?)://(?:[^@/\s]*@)?[^@:/\s]+(?::\d+)?/?")
_DENIED = frozenset({401, 402, 403, 404, 405, 407, 410})
_UNREACHABLE = frozenset({408, 409, 425})
QUOTA = "insufficient_quota"
"""OpenAI's code of a 429 that no wait mends: the account is empty."""


def read_key(config: LLMJudgeConfig) -> str:
    """The key from its file or environment variable; empty where the config names neither.

    Raises:
        JudgeError: nothing there, or nothing that can be a key. Names the setting and its value, never the key.
    """
    if config.api_key_file:
        where = f"judge.llm.api_key_file={config.api_key_file!r}"
        try:
            key = Path(config.api_key_file).expanduser().read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, RuntimeError) as error:
            raise JudgeError(f"{where} cannot be read: {error}; give a file that the judges can read") from error
    elif config.api_key_env:
        where = f"judge.llm.api_key_env={config.api_key_env!r}"
        key = os.environ.get(config.api_key_env, "").strip()
    else:
        return ""
    if not _KEY.fullmatch(key):  # the HTTP library would quote it in its error
        what = "contains more than a key (spaces, lines or other characters)" if key else "is empty or not set"
        raise JudgeError(f"{where} {what}; it must contain only the key")
    return key


def connect(config: LLMJudgeConfig, key: str, *, is_own: bool = False) -> AsyncOpenAI:
    """A client of the endpoint that tries once; deadlines are its caller's. No proxy stands before the cluster's own.

    Raises:
        JudgeError: the environment names a proxy that cannot be used.
    """
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):  # they tell of every call, address and all
        logging.getLogger(name).setLevel(logging.WARNING)
    address, proxy = ("", "") if is_own else proxy_of(config.base_url)
    # The HTTP library reads nothing of the environment but certificates: it would build every proxy, needed or not.
    verify = ssl.create_default_context() if os.environ.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"} else True
    settings: dict[str, Any] = {"api_key": key or NO_KEY, "max_retries": 0, "timeout": Timeout(None, connect=10.0)}
    try:
        settings["http_client"] = HttpClient(trust_env=False, proxy=address or None, verify=verify)
        if version := config.azure_api_version:
            settings |= {"azure_endpoint": config.base_url, "api_version": version}
        client = AsyncAzureOpenAI(**settings) if version else AsyncOpenAI(base_url=config.base_url, **settings)
    except (ImportError, ValueError, OSError, OpenAIError) as error:
        remedy = f"; the environment sets {proxy}: change it, or set NO_PROXY" if proxy else ""
        why = " ".join(str(error).split())
        raise JudgeError(f"judge.llm.base_url={config.base_url!r} cannot be used: {why}{remedy}") from error
    # The client takes these from the environment; they are no business of another endpoint.
    client.organization = client.project = None
    return client


def is_direct(url: str) -> bool:
    """Whether no proxy stands before a URL: it is on this machine, or NO_PROXY names it or a network that holds it."""
    host, no_proxy = (urlsplit(url).hostname or "").rstrip("."), getproxies().get("no", "")
    if host in ("localhost", socket.gethostname().lower()) or host.endswith(".localhost") or proxy_bypass(host):
        return True
    with contextlib.suppress(ValueError):  # a name, or an entry that is no network
        address = ipaddress.ip_address(host)
        networks = (ipaddress.ip_network(entry.strip(), strict=False) for entry in no_proxy.split(",") if "/" in entry)
        return address.is_loopback or address.is_unspecified or any(address in network for network in networks)
    return False


def proxy_of(url: str) -> tuple[str, str]:
    """The proxy through which the environment has a URL asked, and how to show it; twice nothing where there is none.

    Raises:
        JudgeError: it is no address of a proxy.
    """
    scheme, proxies = urlsplit(url).scheme, getproxies()
    kind = scheme if proxies.get(scheme) else "all"
    if not proxies.get(kind) or is_direct(url):
        return "", ""
    address, variable = proxies[kind] if "://" in proxies[kind] else f"http://{proxies[kind]}", f"{kind.upper()}_PROXY"
    if not _PROXY.fullmatch(address):
        raise JudgeError(f"{variable} is not a proxy address: must be HOST:PORT, optionally after http:// or socks5://")
    return address, f"the proxy {re.sub('//.*@', '//', address)} ({variable})"  # without user and password


def describe_failure(error: APIError) -> NoVerdict:
    """The failure of a call as the client raised it."""
    usage, name, cause = Usage(num_calls=1), type(error).__name__, error.__cause__ or error
    if not isinstance(error, APIStatusError):
        return NoVerdict(reason=f"{name}: {type(cause).__name__} {cause}", usage=usage)
    words = error.body.get("message") if isinstance(error.body, dict) else error.body
    return NoVerdict(
        reason=f"status {error.status_code}, {name}: {words or ''}",
        failure=kind_of_status(error.status_code, error.code),
        retry_after_s=retry_after_s(error.response.headers),
        status=error.status_code,
        usage=usage,
    )


def kind_of_status(status: int, code: str | None) -> Failure:
    """What a status other than success means for the next call; `code` is the endpoint's own word for it, if any."""
    if status == 429:
        return Failure.DENIED if code == QUOTA else Failure.THROTTLED
    if status in _DENIED:
        return Failure.DENIED
    return Failure.REJECTED if 400 <= status < 500 and status not in _UNREACHABLE else Failure.UNREACHABLE


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `retry-after` ask for; None without a number (a date: the caller's own rule)."""
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit_s
            return max(0.0, seconds) if math.isfinite(seconds) else None
    return None


def one_line(text: str, keys: Iterable[str]) -> str:
    """One short line for people. Keys, or as much of one as a cut text may show, are taken out before the cut."""
    for key in sorted(filter(None, keys), key=len, reverse=True):
        for size in (len(key), *range(len(key) - 1, MIN_HIDDEN_CHARS - 1, -1)):
            text = text.replace(key[:size], "[key]")
    line = " ".join(text.split())
    return "".join(char if char.isprintable() else "?" for char in line)[:MAX_REASON_CHARS]
