"""The endpoint over real HTTP: what is sent, what is tried again, and errors."""

from __future__ import annotations

import json
import logging
import socket
import struct
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.http_retries import retry_after
from pipeline.interpretation.chat import ChatError
from pipeline.interpretation.endpoint import EndpointModel, api_key
from tests.interpretation.conftest import Stub
from tests.messages import saying, says

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
KEY = "sk-planted-secret-0123456789"


def complete(stub: Stub, **options):
    """(answer, waits) of one request."""
    waits: list[float] = []
    model = EndpointModel(options.pop("url", stub.url), "planted-model", sleep=waits.append, **options)
    try:
        return model.complete(MESSAGES), waits
    finally:
        model.close()


def failure(stub: Stub, **options) -> str:
    with pytest.raises(ChatError) as caught:
        complete(stub, **options)
    return str(caught.value)


def test_what_is_sent(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.answer = lambda messages: f"heard {messages[-1]['content']}"
    assert complete(stub, seed=3, max_tokens=77, url=stub.url + "/") == ("heard hello", [])
    path, headers, body = stub.requests[0]
    assert path == "/v1/chat/completions"
    assert body == {"model": "planted-model", "messages": MESSAGES, "temperature": 0, "max_tokens": 77, "seed": 3}
    assert "Authorization" not in headers
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    complete(stub)
    assert stub.requests[1][1]["Authorization"] == f"Bearer {KEY}"
    monkeypatch.setenv("OTHER_KEY", "other\n")
    complete(stub, key_variable="OTHER_KEY")
    assert stub.requests[2][1]["Authorization"] == "Bearer other"


def test_what_may_pass_is_tried_again(stub: Stub) -> None:
    stub.answer = lambda _: "at last"
    stub.failures = [
        (429, {"Retry-After": "7"}, "slow down"),
        (503, {}, "busy"),
        (500, {}, ""),
        (429, {"Retry-After": "0"}, ""),
    ]
    assert complete(stub, backoff_s=1.0) == ("at last", [7.0, 2.0, 4.0, 0.0])
    assert len(stub.requests) == 5


def test_what_does_not_pass_is_an_error(stub: Stub) -> None:
    stub.always = (500, {}, "out of\nmemory")
    message = failure(stub, attempts=3)
    assert message.startswith(f"{stub.url}/chat/completions: ")
    says(message, 500, "(out of memory)", "3 attempts", 200)
    assert len(stub.requests) == 3
    stub.always = (429, {"Retry-After": "86400"}, "quota")
    says(failure(stub), 429, "86,400 s")


def test_nobody_listens(stub: Stub) -> None:
    with socket.socket() as silent:  # it holds the port, so that nobody else answers there, and does not listen
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        message = failure(stub, url=f"http://127.0.0.1:{port}/v1", attempts=2)
    says(message, f"http://127.0.0.1:{port}/v1/chat/completions:", "ConnectError:", "2 attempts", "--endpoint")


def test_a_server_that_never_replies(stub: Stub) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        says(failure(stub, url=url, attempts=2, timeout_s=0.1), f"{url}/chat/completions:", "ReadTimeout", "2 attempts")


@pytest.mark.parametrize(
    ("status", "headers", "parts"),
    [
        (401, {}, ("OPENAI_API_KEY", "not set")),
        (404, {}, ("--endpoint", "/v1", "--model planted-model")),
        (400, {}, ("1,024", "--max-tokens", "--model")),
        (307, {"Location": "http://elsewhere/v1"}, ("http://elsewhere/v1",)),
    ],
)
def test_refusals_are_not_tried_again(stub: Stub, status: int, headers: dict[str, str], parts: tuple[str, ...]) -> None:
    stub.always = (status, headers, "no")
    says(failure(stub), f"{stub.url}/chat/completions:", status, "(no)", 200, *parts)
    assert len(stub.requests) == 1


def test_no_message_holds_the_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.always = (401, {}, json.dumps({"error": f"wrong key {KEY}"}))
    message = failure(stub)
    says(message, "wrong key ***", "OPENAI_API_KEY", "not accepted")
    assert KEY not in message
    assert "secret" not in failure(stub, url=stub.url.replace("http://", "http://user:secret@"))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", ["http://127.0.0.1:{port}/v1/chat/completions", "//127.0.0.1:{port}/v1", "/v1/elsewhere"])
def test_the_key_goes_to_the_stated_address_alone(
    stub: Stub, other: Stub, monkeypatch: pytest.MonkeyPatch, status: int, path: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.always = (status, {"Location": path.format(port=other.port)}, "")
    says(failure(stub), status, path.format(port=other.port), "--endpoint")
    assert [request[1]["Authorization"] for request in stub.requests] == [f"Bearer {KEY}"]
    assert other.requests == []


def test_the_key_is_shown_nowhere(stub: Stub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Neither by the objects that hold it nor by what the libraries log at their most talkative."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    stub.failures = [(429, {"Retry-After": "0"}, KEY), (200, {}, KEY)]
    stub.answer = lambda _: "yes"
    model = EndpointModel(stub.url, "planted-model", sleep=lambda _: None)
    assert model.complete(MESSAGES) == "yes"
    shown = repr(model) + str(model) + repr(model._client) + repr(model._client.headers)
    model.close()
    assert caplog.records
    assert KEY not in caplog.text
    assert KEY not in shown


@pytest.mark.parametrize("url", ["ftp://user:{key}@x/v1", "user:{key}@x/v1", "http://user:{key}@:80/v1"])
def test_a_password_in_a_wrong_address_is_not_repeated(stub: Stub, url: str) -> None:
    message = failure(stub, url=url.format(key="planted"))
    assert "planted" not in message
    says(message, "--endpoint")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<html>welcome</html>", "JSON"),
        ("[]", "completion"),
        ('{"choices": []}', "completion"),
        ("null", "completion"),
        ('{"choices": [{"message": {"content": 5}}]}', "completion"),
    ],
)
def test_replies_that_are_no_completions(stub: Stub, text: str, part: str) -> None:
    stub.always = (200, {}, text)
    says(failure(stub), part, f"'{text}'", "choices[0].message.content", "--endpoint")


def test_a_reply_that_is_damaged_once_is_asked_for_again(stub: Stub) -> None:
    stub.failures = [(200, {}, '{"choices": [{"mess'), (200, {}, '{"error": "overloaded"}')]
    stub.answer = lambda _: "at last"
    assert complete(stub) == ("at last", [1.0, 2.0])


def test_half_a_surrogate_pair_can_be_written_and_sent_again(stub: Stub) -> None:
    stub.failures = [(200, {}, '{"choices": [{"message": {"content": "a \\ud83d b \\ud83d\\ude00"}}]}')]
    answer, _ = complete(stub)
    assert answer == "a \ufffd b \U0001f600"
    answer.encode()


def test_the_newer_name_of_the_limit(stub: Stub) -> None:
    """A server that refuses max_tokens says so once."""
    stub.failures = [(400, {}, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")]
    model = EndpointModel(stub.url, "planted-model", max_tokens=77)
    stub.answer = lambda _: "yes"
    assert [model.complete(MESSAGES), model.complete(MESSAGES)] == ["yes", "yes"]
    model.close()
    limits = [{name: body[name] for name in body if name.startswith("max_")} for _, _, body in stub.requests]
    assert limits == [{"max_tokens": 77}, {"max_completion_tokens": 77}, {"max_completion_tokens": 77}]
    stub.always = (400, {}, "max_completion_tokens is too large")
    says(failure(stub), 400, "(max_completion_tokens is too large)")


def test_an_empty_content_is_an_empty_answer(stub: Stub) -> None:
    stub.answer = lambda _: None
    assert complete(stub)[0] == ""


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", "http://[::1"])
def test_addresses(stub: Stub, url: str) -> None:
    assert "--endpoint" in failure(stub, url=url)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert api_key() is None
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ChatError, match=saying("--api-key-variable MY_KEY:", "not set")):
        api_key("MY_KEY")
    monkeypatch.setenv("MY_KEY", "a\nb")
    with pytest.raises(ChatError, match=saying("MY_KEY", "characters", "header")):
        api_key("MY_KEY")


def test_retry_after() -> None:
    assert retry_after(None) is None
    assert retry_after("12") == 12.0
    assert retry_after("0.5") == 0.5
    assert [retry_after(value) for value in ("soon", "nan", "inf", "-1")] == [None] * 4
    ahead = retry_after(format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True))
    assert ahead is not None
    assert 3000 < ahead <= 3600
    assert retry_after(format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)) == 0.0


HEAD = b"POST /v1 HTTP/1.1\r\nContent-Length: 9\r\n\r\n"


@pytest.mark.parametrize("said", [b"", b"PO", HEAD, HEAD + b"{"], ids=["nothing", "half a line", "no body", "half a body"])
def test_the_stub_is_silent_about_a_client_that_leaves(stub: Stub, capfd: pytest.CaptureFixture[str], said: bytes) -> None:
    for linger in (0, 1):  # 0: the connection is reset
        with socket.create_connection(("127.0.0.1", stub.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, linger))
            client.sendall(said)
    assert complete(stub, seed=1)[0]
    assert len(stub.requests) == 1
    assert capfd.readouterr() == ("", "")
