"""A cluster that cannot be joined costs one line within ten seconds, in the process that wanted to join it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from actors.errors import RunError
from cluster.runtime.connect import check_address, own_addresses, signals_kept

PATIENCE_S = 20.0
"""Ten seconds, and what it takes to import Ray on a busy machine."""


@contextmanager
def listener(answer: bytes | None):
    """A port at which something listens that is not Ray, or that never says anything."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        program = f"""
import socket
server = socket.socket(fileno={server.fileno()})
kept = []
while True:
    kept.append(server.accept()[0])
    if {answer!r}:
        kept[-1].sendall({answer!r})
        kept.pop().close()
"""
        with subprocess.Popen([sys.executable, "-c", program], pass_fds=[server.fileno()]) as process:
            try:
                yield server.getsockname()[1]
            finally:
                process.kill()


def refusal(monkeypatch, address: str) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    started = time.monotonic()
    with pytest.raises(RunError) as failure:
        check_address()
    assert time.monotonic() - started < PATIENCE_S
    told = str(failure.value)
    assert address in told
    assert "\n" not in told
    return told


def test_a_head_that_is_not_there_is_told(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "Connection refused" in refusal(monkeypatch, f"127.0.0.1:{port}")


def test_a_name_that_is_not_known_is_told(monkeypatch):
    assert "no Ray cluster responds" in refusal(monkeypatch, "no-such-host.invalid:6379")


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"])
def test_a_port_of_something_else_is_told(answer, monkeypatch):
    with listener(answer) as port:
        told = refusal(monkeypatch, f"127.0.0.1:{port}")
    assert "did not answer as Ray" in told or "no Ray cluster responds" in told


def test_the_note_of_a_dead_head_is_told_with_the_way_to_clear_it(monkeypatch, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    with pytest.raises(RunError, match=r"127\.0\.0\.1:1 .*ray_current_cluster names it.*`ray stop` clears this note"):
        check_address()


def test_without_an_address_there_is_nothing_to_check(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    check_address()


@pytest.mark.parametrize("client", ["requests", "httpx", "urllib.request"])
def test_no_library_asks_a_proxy_for_loopback(client):
    """The proxy is a port where nobody listens: asked for it, each of these would fail otherwise."""
    programs = {
        "requests": "import requests; print(requests.get(url).text)",
        "httpx": "import httpx; print(httpx.get(url).text)",
        "urllib.request": "import urllib.request; print(urllib.request.urlopen(url).read().decode())",
    }
    program = f"""
import http.server, threading
import cluster

class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200), self.send_header("Content-Length", "5"), self.end_headers(), self.wfile.write(b"hello")
    def log_message(self, *args): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Hello)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = "http://127.0.0.1:%d/" % server.server_port
{programs[client]}
"""
    proxies = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | proxies
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["hello"], done.stderr[-500:]


def test_this_machine_has_an_address():
    assert all(address.count(".") == 3 or ":" in address for address in own_addresses())


def take_over(number, frame):
    """What Ray does with SIGTERM in a driver."""
    sys.exit(number)


def test_signals_are_those_of_the_command_again_once_ray_has_started():
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))

    def stopped_in_ray() -> None:
        with signals_kept():
            signal.signal(signal.SIGTERM, take_over)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    try:
        with signals_kept():
            signal.signal(signal.SIGTERM, take_over)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(RunError, match="stopped while Ray was starting"):
            stopped_in_ray()
        assert seen == [signal.SIGTERM, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
