"""A web server on loopback that serves files: with ranges and ETags, as an imitation of the hub, and badly on demand."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Web:
    """What is served, and what was asked for.

    Attributes:
        files: contents by path.
        repositories: files by path of each repository of the hub.
        gated: names of repositories whose licence was not accepted.
        breaks: how many bytes are sent before the connection breaks, once for each entry.
        ranges: whether parts of files are served.
        etags: whether versions of files have names.
        commit: of all repositories.
        asked: method, path and range of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    breaks: list[int] = field(default_factory=list)
    ranges: bool = True
    etags: bool = True
    commit: str = COMMIT
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving(web: Web) -> Iterator[Web]:
    """Serve it for a while."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = urlsplit(self.path).path
            web.asked.append((self.command, path, self.headers.get("Range")))
            if path.startswith("/api/models/"):
                return self.api(path.removeprefix("/api/models/").split("/"))
            content, headers = web.files.get(path), {}
            repository, _, rest = path.lstrip("/").partition("/resolve/")
            if rest:
                if repository in web.gated:
                    return self.refuse("GatedRepo", 403)
                content = web.repositories.get(repository, {}).get(rest.partition("/")[2])
                headers["X-Repo-Commit"] = web.commit
            if content is None:
                self.send_error(404)
                return None
            return self.send(content, headers, body)

        def api(self, words: list[str]) -> None:
            repository, kind = "/".join(words[:2]), words[2]
            if repository not in web.repositories:
                return self.refuse("RepoNotFound", 404)
            files = web.repositories[repository]
            if kind == "tree":
                made: object = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest(), "lfs": lfs(content)}
                    for path, content in files.items()
                ]
            else:
                made = {"id": repository, "sha": web.commit, "siblings": [{"rfilename": path} for path in files]}
            return self.send(json.dumps(made).encode(), {"Content-Type": "application/json"}, True)

        def refuse(self, code: str, status: int) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
            tag, asked = f'"{hashlib.sha256(content).hexdigest()}"', self.headers.get("Range")
            first = 0
            if asked and web.ranges and self.headers.get("If-Range", tag) == tag:
                first = int(asked.removeprefix("bytes=").split("-")[0])
                if first >= len(content):
                    self.send_error(416)
                    return
            self.send_response(206 if first else 200)
            if first:
                self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
            for key, value in (headers | ({"ETag": tag} if web.etags else {})).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content) - first))
            self.end_headers()
            if body:
                rest = content[first:]
                self.wfile.write(rest[: web.breaks.pop(0)] if web.breaks else rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lfs(content: bytes) -> dict[str, object]:
    """What the hub says of a large file."""
    return {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}
