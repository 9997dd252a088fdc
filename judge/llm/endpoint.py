"""The way to an endpoint: its client, with or without a proxy, and what a failed call says.

A failure tells which kind it is, how long to wait, and a reason that can be shown.
"""

from __future__ import annotations

import ipaddress
import math
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from openai import (
    APIError,
    APIStatusError,
    AsyncAzureOpenAI,
    AsyncOpenAI,
    DefaultAsyncHttpxClient,
    OpenAIError,
    Timeout,
)

from actors.errors import JudgeError
from configs.judges import LLMJudgeConfig
from judge.llm.apikey import hide_keys
from judge.verdict import Failure, NoVerdict, Usage

NO_KEY = "none"
"""Sent where the endpoint wants no key: without any the client would look for one in the environment."""
CONNECT_S = 10.0
MAX_REASON_CHARS = 200
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
_DENIED = frozenset({401, 402, 403, 404, 405, 407, 410})
_UNREACHABLE = frozenset({408, 409, 425})
QUOTA = "insufficient_quota"
"""OpenAI's code of a 429 that no wait mends: the account is empty."""


def connect(
    config: LLMJudgeConfig, key: str, *, is_own: bool = False, before: AsyncOpenAI | None = None
) -> AsyncOpenAI:
    """A client of the endpoint that tries once; deadlines are its caller's. Nothing is connected yet.

    Args:
        is_own: the cluster serves the model: no proxy stands between.
        before: a client with another key, whose connections stay.

    Raises:
        JudgeError: the environment names a proxy that cannot be used.
    """
    client = before.with_options(api_key=key or NO_KEY) if before else _new_client(config, key, is_own=is_own)
    # The client takes these from the environment; they are no business of another endpoint.
    client.organization = client.project = None
    return client


def _new_client(config: LLMJudgeConfig, key: str, *, is_own: bool) -> AsyncOpenAI:
    address, proxy = ("", "") if is_own else proxy_of(config.base_url)
    # The HTTP library reads nothing of the environment but certificates: it would build every proxy, needed or not.
    verify = ssl.create_default_context() if os.environ.keys() & {"SSL_CERT_FILE", "SSL_CERT_DIR"} else True
    settings: dict[str, Any] = {"api_key": key or NO_KEY, "max_retries": 0, "timeout": Timeout(None, connect=CONNECT_S)}
    try:
        settings["http_client"] = DefaultAsyncHttpxClient(trust_env=False, proxy=address or None, verify=verify)
        if version := config.azure_api_version:
            return AsyncAzureOpenAI(azure_endpoint=config.base_url, api_version=version, **settings)
        return AsyncOpenAI(base_url=config.base_url, **settings)
    except (ImportError, ValueError, OSError, OpenAIError) as error:
        remedy = f"; the environment asks for {proxy}: set another one, or NO_PROXY" if proxy else ""
        why = " ".join(str(error).split())
        raise JudgeError(f"judge.llm.base_url={config.base_url!r} cannot be asked: {why}{remedy}") from error


def is_this_machine(url: str) -> bool:
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host in ("localhost", socket.gethostname().lower()) or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def proxy_of(url: str) -> tuple[str, str]:
    """The proxy through which the environment has a URL asked, and how to show it; twice nothing where there is none.

    Raises:
        JudgeError: it is no address of a proxy.
    """
    parts, proxies = urlsplit(url), getproxies()
    kind = parts.scheme if proxies.get(parts.scheme) else "all"
    if not proxies.get(kind) or is_this_machine(url) or _is_exempt(parts.hostname or "", proxies.get("no", "")):
        return "", ""
    address = proxies[kind] if "://" in proxies[kind] else f"http://{proxies[kind]}"
    try:
        proxy = urlsplit(address)
        place = f"{proxy.hostname}:{proxy.port}" if proxy.port else proxy.hostname
        if place and proxy.scheme in PROXY_SCHEMES:  # user and password are not shown
            return address, f"the proxy {proxy.scheme}://{place} ({kind.upper()}_PROXY)"
    except ValueError:
        pass
    raise JudgeError(
        f"{kind.upper()}_PROXY is no address of a proxy: write HOST:PORT after {', '.join(PROXY_SCHEMES)} and ://, or "
        f"unset it"
    )


def _is_exempt(host: str, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, or a network that holds its address."""
    try:
        networks = [ipaddress.ip_network(entry.strip(), strict=False) for entry in no_proxy.split(",") if "/" in entry]
        return bool(proxy_bypass(host)) or any(ipaddress.ip_address(host) in network for network in networks)
    except ValueError:
        return bool(proxy_bypass(host))


def describe_failure(error: APIError, keys: Iterable[str]) -> NoVerdict:
    """The failure of a call as the client raised it, without the keys."""
    usage, name = Usage(num_calls=1), type(error).__name__
    if not isinstance(error, APIStatusError):
        cause = error.__cause__ or error
        reason = one_line(f"{name}: {type(cause).__name__} {cause}", keys)
        return NoVerdict(reason=reason, failure=Failure.UNREACHABLE, usage=usage)
    words = error.body.get("message") if isinstance(error.body, dict) else error.body
    return NoVerdict(
        reason=one_line(f"status {error.status_code}, {name}: {words or ''}", keys),
        failure=kind_of_status(error.status_code, error.code),
        retry_after_s=retry_after_s(error.response.headers),
        status=error.status_code,
        usage=usage,
    )


def kind_of_status(status: int, code: str | None) -> Failure:
    """What a status other than success means for the next call.

    Args:
        code: the endpoint's own word for the error, if any.
    """
    if status == 429:
        return Failure.DENIED if code == QUOTA else Failure.THROTTLED
    if status in _DENIED:
        return Failure.DENIED
    return Failure.REJECTED if 400 <= status < 500 and status not in _UNREACHABLE else Failure.UNREACHABLE


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Seconds that `retry-after-ms` or `Retry-After` ask for; None where neither can be read.

    A date is taken from the reply's own `Date`, as the clocks of both sides may differ.

    Args:
        headers: keys in lower case, or a mapping that does not mind.
        now: stands in for a missing `Date`.
    """
    for name, unit_s in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else None
    if (until := _date(headers.get("retry-after"))) is None:
        return None
    since = _date(headers.get("date")) or now or datetime.now(UTC)
    return max(0.0, (until - since).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def one_line(text: str, keys: Iterable[str]) -> str:
    """One short line, keys hidden before the cut: half a key is a leak as well."""
    line = " ".join(hide_keys(text, keys).split())
    return "".join(char if char.isprintable() else "?" for char in line)[:MAX_REASON_CHARS]
