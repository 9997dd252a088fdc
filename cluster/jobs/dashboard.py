"""Ray's job client with deadlines, and its errors in one line with the remedy."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import requests
from ray._private.ray_constants import RAY_API_SERVER_ADDRESS_ENVIRONMENT_VARIABLE as API_SERVER
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from actors.causes import root_cause
from actors.errors import RunError
from cluster.runtime.addresses import bypass_proxies, own_hosts
from cluster.runtime.exposure import refuse_open_dashboard

UNREACHABLE = (ConnectionError, RuntimeError, OSError, RayError, aiohttp.ClientError, requests.RequestException)
"""Errors of Ray's client when the dashboard, or a proxy in front of it, does not respond."""
SILENT = (ConnectionError, TimeoutError, requests.ConnectionError, requests.Timeout)
DIAL_S = 5.0
ANSWER_S = 60.0
"""The dashboard may be busy, and an upload of 100 MiB takes its time."""
TOKEN_REMEDY = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a copy of the head's ~/.ray/auth_token"


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Adds the timeouts that Ray's client lacks: a host that is gone would cost minutes per request."""

    def _do_request(self, method: str, endpoint: str, **settings: Any) -> requests.Response:
        response: requests.Response = super()._do_request(method, endpoint, timeout=(DIAL_S, ANSWER_S), **settings)
        return response


def open_dashboard(address: str) -> JobSubmissionClient:
    """A client of the dashboard at this URL, which has answered.

    Raises:
        ValueError: not the URL of a dashboard.
        RunError: it does not answer, wants a token, or wants none although others can reach it.
    """
    url = dashboard_url(address)
    logging.getLogger("ray").setLevel(logging.WARNING)  # it logs the end of each stream
    os.environ.update(bypass_proxies(os.environ, own_hosts(url)))
    refuse_open_dashboard(url)
    with explained(url), _address_of(url):
        return _Client(url)


def dashboard_url(address: str) -> str:
    """The address as a URL.

    Raises:
        ValueError: it names something else, such as the head's own port, by which Ray would search for minutes.
    """
    url = address.strip()
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 6379:
        raise ValueError(
            f"--address={address!r} is invalid: write the URL of the head's dashboard, such as http://10.0.0.1:8265"
        )
    if parts.username or parts.password:
        raise ValueError(f"--address is invalid: it must hold no password; {TOKEN_REMEDY}")
    return url.rstrip("/")


@contextlib.contextmanager
def _address_of(url: str) -> Iterator[None]:
    """Ray prefers what its variables name to the address that it is given, and searches for it without a deadline."""
    before = os.environ.get(API_SERVER)
    os.environ[API_SERVER] = url
    try:
        yield
    finally:
        os.environ.pop(API_SERVER)
        if before is not None:
            os.environ[API_SERVER] = before


@contextlib.contextmanager
def explained(url: str, then: str = "") -> Iterator[None]:
    """Raise errors of the client in the body as a RunError with the reason and the remedy.

    Args:
        then: what holds in spite of the failure, as the end of the message.
    """
    end = f"; {then}" if then else ""
    try:
        yield
    except RunError:
        raise
    except AuthenticationError as error:
        is_wrong = "failed" in str(error).partition(":")[0]
        problem = "rejected this token" if is_wrong else "requires a token"
        raise RunError(f"the Ray dashboard at {url} {problem}: {TOKEN_REMEDY}{end}") from error
    except SILENT as error:
        remedy = "start a head with `ray start --head`, or correct --address (a dashboard's port is 8265 by default)"
        raise RunError(f"no Ray dashboard responds at {url}: {_reason(error)}; {remedy}{end}") from error
    except UNREACHABLE as error:
        raise RunError(f"the Ray dashboard at {url} rejected the request: {_reason(error)}{end}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, requests.Timeout | TimeoutError):
        return f"no answer within {DIAL_S:g} to {ANSWER_S:g} s"
    return " ".join(str(root_cause(error)).split())[:300]
