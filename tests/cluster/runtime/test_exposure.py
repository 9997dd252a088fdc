"""A head that others can reach without a token is refused, before anything is sent to it."""

import http.server
import threading
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest

from actors.errors import RunError
from cluster.runtime import exposure
from cluster.runtime.addresses import ClusterAddress, is_loopback
from cluster.runtime.exposure import ALLOW_OPEN, refuse_open_dashboard, refuse_open_head


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True),
        ("10.0.0.7", False), ("192.168.1.2", False), ("0.0.0.0", False), ("head.example", False), ("", False),
    ],
)  # fmt: skip
def test_only_loopback_is_out_of_reach_of_others(host, answer):
    assert is_loopback(host) == answer


@pytest.fixture(autouse=True)
def routable(monkeypatch):
    """What listens here counts as reachable from elsewhere."""
    monkeypatch.setattr(exposure, "is_loopback", lambda host: False)
    monkeypatch.delenv(ALLOW_OPEN, raising=False)


@contextmanager
def head(code):
    """A GCS that answers every call with this status."""

    class Answers(grpc.GenericRpcHandler):
        def service(self, details):
            def answer(request, context):
                if code is not None:
                    context.abort(code, "no")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Answers()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield ClusterAddress(host="127.0.0.1", port=port, source="RAY_ADDRESS", remedy="")
    finally:
        server.stop(None).wait()


@contextmanager
def dashboard(status):
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Location", "http://login.example/")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("code", [None, grpc.StatusCode.UNIMPLEMENTED])
def test_a_head_that_lets_anyone_in_is_refused_with_the_remedy(code, monkeypatch):
    with head(code) as address:
        with pytest.raises(
            RunError, match=rf"{address} \(RAY_ADDRESS\) asks for no token.*RAY_AUTH_MODE=token"
        ) as told:
            refuse_open_head(address)
        assert f"{ALLOW_OPEN}=1 on a private network" in str(told.value)
        assert "\n" not in str(told.value)
        monkeypatch.setenv(ALLOW_OPEN, "1")
        refuse_open_head(address)


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
def test_a_head_that_asks_for_a_token_is_joined(code):
    with head(code) as address:
        refuse_open_head(address)


def test_a_head_that_does_not_say_is_not_joined():
    with head(grpc.StatusCode.UNAVAILABLE) as address, pytest.raises(RunError, match="did not say within 5 s whether"):
        refuse_open_head(address)


def test_a_dashboard_that_lets_anyone_in_is_refused(monkeypatch):
    with dashboard(200) as url:
        with pytest.raises(RunError, match=r"dashboard at .* asks for no token"):
            refuse_open_dashboard(url)
        monkeypatch.setenv(ALLOW_OPEN, "1")
        refuse_open_dashboard(url)


@pytest.mark.parametrize("status", [401, 403, 302])
def test_a_dashboard_that_asks_who_is_there_is_used(status):
    with dashboard(status) as url:
        refuse_open_dashboard(url)


def test_a_dashboard_that_does_not_answer_is_left_to_who_calls_it():
    refuse_open_dashboard("http://127.0.0.1:9")


def test_loopback_is_not_asked_at_all(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(exposure, "_head_is_open", lambda address: pytest.fail("asked"))
    monkeypatch.setattr(exposure, "_dashboard_is_open", lambda url: pytest.fail("asked"))
    refuse_open_head(ClusterAddress(host="127.0.0.1", port=1, source="", remedy=""))
    refuse_open_dashboard("http://localhost:8265")
