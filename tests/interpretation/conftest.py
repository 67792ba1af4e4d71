"""A planted feature store, a tiny local model, and an OpenAI-compatible server whose answers a test decides."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.analysis.feature_columns import CONTEXTS, FEATURES
from pipeline.analysis.feature_tables import FORMAT_VERSION, FeatureStore, TableWriter, contexts_schema, features_schema
from pipeline.seeding import numpy_generator
from tests.project import make_model

PLANTED, WORD = 7, " cat"
N_FEATURES = 10
WORDS = [" the", " dog", " sat", " on", " a", " mat", " and", " ran", " far", " home", " <<", "\n"]
BANDS = ("top", "75-100 %", "50-75 %", "25-50 %", "0-25 %", "inactive")
OF_A_BAND = 12


def context_row(
    feature: int, band: str, place: int, context: int, texts: list[str], activations: list[float]
) -> dict[str, Any]:
    """A row of contexts.parquet for a window that is a document of its own."""
    peak = int(np.argmax(activations))
    return {
        "feature": feature, "band": band, "place": place, "activation": max(activations), "context": context, "position": peak,
        "document_id": context, "document": f"document {context}", "token_start": 4 * peak, "token_end": 4 * peak + 4,
        "char_start": 0, "char_end": len("".join(texts)), "peak": peak, "tokens": [len(text) for text in texts], "texts": texts,
        "activations": activations, "sources": None,
    }  # fmt: skip


def feature_row(feature: int, **changes: Any) -> dict[str, Any]:
    """A row of features.parquet; columns that interpretation does not read are empty."""
    row: dict[str, Any] = dict.fromkeys(field.name for field in features_schema())
    row |= {"feature": feature, "name": str(feature), "active_tokens": 100, "density": 0.01, "max_activation": 8.0}
    row |= {"mean_activation": 1.0, "decoder_norm": 1.0, "written_norms": [1.0], "histogram": [0]}
    row |= {"decoder_neighbours": [], "coactive_neighbours": []}
    return row | {"energy": 0.5 / (1 + abs(feature - PLANTED))} | changes


def planted_contexts(feature: int) -> list[dict[str, Any]]:
    """Contexts of a feature that is active on WORD and on nothing else, more weakly from band to band."""
    draw = numpy_generator(0, "tests", "planted store", feature)
    rows = []
    for number, band in enumerate(BANDS):
        for place in range(OF_A_BAND):
            texts = [WORDS[int(i)] for i in draw.integers(len(WORDS), size=12)]
            activations = [0.0] * len(texts)
            if band != "inactive":
                for where in draw.choice(len(texts), 1 + place % 2, replace=False):
                    texts[where] = WORD
                    activations[where] = 8.0 / (1 + number) - 0.05 * place
            rows.append(context_row(feature, band, place, 1000 * feature + 50 * number + place, texts, activations))
    return rows


def write_store(folder: Path, features: list[dict[str, Any]], contexts: list[dict[str, Any]], **about: Any) -> Path:
    """A feature store of these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {
        "format_version": FORMAT_VERSION, "dictionary": "planted", "name": "planted", "model": "planted", "split": "train",
        "hook_points_in": ["blocks.0.hook_resid_post"], "hook_points_out": ["blocks.0.hook_resid_post"],
        "feature_shape": [len(features)], "tokens": 10_000, "coactivation_tokens": 1_000, "histogram_edges": [1.0, 2.0], **about,
    }  # fmt: skip
    for name, schema, rows in ((FEATURES, features_schema(), features), (CONTEXTS, contexts_schema(), contexts)):
        writer = TableWriter(folder / name, schema, kept)
        writer.write({column.name: [row[column.name] for row in rows] for column in schema})
        writer.close()
    return folder


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a store of ten features, every one active on WORD alone; number 7 has the largest energy, 3 is dead, 4 dense."""
    features = [feature_row(feature) for feature in range(N_FEATURES)]
    features[3] |= {"active_tokens": 0, "density": 0.0, "max_activation": 0.0}
    features[4] |= {"density": 0.5, "energy": 0.9}
    contexts = [row for feature in range(N_FEATURES) if feature != 3 for row in planted_contexts(feature)]
    return write_store(tmp_path_factory.mktemp("planted") / "features", features, contexts)


@pytest.fixture
def store(planted: Path) -> FeatureStore:
    """The planted store, opened."""
    return FeatureStore(planted)


def kind_of(messages: list[dict[str, str]]) -> str:
    """What a request asks for, from its own words."""
    system = messages[0]["content"]
    return "explanation" if "EXPLANATION:" in system else "fuzzing" if "<<" in system else "detection"


def texts_of(messages: list[dict[str, str]]) -> list[str]:
    """The numbered texts of a scoring request."""
    return re.findall(r"^Text \d+: (.*)$", messages[-1]["content"], flags=re.MULTILINE)


def oracle(messages: list[dict[str, str]]) -> str:
    """Knows that the feature is active on WORD; reads everything else in the prompt."""
    kind = kind_of(messages)
    if kind == "explanation":
        marked = set(re.findall(r"<<(.*?)>>", messages[-1]["content"]))
        return f"The marked tokens are {sorted(marked)}.\nEXPLANATION: the word {' or '.join(sorted(marked)).strip()}"
    if kind == "detection":
        return json.dumps([int(WORD in text) for text in texts_of(messages)])
    return json.dumps([int(set(re.findall(r"<<(.*?)>>", text)) == {WORD}) for text in texts_of(messages)])


def inverted(messages: list[dict[str, str]]) -> str:
    """Always wrong."""
    return oracle(messages) if kind_of(messages) == "explanation" else json.dumps([1 - x for x in json.loads(oracle(messages))])


def always_one(messages: list[dict[str, str]]) -> str:
    """Says yes to everything."""
    return oracle(messages) if kind_of(messages) == "explanation" else json.dumps([1] * len(texts_of(messages)))


@dataclass
class Stub:
    """A server on a free port of 127.0.0.1.

    Attributes:
        answer: messages -> content of the answer.
        failures: (status, headers, body) of the first replies, instead of an answer.
        always: the same, for every reply.
        requests: (path, headers, body) of each request.
    """

    answer: Callable[[list[dict[str, str]]], str | None] = oracle
    failures: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    always: tuple[int, dict[str, str], str] | None = None
    requests: list[tuple[str, dict[str, str], dict[str, Any]]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Base of the endpoint."""
        return f"http://127.0.0.1:{self.port}/v1"

    def reply(self, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        """What the server says to a request."""
        if self.always or self.failures:
            return self.always or self.failures.pop(0)
        message = {"role": "assistant", "content": self.answer(body["messages"])}
        return 200, {}, json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """The server, running; no key and no proxy in the environment."""
    for variable in ("OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    with running() as state:
        yield state


@pytest.fixture
def other() -> Iterator[Stub]:
    """Another server."""
    with running() as state:
        yield state


@contextlib.contextmanager
def running() -> Iterator[Stub]:
    """A server, until the end of the block."""
    state = Stub()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the client has gone
                super().handle()

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            sent = self.rfile.read(length)
            if len(sent) < length:  # the client has gone before it had said all
                return
            body = json.loads(sent)
            state.requests.append((self.path, dict(self.headers), body))
            status, headers, text = state.reply(body)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text.encode())), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text.encode())

        def finish(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().finish()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = False  # closing waits for the handlers, so that none prints into the next test

    with Server(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with long contexts (rotary positions: the weights are the same)."""
    folder = tmp_path_factory.mktemp("local") / "model"
    make_model(folder)
    set_context(folder, 8192)
    return folder


def set_context(folder: Path, n: int) -> None:
    """Set the number of positions of a written model."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": n}))
