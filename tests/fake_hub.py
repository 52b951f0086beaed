"""A hub of one's own: the endpoints of huggingface.co that a pull uses, on 127.0.0.1.

What is imitated: huggingface.co/docs/hub/api, and what huggingface_hub's file_download.py expects
of /resolve/: a redirect to the content, which answers ranges.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@dataclasses.dataclass
class Repo:
    """A repository to serve. `gated`: needs the token "accepted"."""

    files: dict[str, bytes]
    commit: str = COMMIT
    licence: str = "apache-2.0"
    gated: bool = False
    sha256: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where the hub is to promise another hash than the content's."""


class FakeHub:
    """Serves `repos` by owner/name while its `with` lasts. `requests` are (method, path, range).

    cuts: break the connection after so many bytes of content, once for each. ignore_ranges: answer
    200 with everything. status: answer every request so. tokens: the Authorization headers seen at
    the hub; foreign_tokens: those that leaked to the content server.
    """

    def __init__(self, repos: dict[str, Repo]):
        self.repos = repos
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.foreign_tokens: set[str | None] = set()
        self.cuts: list[int] = []
        self.ignore_ranges = False
        self.status: list[int] = []
        self._hub = self._serve(_HubHandler)
        self._content = self._serve(_ContentHandler)
        self.endpoint = f"http://127.0.0.1:{self._hub.server_address[1]}"
        self.content = f"http://127.0.0.1:{self._content.server_address[1]}"

    def _serve(self, handler: type[_Handler]) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (handler,), {"fake": self}))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def served(self, name: str) -> list[str | None]:
        """The ranges in which the content of file `name` was asked for."""
        return [found for _, path, found in self.requests if path == f"/content/{name}"]

    def __enter__(self) -> FakeHub:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in (self._hub, self._content):
            server.shutdown()
            server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def note(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.fake.requests.append((self.command, path, self.headers.get("Range")))
        return path

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        if self.path.startswith("/api/agent"):  # huggingface_hub asking for itself
            return self.send(404)
        path = self.note()
        self.fake.tokens.add(self.headers.get("Authorization"))
        if self.fake.status:
            return self.send(self.fake.status.pop(0))
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        if match:
            return self.model_info(match[1], match[2])
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if match:
            return self.resolve(*match.groups())
        return self.send(404)

    def repo(self, name: str, revision: str) -> Repo | None:
        """The repository, or None once the refusal has been sent."""
        repo = self.fake.repos.get(name)
        if repo is None:
            self.send(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        elif revision not in ("main", repo.commit):
            self.send(404, X_Error_Code="RevisionNotFound")
        else:
            return repo
        return None

    def model_info(self, name: str, revision: str) -> None:
        if (repo := self.repo(name, revision)) is None:
            return
        siblings = []
        for file, content in repo.files.items():
            sha256 = repo.sha256.get(file, hashlib.sha256(content).hexdigest())
            large = file.endswith((".safetensors", ".gguf", ".bin"))
            lfs = {"size": len(content), "sha256": sha256, "pointerSize": 134}
            siblings.append(
                {
                    "rfilename": file,
                    "size": len(content),
                    "blobId": hashlib.sha1(content).hexdigest(),
                    **({"lfs": lfs} if large else {}),
                }
            )
        info = {
            "id": name,
            "sha": repo.commit,
            "siblings": siblings,
            "gated": "manual" if repo.gated else False,
            "tags": [],
            "cardData": {"license": repo.licence},
        }
        self.send(200, json.dumps(info).encode(), Content_Type="application/json")

    def resolve(self, name: str, revision: str, file: str) -> None:
        if (repo := self.repo(name, revision)) is None:
            return
        if repo.gated and self.headers.get("Authorization") != "Bearer accepted":
            self.send(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        elif file not in repo.files:
            self.send(404, X_Error_Code="EntryNotFound")
        else:
            location = f"{self.fake.content}/content/{file}?repo={name}"
            self.send(302, Location=location, X_Repo_Commit=repo.commit)


class _ContentHandler(_Handler):
    def do_GET(self) -> None:
        path = self.note()
        self.fake.foreign_tokens.add(self.headers.get("Authorization"))
        repo = self.fake.repos[urlsplit(self.path).query.removeprefix("repo=")]
        content = repo.files[path.removeprefix("/content/")]
        match = _RANGE.fullmatch(self.headers.get("Range") or "")
        if match is None or self.fake.ignore_ranges:
            self.send_response(200)
            body = content
        else:
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            body = content[first : last + 1]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.fake.cuts and self.fake.cuts[0] < len(body):
            self.wfile.write(body[: self.fake.cuts.pop(0)])
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):  # The reader had enough.
            self.wfile.write(body)
