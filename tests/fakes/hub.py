# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the model hub: the part of its HTTP interface that huggingface_hub, transformers and vLLM use.

A repository's files are held as bytes by revision; names of commits and contents are hashes, as at the hub. It fails as
the hub does: gated and missing repositories, rate limits, broken connections, and it can be made slow.

    python3 tests/fakes/hub.py PORT OWNER/NAME=FOLDER ...   serve folders; GATED=OWNER/NAME and RATE=BYTES_PER_SECOND
                                                           in the environment make one gated and all of them slow
"""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import os
import re
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

MAIN = "main"
CHUNK = 64 * 1024
LFS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def safetensors(tensors: Mapping[str, bytes]) -> bytes:
    """Return a file in the safetensors format with these tensors of single bytes."""
    header, start = {}, 0
    for name, data in tensors.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensors.values())


def sharded(count: int, size: int) -> dict[str, bytes]:
    """Return weights in C(count) files of about C(size) bytes each, and their index."""
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    files = {name: safetensors({f"layer.{name}": os.urandom(size)}) for name in names}
    index = {"metadata": {"total_size": count * size}, "weight_map": {f"layer.{name}": name for name in names}}
    return {**files, "model.safetensors.index.json": json.dumps(index).encode()}


def folder(path: Path) -> dict[str, bytes]:
    """Return the files below a folder by their paths in it."""
    found = sorted(entry for entry in path.rglob("*") if entry.is_file())
    return {str(entry.relative_to(path)): entry.read_bytes() for entry in found}


@dataclass
class Repository:
    """A model's repository.

    Attributes:
        revisions: branch or tag to the files by their paths.
        token: that opens it; empty for everybody.
        gated: whether who lacks the token is told that it is gated, or that there is no such thing.
        claimed: sizes that are told instead of the true ones, by path.
    """

    revisions: dict[str, dict[str, bytes]]
    token: str = ""
    gated: bool = True
    claimed: dict[str, int] = field(default_factory=dict)

    def commit(self, revision: str) -> str:
        """Return the commit that a revision is; empty when there is none."""
        for name, files in self.revisions.items():
            text = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())})
            commit = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            if revision in (name, commit):
                return commit
        return ""

    def files(self, revision: str) -> dict[str, bytes]:
        """Return the files of a revision."""
        commit = self.commit(revision)
        return next(files for name, files in self.revisions.items() if self.commit(name) == commit)


def etag(path: str, data: bytes) -> str:
    """Return the name of a file's content: the SHA-256 of a large one, git's id of another."""
    if path.endswith(LFS):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Trouble:
    """What goes wrong with requests whose address matches.

    Attributes:
        pattern: regular expression searched in method and address, as C(GET /a/b/resolve/main/config.json).
        times: how many of them.
        status: of the answer; 0 sends C(cut) bytes of the file and breaks the connection.
        retry_after: seconds that the answer asks to wait.
        cut: bytes.
    """

    pattern: str
    times: int = 1
    status: int = 0
    retry_after: int = 0
    cut: int = 0


class Hub:
    """A hub on the loopback interface.

    Args:
        repositories: by name.
        port: 0 for a free one.
    """

    def __init__(self, repositories: dict[str, Repository], port: int = 0) -> None:
        self.repositories = repositories
        self.troubles: list[Trouble] = []
        # Bytes a second of each connection, and of all together; 0 for no limit.
        self.rate = 0
        self.line = 0
        self.sent = 0
        self.log: list[str] = []
        self.tokens: set[str] = set()
        self._lock = threading.Lock()
        self._line_is_free = 0.0
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), type("Bound", (Handler,), {"hub": self}))
        self.server.daemon_threads = True

    @property
    def url(self) -> str:
        """Its address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def trouble(self, request: str) -> Trouble | None:
        """Return what goes wrong with this request, and count it."""
        with self._lock:
            self.log.append(request)
            for entry in self.troubles:
                if entry.times > 0 and re.search(entry.pattern, request):
                    entry.times -= 1
                    return entry
        return None

    def count(self, size: int) -> None:
        """Count bytes of answers, and wait until the line has taken them."""
        with self._lock:
            self.sent += size
            now = time.monotonic()
            if self.line:
                self._line_is_free = max(self._line_is_free, now) + size / self.line
            wait = self._line_is_free - now
        if wait > 0:
            time.sleep(wait)

    def asked(self, pattern: str) -> list[str]:
        """Return the requests so far that match."""
        return [entry for entry in self.log if re.search(pattern, entry)]

    @contextlib.contextmanager
    def running(self) -> Iterator[Hub]:
        """Serve inside the block."""
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()
            thread.join()


class Refused(Exception):
    """An answer other than 200: its status and the hub's own name of the error."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        """Answer a GET."""
        self._answer()

    def do_HEAD(self) -> None:
        """Answer a HEAD."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._answer()

    def log_message(self, *_arguments: Any) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        trouble = self.hub.trouble(f"{self.command} {address.path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.tokens |= {token} - {""}
        try:
            if trouble and trouble.status:
                raise Refused(trouble.status, "", "so it was asked for")
            path = unquote(address.path)
            if path.startswith("/api/models/"):
                self._tell(path.removeprefix("/api/models/"), token, body)
            else:
                self._give(path.lstrip("/"), token, trouble)
        except Refused as refused:
            self._send(
                refused.status,
                json.dumps({"error": str(refused)}).encode(),
                {
                    "Content-Type": "application/json",
                    **({"X-Error-Code": refused.code} if refused.code else {}),
                    "X-Error-Message": str(refused),
                    **({"Retry-After": str(trouble.retry_after)} if trouble and trouble.retry_after else {}),
                },
            )

    def _repository(self, name: str, token: str, *, content: bool) -> Repository:
        """Return a repository; of a gated one everybody may know what it holds, as at the hub."""
        repository = self.hub.repositories.get(name)
        closed = repository is not None and repository.token not in ("", token)
        if repository is None or (closed and not repository.gated):
            raise Refused(401 if not token else 404, "RepoNotFound", "Repository not found")
        if closed and content:
            raise Refused(401 if not token else 403, "GatedRepo", f"Access to model {name} is restricted.")
        return repository

    def _tell(self, path: str, token: str, body: bytes) -> None:
        """Answer what the API knows of a repository."""
        match = re.fullmatch(r"([^/]+/[^/]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?", path)
        if not match:
            raise Refused(404, "", "no such thing")
        name, kind, revision, below = match[1], match[2] or "revision", match[3] or MAIN, match[4] or ""
        repository = self._repository(name, token, content=False)
        commit = repository.commit(revision)
        if not commit:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.files(revision)
        entries = [_entry(file, data, repository.claimed.get(file)) for file, data in sorted(files.items())]
        if kind == "revision":
            document: Any = {"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "tags": []}
            document |= {"downloads": 0, "likes": 0, "siblings": [_sibling(entry) for entry in entries]}
        elif kind == "tree":
            document = [entry for entry in entries if entry["path"].startswith(below)]
            if "recursive" not in parse_qs(urlsplit(self.path).query):
                document = [entry for entry in document if "/" not in entry["path"][len(below) :].lstrip("/")]
        else:
            sent = json.loads(body) if body[:1] == b"{" else parse_qs(body.decode())
            document = [entry for entry in entries if entry["path"] in sent.get("paths", [])]
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _give(self, path: str, token: str, trouble: Trouble | None) -> None:
        """Answer with a file, or a part of it."""
        match = re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not match:
            raise Refused(404, "", "no such thing")
        repository = self._repository(match[1], token, content=True)
        commit = repository.commit(match[2])
        if not commit:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {match[2]}")
        data = repository.files(match[2]).get(match[3])
        if data is None:
            raise Refused(404, "EntryNotFound", "Entry not found")
        name = etag(match[3], data)
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if match[3].endswith(LFS):
            headers |= {"X-Linked-ETag": f'"{name}"', "X-Linked-Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(wanted[1]) if wanted else 0
        end = int(wanted[2]) + 1 if wanted and wanted[2] else len(data)
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._send(206 if wanted else 200, data[start:end], headers, trouble.cut if trouble else None)

    def _send(self, status: int, data: bytes, headers: Mapping[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        rest = memoryview(data if cut is None else data[:cut])
        with contextlib.suppress(ConnectionError):
            while rest:
                self.wfile.write(rest[:CHUNK])
                self.hub.count(len(rest[:CHUNK]))
                rest = rest[CHUNK:]
                if self.hub.rate:
                    time.sleep(CHUNK / self.hub.rate)
        if cut is not None:
            self.close_connection = True


def _entry(path: str, data: bytes, claimed: int | None) -> dict[str, Any]:
    size = len(data) if claimed is None else claimed
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    lfs = {"lfs": {"oid": etag(path, data), "size": size, "pointerSize": 134}} if path.endswith(LFS) else {}
    return {"type": "file", "path": path, "size": size, "oid": git, **lfs}


def _sibling(entry: Mapping[str, Any]) -> dict[str, Any]:
    lfs = entry.get("lfs")
    told = {"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 134}} if lfs else {}
    return {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], **told}


def main(arguments: list[str]) -> None:
    """Serve folders until ended."""
    gated, token = os.environ.get("GATED", ""), os.environ.get("GATED_TOKEN", "hf_opens_it")
    repositories = {}
    for argument in arguments[1:]:
        name, _equals, path = argument.partition("=")
        repositories[name] = Repository({MAIN: folder(Path(path))}, token=token if name == gated else "")
    hub = Hub(repositories, int(arguments[0]))
    hub.rate = int(os.environ.get("RATE") or 0)
    hub.server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
