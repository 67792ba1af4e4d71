"""A Neuronpedia site over HTTP: its API, tried again where that may help.

What may pass is tried again: 429, 5xx, no connection, no reply. A reply that is lost leaves open whether the site has taken a
batch, and it would add the activations of one that is sent twice; so the site is asked for a feature of it first.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import DataError, PipelineError
from pipeline.foreign import reading, shortened
from pipeline.http_retries import retry_after

if TYPE_CHECKING:
    import httpx

KEY_VARIABLE = "NEURONPEDIA_API_KEY"
HOST = "https://www.neuronpedia.org"
LOCAL = ("localhost", "127.0.0.1", "::1")
_LATER = "run the same command again later: what was accepted is not sent again"


class SiteError(PipelineError):
    """The site cannot be reached, or refuses what it is asked."""


class _Unknown(Exception):
    """No reply, or a fault of the server: whether it has done what it was asked is not known."""


def api_key() -> str:
    """The key in the environment.

    Raises:
        SiteError: it is not set, or no header can hold it.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise SiteError(f"Neuronpedia: the environment variable {KEY_VARIABLE} is not set; export it with your key of the site")
    if not (key.isascii() and key.isprintable()):
        raise SiteError(f"Neuronpedia: the key in {KEY_VARIABLE} has characters that no header can hold; set it anew")
    return key


class Site:
    """A site.

    Args:
        address: such as https://www.neuronpedia.org; http is taken of this machine alone, since the key is sent.
        attempts: tries of one request.
        backoff_s: seconds before the second try, twice that before the third, ...; Retry-After goes before.
        longest_wait_s: longest wait of either.
        timeout_s: seconds until a reply must have begun.
        sleep: how to wait, in seconds.

    Raises:
        SiteError: it is no such address, or there is no key.
    """

    def __init__(
        self,
        address: str,
        *,
        attempts: int = 8,
        backoff_s: float = 1.0,
        longest_wait_s: float = 120.0,
        timeout_s: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        import httpx

        with reading("--to: not an address", f"give one such as {HOST}", SiteError):
            url = httpx.URL(address.rstrip("/"))
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            shown = re.sub(r"(//|^)[^/]*@", r"\1", address)
            raise SiteError(f"--to {shown}: not an address; give one such as {HOST}")
        if url.scheme == "http" and url.host not in LOCAL:
            raise SiteError(f"--to {address}: the key would be sent in the clear; give the address with https")
        self.address, self._key = str(url).rstrip("/"), api_key()
        self._attempts, self._backoff_s, self._longest_wait_s, self._sleep = attempts, backoff_s, longest_wait_s, sleep
        self.waits = 0
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 15.0), pool=None)
        headers = {"X-Api-Key": self._key, "Content-Type": "application/json"}
        self._client = httpx.Client(headers=headers, timeout=timeout)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def get(self, path: str) -> Any:
        """What the site has at a path; None: nothing.

        Raises:
            SiteError: it cannot be reached, or refuses.
        """
        return self._asked("GET", path, None, lambda: False)

    def post(self, path: str, body: bytes, done: Callable[[], bool] = lambda: False) -> Any:
        """What the site says to a body.

        Args:
            path: below the address.
            body: JSON.
            done: whether the site has done it already, asked where a reply was lost; then the answer is None.

        Raises:
            SiteError: it cannot be reached, or refuses.
        """
        return self._asked("POST", path, body, done)

    def _asked(self, method: str, path: str, body: bytes | None, done: Callable[[], bool]) -> Any:
        failure = ""
        for attempt in range(self._attempts):
            wait, unknown = self._backoff_s * 2**attempt, False
            try:
                response = self._sent(method, path, body)
            except _Unknown as error:
                failure, unknown = str(error), True
            else:
                status = response.status_code
                if status == 200:
                    return self._json(response, path)
                if status == 404 and method == "GET":
                    return None
                if status != 429 and status < 500:
                    raise SiteError(self._refusal(response, path))
                failure, unknown = f"status {status} ({self._safe(response.text)})", status != 429
                asked = retry_after(response.headers.get("Retry-After"))
                wait = wait if asked is None else asked
            if attempt + 1 == self._attempts:
                break
            if wait > self._longest_wait_s and failure.startswith("status 429"):
                raise SiteError(
                    f"{self.address}{path}: {failure}, and asks to wait {wait:,.0f} s, longer than the "
                    f"{self._longest_wait_s:,.0f} s that are waited; {_LATER}"
                )
            self.waits += 1
            self._sleep(min(wait, self._longest_wait_s))
            if unknown and method == "POST" and done():
                return None
        raise SiteError(f"{self.address}{path}: {failure} in {self._attempts} attempts, wanted status 200; {_LATER}")

    def _sent(self, method: str, path: str, body: bytes | None) -> httpx.Response:
        import httpx

        try:
            return self._client.request(method, self.address + path, content=body)
        except httpx.RequestError as error:
            raise _Unknown(f"no reply ({type(error).__name__}: {self._safe(error)})") from None

    def _json(self, response: httpx.Response, path: str) -> Any:
        try:
            return response.json()
        except ValueError:
            raise SiteError(
                f"{self.address}{path}: the reply is not JSON ({self._safe(response.text)}); is this a Neuronpedia site?"
            ) from None

    def _refusal(self, response: httpx.Response, path: str) -> str:
        status, action = response.status_code, f"{_LATER}, once that is put right"
        if status in (401, 403):
            action = f"check the key in the environment variable {KEY_VARIABLE}"
        elif status == 413:
            action = "the server takes no body of this size: lower --set batch_bytes"
        elif status == 404:
            action = "check the address in --to"
        elif 300 <= status < 400:
            action = f"give the address that it points to ({self._safe(response.headers.get('Location', 'none'))}) as --to"
        return f"{self.address}{path}: status {status} ({self._safe(response.text)}), wanted 200; {action}"

    def _safe(self, text: object) -> str:
        """What the server or the library says, on one line, without the key."""
        return shortened(str(text).replace(self._key, "***")) or "nothing"


def object_of(value: Any, what: str) -> dict[str, Any]:
    """A reply that should be an object.

    Raises:
        DataError: it is none.
    """
    if not isinstance(value, dict):
        raise DataError(f"{what}: the site's reply should be an object, got {shortened(value)}")
    return value
