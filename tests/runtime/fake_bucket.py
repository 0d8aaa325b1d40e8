"""A server on loopback that speaks as much of Cloud Storage's JSON API as the clients of checkpoints use.

Buckets exist as soon as they are named. Objects live in memory, with generations, so that writes under a condition
(`ifGenerationMatch`) are refused as the real service refuses them.
"""

from __future__ import annotations

import base64
import contextlib
import email
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback import Server, serving

NOW = "2026-01-01T00:00:00.000Z"


class Bucket(Server):
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[tuple[str, str], tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, str, bytearray]] = {}
        self.generation = 1
        self.lock = threading.RLock()
        self.unknown: list[str] = []

    def environment(self) -> dict[str, str]:
        """What leads the clients (gcsfs, Google's own, TensorStore) here."""
        clients = {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}
        return clients | {"GOOGLE_CLOUD_PROJECT": "p", "NO_GCE_CHECK": "true"}  # nobody to ask for credentials

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def names(self, bucket: str) -> list[str]:
        return sorted(name for there, name in self.objects if there == bucket)

    def put(self, bucket: str, name: str, data: bytes, condition: str | None) -> dict[str, Any] | None:
        """The new object's description, or None when the condition does not hold."""
        with self.lock:
            there = self.objects.get((bucket, name), (b"", 0))[1]
            if condition is not None and int(condition) != there:
                return None
            self.generation += 1
            self.objects[bucket, name] = (bytes(data), self.generation)
            return self.describe(bucket, name)

    def describe(self, bucket: str, name: str) -> dict[str, Any]:
        data, generation = self.objects[bucket, name]
        return {
            "kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(data)),
            "generation": str(generation), "metageneration": "1", "updated": NOW, "timeCreated": NOW,
            "contentType": "application/octet-stream", "storageClass": "STANDARD",
            "id": f"{bucket}/{name}/{generation}",
            "md5Hash": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(), "etag": "e",
        }  # fmt: skip

    def listed(self, bucket: str, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter, start = query.get("prefix", ""), query.get("delimiter"), query.get("startOffset", "")
        items, folders = [], set()
        for name in self.names(bucket):
            if not name.startswith(prefix) or name < start:
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            rest = name[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest[: rest.index(delimiter) + 1])
            else:
                items.append(self.describe(bucket, name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_: Any) -> None:
        """Nothing is said."""

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, reply, headers = self.route(method, self.path, body)
        data = reply if isinstance(reply, bytes) else b"" if reply is None else json.dumps(reply).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def route(self, method: str, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        parts = urlsplit(path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        place = parts.path.removeprefix("/download")
        plain = {"Content-Type": "application/json"}
        if place.startswith("/batch"):
            return self.batch(body)
        if found := re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", place):
            return self.upload(method, found[1], query, body)
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)(/storageLayout)?", place):
            layout = {"hierarchicalNamespace": {"enabled": False}, "location": "US"}
            return 200, {"kind": "storage#bucket", "name": found[1], "id": found[1], **layout}, plain
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o", place):
            return 200, self.server.listed(found[1], query), plain
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", place):
            data = self.server.objects.get((found[1], unquote(found[2])))
            if data is None:
                return self.error(404)
            made = self.server.put(found[3], unquote(found[4]), data[0], None)
            rewritten = {"kind": "storage#rewriteResponse", "done": True, "resource": made, "objectSize": made["size"],
                         "totalBytesRewritten": made["size"]}  # fmt: skip
            return 200, rewritten if "rewriteTo" in place else made, plain
        if found := re.fullmatch(r"/storage/v1/b/([^/]+)/o/([^/]+)", place):
            return self.object(method, found[1], unquote(found[2]), query)
        self.server.unknown.append(f"{method} {path}")
        return self.error(404)

    def object(self, method: str, bucket: str, name: str, query: dict[str, str]) -> tuple[int, Any, dict[str, str]]:
        with self.server.lock:
            found = self.server.objects.get((bucket, name))
            if found is None:
                return self.error(404)
            data, generation = found
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                return self.error(412)
            if method == "DELETE":
                del self.server.objects[bucket, name]
                return 204, None, {}
            if query.get("ifGenerationNotMatch") == str(generation):
                return 304, None, {}
            if query.get("alt") != "media":
                return 200, self.server.describe(bucket, name), {"Content-Type": "application/json"}
        headers = {"Content-Type": "application/octet-stream", "X-Goog-Generation": str(generation)}
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or ""):
            size = len(data)
            first = int(wanted[1]) if wanted[1] else max(size - int(wanted[2]), 0)
            last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
            if first >= size:
                return self.error(416)
            return 206, data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"}
        return 200, data, headers

    def upload(self, method: str, bucket: str, query: dict[str, str], body: bytes) -> tuple[int, Any, dict[str, str]]:
        kind, name = query.get("uploadType"), query.get("name")
        condition = query.get("ifGenerationMatch")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            described, content = email.message_from_bytes(head + body).get_payload()
            name = json.loads(described.get_payload(decode=True))["name"]
            start = body.index(b"\r\n\r\n", body.index(described.get_payload(decode=True).strip())) + 4
            boundary = b"\r\n--" + content.get_content_type().encode()[:0] + self.boundary()
            body = body[start : body.rindex(boundary)]
        elif kind == "resumable":
            return self.resumable(method, bucket, query, body)
        made = self.server.put(bucket, str(name), body, condition)
        return (200, made, {"Content-Type": "application/json"}) if made else self.error(412)

    def boundary(self) -> bytes:
        found = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])
        return found[1].encode() if found else b""

    def resumable(
        self, method: str, bucket: str, query: dict[str, str], body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        if "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            number = f"u{len(self.server.uploads)}"
            self.server.uploads[number] = (bucket, name, bytearray())
            address = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
            return 200, None, {"Location": address}
        there, name, data = self.server.uploads[query["upload_id"]]
        data += body
        if (self.headers.get("Content-Range") or "").endswith("/*"):
            return 308, None, {"Range": f"bytes=0-{len(data) - 1}"}
        return 200, self.server.put(there, name, bytes(data), None), {"Content-Type": "application/json"}

    def batch(self, body: bytes) -> tuple[int, Any, dict[str, str]]:
        lines = re.findall(rb"^(DELETE|GET) (\S+) HTTP/1.1", body, re.MULTILINE)
        replies = []
        for number, (method, path) in enumerate(lines, start=1):
            status, _, _ = self.route(method.decode(), urlsplit(path.decode()).path, b"")
            replies.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n\r\n"
                f"HTTP/1.1 {status} OK\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        return 200, ("".join(replies) + "--batch--").encode(), {"Content-Type": "multipart/mixed; boundary=batch"}

    def error(self, status: int) -> tuple[int, Any, dict[str, str]]:
        text = {404: "Not Found", 412: "Precondition Failed", 416: "Range"}[status]
        return status, {"error": {"code": status, "message": text}}, {"Content-Type": "application/json"}


def running() -> contextlib.AbstractContextManager[Bucket]:
    return serving(Bucket())
