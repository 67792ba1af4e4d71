"""A chat model behind an OpenAI-compatible HTTP endpoint: POST <base>/chat/completions."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.foreign import reading, shortened
from pipeline.http_retries import retry_after
from pipeline.interpretation.chat import ChatError, Message

if TYPE_CHECKING:
    import httpx

API_KEY_VARIABLE = "OPENAI_API_KEY"
_REPLY = "wanted an object with choices[0].message.content, as POST /chat/completions of an OpenAI-compatible server gives"
_NEWER_LIMIT = "max_completion_tokens"


class _NoCompletion(Exception):
    """A reply of status 200 that holds no answer."""


def api_key(variable: str = API_KEY_VARIABLE) -> str | None:
    """The key in an environment variable; None where the default variable is not set (local servers need none).

    Raises:
        ChatError: another variable was named and is not set, or the key cannot be sent in a header.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        if variable == API_KEY_VARIABLE:
            return None
        raise ChatError(
            f"--api-key-variable {variable}: this environment variable is not set; export it with the endpoint's key"
        )
    if not (key.isascii() and key.isprintable()):
        raise ChatError(
            f"the API key in the environment variable {variable} has characters that no header can hold; set it anew"
        )
    return key


class EndpointModel:
    """A chat model behind an endpoint; it may be used by several threads.

    Requests go at temperature 0 with a fixed seed. What may pass (429, 5xx, no connection, no reply in time, a reply that is
    damaged) is tried again, after the time that Retry-After states, else after backoff_s, twice that, and so on.

    Args:
        base_url: such as http://localhost:8000/v1.
        name: of the model there.
        key_variable: environment variable of the API key, which is sent as a Bearer header and kept nowhere else.
        seed: sent with each request.
        max_tokens: most tokens of an answer.
        attempts: tries of one request.
        backoff_s: seconds before the second try.
        longest_wait_s: longest Retry-After, in seconds, that is waited for.
        timeout_s: seconds until a reply must have begun or gone on.
        sleep: how to wait, in seconds.

    Raises:
        ChatError: the address is not one of http or https, or the named key is not set.
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        *,
        key_variable: str = API_KEY_VARIABLE,
        seed: int = 0,
        max_tokens: int = 1024,
        attempts: int = 5,
        backoff_s: float = 1.0,
        longest_wait_s: float = 120.0,
        timeout_s: float = 300.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        with reading("--endpoint: not an address", "give one such as http://localhost:8000/v1", ChatError):
            url = httpx.URL(base_url.rstrip("/") + "/chat/completions")
        if url.scheme not in ("http", "https") or not url.host:
            shown = re.sub(r"(//|^)[^/]*@", r"\1", base_url)
            raise ChatError(f"--endpoint {shown!r}: not an address; give one such as http://localhost:8000/v1")
        self.name, self.seed, self.max_tokens = name, seed, max_tokens
        self._url, self._shown, self._key_variable = url, str(url.copy_with(userinfo=None)), key_variable
        self._attempts, self._backoff_s, self._longest_wait_s, self._sleep = attempts, backoff_s, longest_wait_s, sleep
        self._key, self._limit = api_key(key_variable), "max_tokens"
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 10.0), pool=None)
        self._client = httpx.Client(headers=headers, timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(self, messages: list[Message]) -> str:
        """The answer to messages.

        Raises:
            ChatError: the endpoint cannot be reached, refuses, or replies something else than a chat completion.
        """
        import httpx

        failure = wanted = ""
        for attempt in range(self._attempts):
            wait, wanted = self._backoff_s * 2**attempt, "wanted status 200"
            try:
                response = self._send(messages)
                if response.status_code == 200:
                    return self._content(response)
            except httpx.RequestError as error:
                failure = f"no reply ({type(error).__name__}: {self._safe(error)})"
            except _NoCompletion as error:
                failure, wanted = str(error), _REPLY
            else:
                if response.status_code != 429 and response.status_code < 500:
                    raise ChatError(self._refusal(response))
                failure = f"status {response.status_code} ({self._safe(response.text)})"
                asked = retry_after(response.headers.get("Retry-After"))
                wait = wait if asked is None else asked
                if wait > self._longest_wait_s:
                    raise ChatError(
                        f"{self._shown}: {failure}, and it asks to wait {wait:,.0f} s, longer than the "
                        f"{self._longest_wait_s:,.0f} s that are waited; run the same command again later"
                    )
            if attempt + 1 < self._attempts:
                self._sleep(wait)
        raise ChatError(
            f"{self._shown}: {failure} in {self._attempts} attempts, {wanted}; start the server or check --endpoint, then run "
            "the same command again: finished features are kept"
        )

    def _send(self, messages: list[Message]) -> httpx.Response:
        """One request; a server that takes the length of an answer by its newer name only gets it by that, from then on."""
        while True:
            limit = self._limit
            body = {"model": self.name, "messages": messages, "temperature": 0, limit: self.max_tokens, "seed": self.seed}
            response = self._client.post(self._url, json=body)
            if response.status_code != 400 or limit == _NEWER_LIMIT or _NEWER_LIMIT not in response.text:
                return response
            self._limit = _NEWER_LIMIT

    def _refusal(self, response: httpx.Response) -> str:
        status = response.status_code
        action = f"if {self.max_tokens:,} tokens are too many for an answer, lower --max-tokens; else choose another --model"
        if status in (401, 403):
            stated = "is not accepted" if self._key else "is not set"
            action = f"the API key in the environment variable {self._key_variable} {stated}; set it, or see --api-key-variable"
        elif status == 404:
            action = f"check --endpoint (most end in /v1) and --model {self.name}"
        elif 300 <= status < 400:
            action = (
                f"give the address that it points to ({self._safe(response.headers.get('Location', 'none'))}) as --endpoint"
            )
        return f"{self._shown}: status {status} ({self._safe(response.text)}), wanted 200; {action}"

    def _content(self, response: httpx.Response) -> str:
        """The answer in a reply; half a surrogate pair, which no request can hold, becomes a replacement character."""
        try:
            reply = response.json()
        except ValueError:
            raise _NoCompletion(f"the reply is not JSON (got {self._safe(response.text)!r})") from None
        try:
            content = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = {}
        if content is None:  # a model that has spent max_tokens on its reasoning
            return ""
        if not isinstance(content, str):
            raise _NoCompletion(f"the reply is no chat completion (got {self._safe(response.text)!r})")
        return content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

    def _safe(self, text: object) -> str:
        """What the server or the library says, on one line, without the key."""
        plain = str(text)
        return shortened(plain.replace(self._key, "***") if self._key else plain) or "nothing"
