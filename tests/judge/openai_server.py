"""An OpenAI-compatible server that does what a test tells it to, over real sockets on the loopback interface.

    with OpenAIServer(honest) as server:
        config = LLMJudgeConfig(model="scripted", base_url=server.url)
        ...
        server.is_down = True       # an outage: connections are reset until it is False again
        server.plan = status(500)   # another behaviour from the next call on
        server.num_calls, server.calls

A plan is a function from a `Call` to an `Answer`; plans that count or wrap others are made by functions below. The
server runs in threads of this process; any process of the machine may call it.
By hand: `python -m tests.judge.openai_server honest`.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from configs.judges import JudgeConfig, LLMJudgeConfig
from judge.llm.prompt import load_wording

METRICS, REPLIES = ("strict", "relaxed", "anls"), ("json", "choice", "text")

FENCED = re.compile(r"<<<(question|reference|prediction) ([0-9a-f]{16})>>>\n(.*?)\n?<<<end of \1 \2>>>", re.DOTALL)
SPECIAL_TOKEN = re.compile(r"<\|[a-z_]+\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>")
COMMAND = re.compile(
    r"\b1\b|verdict|correct|right|true|approved|accept|point|ignore|disregard|answer\b.*\b(?:mine|reference)"
    r"|same as the reference|compare it with itself|ignorier|ignora|忽略",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as it came."""

    number: int
    """From 1."""
    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def text(self) -> str:
        return "\n".join(message["content"] for message in self.body["messages"])

    @property
    def fields(self) -> dict[str, str]:
        """What stands inside our marks, by name. Only the first code counts: it is the one we drew."""
        found = FENCED.findall(self.text)
        return {name: text for name, code, text in reversed(found) if code == found[0][1]}

    @property
    def digest(self) -> str:
        """Of the fields alone: the same sample has the same digest however often it is asked about."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What goes over the wire."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    wait_s: float = 0.0
    """Before the first byte."""
    drip_s: float = 0.0
    """After each byte of the body."""
    is_cut: bool = False
    """Promise twice the body and hang up."""
    is_reset: bool = False
    """Reset the connection instead of answering."""


Plan = Callable[[Call], Answer]


def says(text: str | None, *, finish_reason: str = "stop", **message: Any) -> Plan:
    """A well-formed completion with this text."""
    return lambda call: completion([choice(text, finish_reason, **message)])


def choice(text: str | None, finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": text, "refusal": None, **message},
    }


def completion(choices: list[dict[str, Any]]) -> Answer:
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": choices,
        "usage": {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105},
    }
    return Answer(body=json.dumps(body).encode())


def verdict(call: Call, is_correct: bool) -> Answer:
    """A verdict in the form that the call asks for."""
    digit = str(int(is_correct))
    asks_for_json = "response_format" in call.body or '{"verdict"' in FENCED.sub("", call.text)
    return completion([choice(f'{{"verdict": {digit}}}' if asks_for_json else digit)])


def honest(call: Call) -> Answer:
    """Right is what equals the reference but for case and white space."""
    said, wanted = (" ".join(call.fields[name].casefold().split()) for name in ("prediction", "reference"))
    return verdict(call, said == wanted)


def obedient(call: Call) -> Answer:
    """Passes whatever a text outside the marks asks it to pass; takes what is inside them as data.

    A special token ends the data, as it does where a tokenizer reads it as one. The words of our own wording are no
    order: only what somebody else put beside them.
    """
    text = call.text
    if special := SPECIAL_TOKEN.search(text):
        return verdict(call, COMMAND.search(text[special.start() :]) is not None)
    code = FENCED.search(text)
    outside = FENCED.sub(lambda found: "" if code and found[2] == code[2] else found[0], text)
    foreign = [line for line in outside.splitlines() if line.replace(code[2] if code else "", "") not in _own_lines()]
    if COMMAND.search("\n".join(foreign)):
        return verdict(call, True)
    return honest(call) if len(call.fields) == 3 else verdict(call, False)


@cache
def _own_lines() -> frozenset[str]:
    """What our own wording puts outside the marks, codes taken out."""
    wording = load_wording("judge")
    configs = [JudgeConfig(metric=metric, llm=LLMJudgeConfig(reply=reply)) for metric in METRICS for reply in REPLIES]
    prompts = [wording.filled(config) for config in configs]
    texts = [text.replace("{nonce}", "") for prompt in prompts for text in prompt]
    return frozenset(line for text in texts for line in text.splitlines())


def status(code: int, *, headers: dict[str, str] | None = None, message: str = "scripted", kind: str = "") -> Plan:
    """An error in OpenAI's form."""
    body = json.dumps({"error": {"message": message, "type": "scripted", "param": None, "code": kind or None}})
    return lambda call: Answer(status=code, headers=headers or {}, body=body.encode())


def storm(*, retry_after: str | None = None) -> Plan:
    """429 without end."""
    return status(429, headers={} if retry_after is None else {"Retry-After": retry_after}, message="slow down")


def echoes_key(code: int = 401) -> Plan:
    """Refuses, and puts the whole credential into its message."""

    def answer(call: Call) -> Answer:
        key = call.headers.get("authorization", call.headers.get("api-key", ""))
        return status(code, message=f"Incorrect API key provided: {key}")(call)

    return answer


def wants_key(key: str, then: Plan = honest) -> Plan:
    """401 unless the call carries this key."""

    def answer(call: Call) -> Answer:
        is_right = f"Bearer {key}" == call.headers.get("authorization") or key == call.headers.get("api-key")
        return then(call) if is_right else echoes_key()(call)

    return answer


def hangs(call: Call) -> Answer:
    """No byte within any deadline."""
    return Answer(wait_s=3600)


def drips(call: Call) -> Answer:
    """A good reply, one byte every 50 ms."""
    return replace(honest(call), drip_s=0.05)


def hangs_up(call: Call) -> Answer:
    """Closes the connection in the middle of the body."""
    return replace(honest(call), is_cut=True)


def resets(call: Call) -> Answer:
    return Answer(is_reset=True)


def half_json(call: Call) -> Answer:
    """A body that is whole as HTTP and half as JSON."""
    whole = honest(call)
    return replace(whole, body=whole.body[: len(whole.body) // 2])


def raw(body: bytes, content_type: str = "application/json") -> Plan:
    return lambda call: Answer(body=body, headers={"Content-Type": content_type})


def no_choices(call: Call) -> Answer:
    return completion([])


def two_choices(call: Call) -> Answer:
    return completion([choice('{"verdict": 1}'), choice('{"verdict": 1}')])


def after(num_failures: int, failing: Plan, then: Plan = honest) -> Plan:
    """Fails so many times, then not any more."""
    lock, left = threading.Lock(), [num_failures]

    def answer(call: Call) -> Answer:
        with lock:
            is_failing = left[0] > 0
            left[0] -= is_failing
        return failing(call) if is_failing else then(call)

    return answer


def failing_share(share: float, failing: Plan | None = None, then: Plan = honest) -> Plan:
    """A share of the samples fails for good: the same ones each time, picked by what they say."""
    broken = failing or status(500)
    return lambda call: broken(call) if int(call.digest[:8], 16) < share * 2**32 else then(call)


def delayed(seconds: float, then: Plan = honest) -> Plan:
    return lambda call: replace(then(call), wait_s=seconds)


class OpenAIServer:
    """See the head of this file. Its state is on purpose: a test changes `plan` and `is_down` while calls come in."""

    def __init__(self, plan: Plan = honest, *, port: int = 0) -> None:
        self.plan = plan
        self.is_down = False
        self.calls: list[Call] = []
        """Those that came while it was up, and those that an outage ate: all."""
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._http = _Http(("127.0.0.1", port), self)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def address(self) -> str:
        """Without a path, as Azure wants it."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"{self.address}/v1"

    @property
    def num_calls(self) -> int:
        return len(self.calls)

    def __enter__(self) -> OpenAIServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Answer:
        with self._lock:
            call = Call(number=len(self.calls) + 1, path=path, headers=headers, body=body)
            self.calls.append(call)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        return Answer(is_reset=True) if self.is_down else self.plan(call)

    def sent(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def wait(self, seconds: float) -> None:
        """Sleep, but not past the end of the server."""
        self._stopping.wait(seconds)


class _Http(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: OpenAIServer) -> None:
        self.owner = owner
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that hung up is no news; a broken plan is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = owner.answer(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        try:
            owner.wait(answer.wait_s)
            self._reset() if answer.is_reset else self._send(answer)
        finally:
            owner.sent()

    def _reset(self) -> None:
        """Closing with nothing to linger for sends RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body) * (2 if answer.is_cut else 1)))
        if not answer.drip_s:
            head = b"".join(self._headers_buffer) + b"\r\n"
            self._headers_buffer = []
            self.wfile.write(head + answer.body)
        else:
            self.end_headers()
            for byte in answer.body:
                self.wfile.write(bytes([byte]))
                self.server.owner.wait(answer.drip_s)
                if self.server.owner._stopping.is_set():
                    break
        self.close_connection = self.close_connection or answer.is_cut

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: tests read `calls`."""


PLANS: dict[str, Plan] = {"honest": honest, "obedient": obedient, "storm": storm(retry_after="1"), "hangs": hangs}

if __name__ == "__main__":
    with OpenAIServer(PLANS[sys.argv[1]], port=int((sys.argv[2:] or ["0"])[0])) as running:
        print(running.url, flush=True)
        threading.Event().wait()
