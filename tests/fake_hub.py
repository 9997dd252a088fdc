"""A Hugging Face Hub on localhost with the API that `huggingface_hub` calls: revisions, trees, files, refusals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Commits of a repository, the newest last. Mutable: tests push to it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    access: str = "open"
    """Or `private`, `gated`."""

    def push(self, files: dict[str, bytes], *refs: str) -> str:
        told = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(files.items())})
        commit = hashlib.sha1(f"{len(self.commits)} {told}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs |= dict.fromkeys(("main", *refs), commit)
        return commit


@dataclass
class FakeHub:
    """What is served, and what was asked for. Mutable: tests change it while it runs."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    """By (`models` or `datasets`, org/name)."""
    requests: list[str] = field(default_factory=list)
    breaks: set[str] = field(default_factory=set)
    """Files whose transfer ends in the middle."""
    status: int = 0
    """Of all replies, if set: an outage."""
    token: str = "secret"

    def repo(self, kind: str, name: str, **settings: str) -> Repo:
        return self.repos.setdefault((kind, name), Repo(**settings))


@contextlib.contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.served.requests.append(f"{self.command} {path}")
        if self.served.status:
            return self._refuse(self.served.status, "")
        if match := _API.fullmatch(path):
            kind, name, what, revision = match.groups()
            if (found := self._find(kind, name, unquote(revision or "main"))) is not None:
                self._say(self._tree(found[1]) if what == "tree" else self._info(name, *found))
        elif match := _FILE.fullmatch(path):
            dataset, name, revision, file = match.groups()
            found = self._find("datasets" if dataset else "models", name, unquote(revision))
            if found is not None:
                self._send_file(unquote(file), *found)
        else:
            self._refuse(404, "RepoNotFound")
        return None

    def _find(self, kind: str, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repo = self.served.repos.get((kind, name))
        is_known = self.headers.get("Authorization") == f"Bearer {self.served.token}"
        if repo is None or (repo.access == "private" and not is_known):
            return self._refuse(404 if is_known else 401, "RepoNotFound")
        if repo.access == "gated" and not is_known:
            return self._refuse(403, "GatedRepo")
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            return self._refuse(404, "RevisionNotFound")
        return commit, repo.commits[commit]

    def _info(self, name: str, commit: str, files: dict[str, bytes]) -> object:
        return {"_id": "0", "id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}

    def _tree(self, files: dict[str, bytes]) -> object:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in files.items()
        ]

    def _send_file(self, file: str, commit: str, files: dict[str, bytes]) -> None:
        if file not in files:
            return self._refuse(404, "EntryNotFound")
        content = files[file]
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        if file in self.served.breaks:
            self.wfile.write(content[start : start + 1])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return None
        self.wfile.write(content[start:])
        return None

    def _say(self, reply: object) -> None:
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
