"""A store on 127.0.0.1 that speaks as much of S3 and of Google's storage as a reader needs: listings, what is told of
an object, ranges, and failures on demand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class ObjectStore(ThreadingHTTPServer):
    """Objects by bucket/key; each read that is answered is noted with its range."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.failures: list[int] = []
        """Statuses that the next reads get instead of an answer."""
        self.denies = False
        self.reads: list[tuple[str, str | None]] = []
        self.signed: list[str] = []
        """Headers by which whoever reads says who it is."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    """Serve until the block ends."""
    store = ObjectStore()
    thread = Thread(target=store.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        thread.join()
        store.server_close()


def etag(content: bytes) -> str:
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    server: ObjectStore
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        content = self.server.objects.get(self._path())
        if self.server.denies or content is None:
            self._send(403 if self.server.denies else 404, b"")
        else:
            self._send(200, content, {"ETag": etag(content)}, has_body=False)

    def do_GET(self) -> None:
        if "/storage/v1/b/" in self.path:
            self._answer_google()
            return
        path, query = self._path(), parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        if self.server.denies:
            self._send_error(403, "AccessDenied")
        elif "list-type" in query:
            self._list(path.strip("/"), query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        elif path not in self.server.objects:
            self._send_error(404, "NoSuchKey")
        else:
            self._read(path)

    def _read(self, path: str) -> None:
        wanted = self.headers.get("Range")
        if self.server.failures:
            self._send_error(self.server.failures.pop(0), "InternalError")
            return
        self.server.reads.append((path, wanted))
        self.server.signed += [f"{name}: {value}" for name, value in self.headers.items()]
        content = self.server.objects[path]
        headers = {"ETag": etag(content), "Last-Modified": "Sun, 29 Nov 2026 00:00:00 GMT"}
        if wanted is None:
            self._send(200, content, headers)
            return
        first, last = wanted.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
        self._send(206, part, headers)

    def _list(self, bucket: str, prefix: str, delimiter: str) -> None:
        keys, folders = [], set()
        for path in sorted(self.server.objects):
            owner, key = path.split("/", 1)
            if owner != bucket or not key.startswith(prefix):
                continue
            head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
            if found:
                folders.add(prefix + head + delimiter)
            else:
                keys.append(key)
        body = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-11-29T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(etag(self.server.objects[f'{bucket}/{key}']))}</ETag>"
            f"<Size>{len(self.server.objects[f'{bucket}/{key}'])}</Size></Contents>"
            for key in keys
        ) + "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        head = f"<Name>{bucket}</Name><IsTruncated>false</IsTruncated><KeyCount>{len(keys)}</KeyCount>"
        self._send(200, f"<ListBucketResult>{head}{body}</ListBucketResult>".encode())

    def _answer_google(self) -> None:
        """Answer as the JSON interface of Google's storage: bucket and name stand in the path, the name escaped."""
        place, query = urlsplit(self.path), parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        bucket, _, name = place.path.partition("/b/")[2].partition("/o")
        path = f"{bucket}/{unquote(name.lstrip('/'))}"
        if self.server.denies:
            self._send_json(403, {"error": {"code": 403, "message": "no storage.objects.get access"}})
        elif not name:
            self._list_google(bucket, query.get("prefix", [""])[0], query.get("delimiter", [""])[0])
        elif path not in self.server.objects:
            self._send_json(404, {"error": {"code": 404, "message": "No such object"}})
        elif place.path.startswith("/download/"):
            self._read(path)
        else:
            self._send_json(200, self._told(path))

    def _list_google(self, bucket: str, prefix: str, delimiter: str) -> None:
        start = f"{bucket}/{prefix}"
        paths = [path for path in sorted(self.server.objects) if path.startswith(start)]
        files = [path for path in paths if not delimiter or delimiter not in path.removeprefix(start)]
        folders = {
            prefix + path.removeprefix(start).partition(delimiter)[0] + delimiter
            for path in paths
            if path not in files
        }
        self._send_json(200, {"items": [self._told(path) for path in files], "prefixes": sorted(folders)})

    def _told(self, path: str) -> dict[str, str]:
        bucket, name = path.split("/", 1)
        content, time = self.server.objects[path], "2026-11-29T00:00:00.000Z"
        told = {"kind": "storage#object", "bucket": bucket, "name": name, "size": str(len(content))}
        return told | {"etag": etag(content), "generation": "17", "updated": time, "timeCreated": time}

    def _send_json(self, status: int, plain: object) -> None:
        self._send(status, json.dumps(plain).encode(), {"Content-Type": "application/json"})

    def _path(self) -> str:
        return unquote(urlsplit(self.path).path).lstrip("/")

    def _send_error(self, status: int, code: str) -> None:
        self._send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, has_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass
