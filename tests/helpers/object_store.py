"""A store that speaks as much of S3 as a reader needs, on 127.0.0.1: listings, HEAD, ranges, and failures on demand."""

from __future__ import annotations

import hashlib
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
