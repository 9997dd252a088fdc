"""By which way an endpoint is asked, and what a failed call means."""

import socket

import pytest

from actors.errors import JudgeError
from judge.llm.endpoint import is_direct, kind_of_status, proxy_of, retry_after_s
from judge.verdict import Failure


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7.0),
        ({"retry-after": "Fri, 02 Jan 2026 12:00:30 GMT"}, None),
    ],
)
def test_how_long_to_wait_is_read_where_it_is_a_number(headers, seconds):
    assert retry_after_s(headers) == seconds


@pytest.mark.parametrize(
    ("status", "code", "failure"),
    [
        (400, None, Failure.REJECTED),
        (400, "content_filter", Failure.REJECTED),
        (401, None, Failure.DENIED),
        (402, None, Failure.DENIED),
        (403, None, Failure.DENIED),
        (404, "model_not_found", Failure.DENIED),
        (408, None, Failure.UNREACHABLE),
        (413, None, Failure.REJECTED),
        (422, None, Failure.REJECTED),
        (429, None, Failure.THROTTLED),
        (429, "rate_limit_exceeded", Failure.THROTTLED),
        (429, "insufficient_quota", Failure.DENIED),
        (500, None, Failure.UNREACHABLE),
        (503, None, Failure.UNREACHABLE),
        (529, None, Failure.UNREACHABLE),
        (302, None, Failure.UNREACHABLE),
    ],
)
def test_a_status_tells_what_the_next_call_may_hope_for(status, code, failure):
    assert kind_of_status(status, code) is failure


@pytest.mark.parametrize(
    ("url", "is_here"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.8.9.1/v1", True),
        ("http://localhost:1/v1", True),
        ("http://LOCALHOST./v1", True),
        ("http://api.localhost/v1", True),
        ("http://[::1]:8000/v1", True),
        ("http://0.0.0.0:8000/v1", True),
        (f"http://{socket.gethostname()}:8000/v1", True),
        ("http://10.0.0.7/v1", False),
        ("https://api.openai.com/v1", False),
        ("http://localhost.example.com/v1", False),
        ("http://127.0.0.1.example.com/v1", False),
    ],
)
def test_no_proxy_stands_before_this_machine(url, is_here, no_proxies):
    assert is_direct(url) is is_here


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize(
    ("environment", "url", "words"),
    [
        ({}, "http://far.example/v1", ""),
        ({"HTTP_PROXY": "http://p:3128"}, "http://far.example/v1", "the proxy http://p:3128 (HTTP_PROXY)"),
        ({"HTTP_PROXY": "p:3128"}, "http://far.example/v1", "the proxy http://p:3128 (HTTP_PROXY)"),
        ({"HTTP_PROXY": "http://p:3128"}, "https://far.example/v1", ""),
        ({"https_proxy": "http://a:b@p"}, "https://far.example/v1", "the proxy http://p (HTTPS_PROXY)"),
        ({"ALL_PROXY": "socks5://p:1"}, "https://far.example/v1", "the proxy socks5://p:1 (ALL_PROXY)"),
        (
            {"ALL_PROXY": "http://p", "HTTPS_PROXY": "http://q"},
            "https://f.example/v1",
            "the proxy http://q (HTTPS_PROXY)",
        ),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "example"}, "http://far.example/v1", ""),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "far.example, 10.0.0.0/8"}, "http://10.2.3.4:8000/v1", ""),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "10.0.0.0/8"}, "http://11.2.3.4/v1", "the proxy http://p:1 (HTTP_PROXY)"),
        ({"HTTP_PROXY": "p:1", "NO_PROXY": "x/y"}, "http://11.2.3.4/v1", "the proxy http://p:1 (HTTP_PROXY)"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "*"}, "http://far.example/v1", ""),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:1/v1", ""),
    ],
)
def test_the_proxy_that_the_environment_asks_for(environment, url, words, no_proxies, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    address, shown = proxy_of(url)
    assert shown == words
    assert bool(address) == bool(words)


@pytest.mark.parametrize("proxy", ["http://", "socks4://p:1", "ftp://p", "http://p:port", "http://[::1", "://"])
def test_what_is_no_proxy_is_refused_by_its_variable_and_not_shown(proxy, no_proxies, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(JudgeError, match="HTTPS_PROXY is not a proxy address: must be HOST:PORT"):
        proxy_of("https://far.example/v1")
