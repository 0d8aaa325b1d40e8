"""The part of the model hub's HTTP interface that downloads use, served from a folder on the loopback interface."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """A data set, and possibly others. Use as a context manager; `url` is what HF_ENDPOINT should be."""

    def __init__(self, folder: Path, repository: str = "owner/set"):
        self.folder, self.repository = folder, repository
        self.folders = {repository: folder}
        """By repository; more may be added."""
        self.refused: dict[str, tuple[int, str]] = {}
        """(status, the hub's code of the error) of repositories that nobody may see."""
        self.tokens: set[str] = set()
        """What requests authorized themselves with."""
        self.requests: list[str] = []
        """Method and path of every request, with the Range header of those that have one."""
        self.gated = False
        self.cut: dict[str, int] = {}
        """Files whose next answer ends after so many bytes."""
        self.changed: dict[str, bytes] = {}
        """Files whose content is not what the listing says."""
        server = self

        class Handler(_Handler):
            hub = server

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def downloads(self) -> list[str]:
        """Files whose content was asked for, in order."""
        mark = f"/resolve/{COMMIT}/"
        return [line.split(mark)[1] for line in self.requests if line.startswith("GET") and mark in line]

    def listing(self, repository: str) -> dict[str, Any]:
        """What the hub says of the repository with `blobs=true`."""
        siblings = []
        folder = self.folders[repository]
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            data = path.read_bytes()
            entry: dict[str, object] = {
                "rfilename": path.relative_to(folder).as_posix(),
                "size": len(data),
                "blobId": _git_hash(data),
            }
            if path.suffix == ".parquet":
                entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def tree(self, repository: str) -> list[dict[str, Any]]:
        """The same as a list of the tree's files."""
        entries = []
        for sibling in self.listing(repository)["siblings"]:
            entry = {"type": "file", "path": sibling["rfilename"], "size": sibling["size"], "oid": sibling["blobId"]}
            if "lfs" in sibling:
                lfs = sibling["lfs"]
                entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            entries.append(entry)
        return entries


def _git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        asked = self.headers.get("Range")
        self.hub.requests.append(f"{self.command} {path}" + (f" {asked}" if asked else ""))
        if self.hub.gated:
            return self._say(403, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        repository = "/".join(path.removeprefix("/api").split("/")[2:4])
        status, code = self.hub.refused.get(repository, (404, "RepoNotFound"))
        if repository not in self.hub.folders or repository in self.hub.refused:
            return self._say(status, b'{"error":"no"}', {"X-Error-Code": code} if code else {})
        if path.startswith("/api/"):
            answer = self.hub.tree(repository) if "/tree/" in path else self.hub.listing(repository)
            return self._say(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        file = self.hub.folders[repository] / name
        if not file.is_file():
            return self._say(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = file.read_bytes()
        tag = hashlib.sha256(data).hexdigest() if file.suffix == ".parquet" else _git_hash(data)
        data = self.hub.changed.get(name, data)
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.hub.cut.pop(name, None) if self.command == "GET" else None
        self._say(206 if asked else 200, data[start:], headers, cut)

    def _say(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
