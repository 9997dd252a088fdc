"""A dashboard that does not answer costs seconds and one line."""

import http.server
import socket
import threading
import time

import pytest

from actors.errors import RunError
from cluster.jobs import dashboard
from cluster.jobs.dashboard import dashboard_url, open_dashboard


@pytest.fixture(autouse=True)
def no_token_of_this_machine(monkeypatch):
    """Ray settles once per process whether it uses one."""
    used: list[bool] = []
    monkeypatch.setattr(dashboard, "use_own_token", lambda: used.append(True))
    return used


@pytest.mark.parametrize(
    ("given", "url"),
    [("127.0.0.1:8265", "http://127.0.0.1:8265"), ("https://ray.example/x/", "https://ray.example/x")],
)
def test_an_address_is_a_url(given, url):
    assert dashboard_url(given) == url


@pytest.mark.parametrize("given", ["10.0.0.1:6379", "ray://10.0.0.1:10001", "", "http://"])
def test_what_ray_would_search_for_minutes_is_refused(given):
    with pytest.raises(ValueError, match=r"write the URL of the head's dashboard, such as http://10\.0\.0\.1:8265"):
        dashboard_url(given)


def test_a_password_in_the_address_is_not_repeated():
    with pytest.raises(ValueError, match="must hold no password") as refused:
        dashboard_url("https://user:hunter2@ray.example")
    assert "hunter2" not in str(refused.value)


def test_the_address_counts_not_what_rays_variables_name(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # by which Ray would look for its control service
    started = time.monotonic()
    with pytest.raises(RunError, match=r"no Ray dashboard responds at http://127\.0\.0\.1:1: .*ray start --head"):
        open_dashboard("http://127.0.0.1:1")
    assert time.monotonic() - started < 5


def test_a_token_of_this_machine_goes_to_no_other(no_token_of_this_machine, monkeypatch):
    monkeypatch.setattr(dashboard, "_Client", lambda url: url)
    open_dashboard("https://ray.example")
    assert no_token_of_this_machine == []
    open_dashboard("http://127.0.0.1:8265")
    assert no_token_of_this_machine == [True]


def test_a_listener_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(dashboard, "ANSWER_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(RunError, match="no Ray dashboard responds at"):
            open_dashboard(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(("status", "words"), [(401, "requires a token: set RAY_AUTH"), (403, "rejected this token")])
def test_a_dashboard_that_wants_a_token_is_told_with_the_way_to_set_it(status, words):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(RunError, match=words) as refused:
                open_dashboard(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.shutdown()
    assert "\n" not in str(refused.value)
    assert "RAY_AUTH_TOKEN_PATH" in str(refused.value)
