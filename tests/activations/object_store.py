"""A real S3 server in this process (moto), and in front of it one that fails now and then."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("500", "reset", "503", "cut")


@contextmanager
def s3_server() -> Iterator[str]:
    """URL of an S3 server with the bucket `activations`."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        request(f"{host}:{port}", "PUT", "/activations")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def request(place: str, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> bytes:
    connection = http.client.HTTPConnection(place, timeout=30)
    connection.request(
        method, path, body, {"Authorization": "AWS4-HMAC-SHA256 Credential=x/1/us-east-1/s3/aws4_request", **(headers or {})}
    )
    answer = connection.getresponse()
    assert answer.status < 300, (method, path, answer.status, answer.read())
    return answer.read()


@contextmanager
def failing(url: str, every: int, faults: Sequence[str] = FAULTS) -> Iterator[tuple[str, list[str]]]:
    """URL of a server that passes on to `url`, and a list of the faults so far: each `every`-th request meets one of `faults`
    in turn, a status, a reset or an answer that is cut off.
    """
    behind, met = url.removeprefix("http://"), []
    lock, counted = threading.Lock(), [0]

    class Passing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                counted[0] += 1
                fault = faults[counted[0] // every % len(faults)] if counted[0] % every == 0 else None
                if fault:
                    met.append(fault)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            if fault and fault.isdecimal():
                self.send_response(int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(behind, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            if fault == "cut" and len(content) > 1:
                self.wfile.write(content[: len(content) // 2])
                self.connection.close()
                self.close_connection = True
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Passing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", met
    finally:
        server.shutdown()
        server.server_close()
