"""A browser for the tests of a file, and its state before and after each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboard.browser import HEIGHT, WIDTH, chromium, color_scheme, size


@pytest.fixture(scope="module")
def opened(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One browser for all tests of a file; with scroll bars that take room where the file says SCROLL_BARS."""
    with chromium(scroll_bars=getattr(request.module, "SCROLL_BARS", False)) as driver:
        yield driver


@pytest.fixture
def driver(opened: Any) -> Iterator[Any]:
    """It, of the usual size and light; what a page says on the console fails the test."""
    size(opened, WIDTH, HEIGHT)
    color_scheme(opened, "light")
    opened.get_log("browser")
    yield opened
    assert [entry["message"] for entry in opened.get_log("browser")] == []
