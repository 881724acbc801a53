"""A proxy in front of an S3 server that breaks chosen requests, and no other.

    store -> proxy -> moto
              |  plan: break the n-th request of a kind in a given way, and some that follow
              |  seen: how many requests of each kind came

Kinds are ``put``, ``create`` (a put that must not overwrite), ``get``, ``head``, ``list``,
``delete``, and of uploads in parts ``begin``, ``part``, ``complete`` and ``abort``.
"""

import collections
import contextlib
import http.client
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

ANSWERS = {
    "400": (400, "InvalidRequest"),
    "403": (403, "AccessDenied"),
    "404": (404, "NoSuchBucket"),
    "409": (409, "ConditionalRequestConflict"),
    "429": (429, "TooManyRequests"),
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
}
ANY_KIND = [*(fault for fault in ANSWERS if fault > "404"), "slow", "reset", "lost"]
OF_BODIES = ["truncated", "short", "flipped"]  # ends early; says so, without a checksum; one bit
SLOW = 1.0  # seconds


def kind_of(method: str, path: str, headers) -> str:
    """Name what a request does."""
    url = urlsplit(path)
    query = parse_qs(url.query, keep_blank_values=True)
    if "uploads" in query:
        return "begin"
    if "uploadId" in query:
        return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[method]
    if method == "PUT" and "If-None-Match" in headers:
        return "create"
    if method == "GET" and "/" not in url.path.strip("/"):
        return "list"
    return method.lower()


class FaultProxy:
    """A server on a loopback port until the block ends.

    Parameters
    ----------
    upstream
        ``http://127.0.0.1:port`` of the server behind it.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seen: collections.Counter[str] = collections.Counter()
        self.injected = 0
        self._plan: tuple[str, str, range] = "", "", range(0)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plan(self, kind: str, fault: str, *, nth: int = 1, times: int = 1) -> None:
        """Count from now; break the ``nth`` request of a kind, and as many after it."""
        with self._lock:
            self.seen.clear()
            self.injected = 0
            self._plan = kind, fault, range(nth, nth + times)

    def fault_of(self, kind: str) -> str | None:
        """Count a request; say how to break it."""
        with self._lock:
            self.seen[kind] += 1
            planned, fault, these = self._plan
            if planned != kind or self.seen[kind] not in these:
                return None
            self.injected += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Stay quiet."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client may leave at any time
            super().handle()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.fault_of(kind_of(self.command, self.path, self.headers))
        if fault in ANSWERS:
            status, code = ANSWERS[fault]
            said = f"<Error><Code>{code}</Code><Message>planned {code}</Message></Error>".encode()
            self._answer(status, {"Content-Type": "application/xml"}, said)
        elif fault == "reset":
            self._reset()
        else:
            if fault == "slow":
                time.sleep(SLOW)
            status, headers, answer = self._forward(body)
            if fault == "lost":
                self._reset()
            else:
                self._answer(status, headers, answer, fault=fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        upstream.request(self.command, self.path, body, dict(self.headers))
        response = upstream.getresponse()
        answer = response.read()
        upstream.close()
        dropped = {"connection", "transfer-encoding", "content-length", "date", "server"}
        headers = {k: v for k, v in response.getheaders() if k.lower() not in dropped}
        if self.command == "HEAD" and (length := response.getheader("Content-Length")):
            headers["Content-Length"] = length
        return response.status, headers, answer

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, fault: str | None = None
    ) -> None:
        sent = body
        if fault in ("truncated", "short"):
            sent = body[: len(body) // 2]
        if fault == "short":
            headers = {k: v for k, v in headers.items() if "checksum" not in k.lower()}
        if fault == "flipped" and body:
            sent = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.command != "HEAD" or "Content-Length" not in headers:
            length = 0 if self.command == "HEAD" else len(body if fault == "truncated" else sent)
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if fault == "truncated":
            self.close_connection = True

    def _reset(self) -> None:
        """Send RST: a close alone would let the client wait."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
