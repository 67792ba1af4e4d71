"""A Neuronpedia site on a free port: it takes batches as the API documents them, and fails when it is told to."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "np-planted-secret-0123456789"
RESET, LOST = "reset", "lost"  # before the batch is taken, and after


def objection(batch: Any) -> str | None:
    """Why the documented schema refuses a batch; None: it does not. Written from the schema alone, value after value."""
    if not isinstance(batch, dict) or not batch.get("modelId") or not batch.get("source"):
        return "modelId and source are required"
    features = batch.get("features")
    if not isinstance(features, list) or not 1 <= len(features) <= 128:
        return "features: 1 to 128"
    if len({str(feature.get("index")) for feature in features}) != len(features):
        return "All indexes must be unique."
    for feature in features:
        if type(feature.get("index")) is not int or feature["index"] < 0 or feature["index"] > 10_000_000:
            return "index"
        if "density" in feature and not (_finite(feature["density"]) and 0 <= feature["density"] <= 1):
            return "density"
        for side in ("topLogits", "bottomLogits"):
            logits = feature.get(side) or []
            if len(logits) > 20 or not all(_said(each.get("token")) and _finite(each.get("value")) for each in logits):
                return side
        for each in feature.get("explanations") or []:
            if not _said(each.get("text")) or sum(2 if ord(c) > 0xFFFF else 1 for c in each["text"]) > 512:
                return "explanations"
        activations = feature.get("activations")
        if not isinstance(activations, list) or len(activations) < 1:
            return "activations: at least 1"
        for each in activations:
            tokens, values = each.get("tokens"), each.get("values")
            if not isinstance(tokens, list) or not isinstance(values, list) or not 1 <= len(tokens) <= 1024:
                return "tokens: 1 to 1024"
            if len(tokens) != len(values) or not all(map(_said, tokens)) or not all(map(_finite, values)):
                return "tokens and values"
            for name in ("quantileMin", "quantileMax", "quantileFraction"):
                value = each.get(name)
                if value is not None and not (_finite(value) and value <= 99_999_999):
                    return name
            share = each.get("quantileFraction")
            if share is not None and not 0 <= share <= 1:
                return "quantileFraction"
    return None


def _said(text: Any) -> bool:
    return isinstance(text, str) and text != "" and "\0" not in text


def _finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


@dataclass
class FakeSite:
    """What a test sees and decides.

    Attributes:
        sets: {(model, source set): names of its sources}.
        features: {(model, source): {index: every object of it that was taken}}.
        failures: what becomes of the next batches: a status, (status, headers), RESET, LOST, or None; afterwards all is well.
        always: a status of every batch.
        taken: batches that were taken. posts: all that came. refused: objections.
        made: bodies of /new.
    """

    sets: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    features: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = field(default_factory=dict)
    failures: list[Any] = field(default_factory=list)
    always: int | None = None
    taken: list[dict[str, Any]] = field(default_factory=list)
    posts: int = 0
    refused: list[str] = field(default_factory=list)
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def with_set(self, model: str, name: str, layers: int = 4) -> FakeSite:
        self.sets[model, name] = [f"{layer}-{name}" for layer in range(layers)]
        return self

    def take(self, batch: dict[str, Any]) -> tuple[int, Any]:
        why = objection(batch)
        model, source = batch.get("modelId"), batch.get("source")
        if why is None and source not in self.sets.get((model, str(source).partition("-")[2]), []):
            return 500, {"error": "Something went wrong on our end."}
        if why is not None:
            self.refused.append(why)
            return 400, {"error": why}
        there = self.features.setdefault((model, source), {})
        for feature in batch["features"]:
            there.setdefault(feature["index"], []).append(feature)
        self.taken.append(batch)
        return 200, {"message": f"{len(batch['features'])} features created."}

    def get(self, path: str) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "feature"]:
            found = self.features.get((parts[2], parts[3]), {}).get(int(parts[4]))
            return (404, {"error": "not found"}) if found is None else (200, {"index": parts[4]})
        if parts[:2] == ["api", "source-set"]:
            sources = self.sets.get((parts[2], parts[3]))
            return 200, None if sources is None else {"name": parts[3], "sources": [{"id": each} for each in sources]}
        return 404, {"error": "no such route"}

    def new(self, path: str, said: dict[str, Any]) -> tuple[int, Any]:
        self.made.append((path, said))
        if path.endswith("/model/new"):
            return (400, {"error": "Model already exists"}) if said["id"] == "public" else (200, said)
        self.with_set(said["modelId"], said["name"], 2 if said["modelId"] == "shallow" else 4)
        return 200, said

    def of(self, model: str, source: str) -> dict[int, dict[str, Any]]:
        """The features of a source; each must have been taken once."""
        found = self.features.get((model, source), {})
        assert {index: len(each) for index, each in found.items()} == dict.fromkeys(found, 1)
        return {index: each[0] for index, each in found.items()}


@contextlib.contextmanager
def running() -> Iterator[FakeSite]:
    """A site, until the end of the block."""
    site = FakeSite()

    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError, OSError):
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(ConnectionError, ValueError, OSError):
                super().finish()

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def _say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, text)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            site.keys.append(self.headers.get("X-Api-Key"))
            self._say(*site.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            site.keys.append(self.headers.get("X-Api-Key"))
            if self.headers.get("X-Api-Key") != KEY:
                self._say(401, {"error": f"no user has the key {self.headers.get('X-Api-Key')}"})
                return
            if not self.path.endswith("/upload-batch"):
                self._say(*site.new(self.path, body))
                return
            site.posts += 1
            failure = site.always or (site.failures.pop(0) if site.failures else None)
            if failure == RESET:
                self._hang_up()
            elif failure == LOST:
                site.take(body)
                self._hang_up()
            elif failure is not None:
                status, headers = failure if isinstance(failure, tuple) else (failure, {})
                self._say(status, {"error": "not now"}, headers)
            else:
                self._say(*site.take(body))

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        site.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
