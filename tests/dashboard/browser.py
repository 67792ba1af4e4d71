"""A headless Chromium without a network.

python -m tests.dashboard.browser data/dashboard docs/dashboard 513    # docs/dashboard-overview.png, ...-overview-dark.png, ...
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WIDTH, HEIGHT = 1380, 960
COLORS = 160
WAIT_SECONDS = 60.0  # for what a test waits for: many times what it takes, for a busy machine
SHOTS = {"overview": "#/", "features": "#/features", "feature": None}


def found() -> bool:
    """Whether Chromium and its driver are on this machine (Debian: chromium, chromium-driver)."""
    return bool(shutil.which("chromium") and shutil.which("chromedriver"))


NEEDS_CHROMIUM = pytest.mark.skipif(
    not found() and os.environ.get("SCOPELINE_BROWSER_TESTS") != "required",
    reason="needs Chromium: apt-get install chromium chromium-driver; .ci/run installs them",
)


@contextmanager
def chromium(width: int = WIDTH, height: int = HEIGHT, *, scroll_bars: bool = False) -> Iterator[Any]:
    """A browser that is offline and keeps what the console says; with scroll bars that take room, as on most desktops."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = str(shutil.which("chromium"))
        for flag in (
            *FLAGS,
            *([] if scroll_bars else ["--hide-scrollbars"]),
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
        try:
            driver.execute_cdp_cmd("Network.enable", {})
            offline(driver, True)
            yield driver
        finally:
            driver.quit()


def offline(driver: Any, wanted: bool) -> None:
    """Cut the network off, or let it through."""
    conditions = {"offline": wanted, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", conditions)


def size(driver: Any, width: int, height: int, scale: float = 1.0) -> None:
    """Make the page so large, in CSS pixels of `scale` pixels each."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def color_scheme(driver: Any, name: str) -> None:
    """Ask for `light` or `dark`."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})


def show(driver: Any, page: Path, route: str) -> None:
    """Open a route of a dashboard and wait until it is drawn."""
    driver.get("about:blank")
    driver.get(f"{page.resolve().as_uri()}{route}")
    wait_for(driver, route)


def wait_for(driver: Any, route: str) -> None:
    """Wait until a route is drawn.

    Raises:
        TimeoutError: with what the page shows instead.
    """
    until(driver, "(document.getElementById('view')?.dataset.shown ?? null) === arguments[0]", route)


def until(driver: Any, condition: str, *arguments: Any) -> None:
    """Wait until an expression of JavaScript is true.

    Raises:
        TimeoutError: with what the page shows.
    """
    end = time.monotonic() + WAIT_SECONDS
    while not driver.execute_script(f"return Boolean({condition})", *arguments):
        if time.monotonic() > end:
            raise TimeoutError(f"not {condition} of {arguments}: {driver.find_element('id', 'view').text[:400]}")
        time.sleep(0.02)


def frames(driver: Any, n: int = 2) -> None:
    """Wait until the page has been drawn again, and with it what it does at the next frame after a scroll."""
    driver.execute_async_script(
        """let left = arguments[0]; const done = arguments[1];
        const next = () => (left-- > 0 ? requestAnimationFrame(next) : done()); next();""",
        n,
    )


def screenshots(dashboard: Path, prefix: str, feature: str) -> None:
    """Pictures of the three pages in both schemes, for print: two pixels for each of the page's, and the whole page, the table
    a screen of it; with few colours, so that they stay small.
    """
    with chromium() as driver:
        for name, route in SHOTS.items():
            for scheme in ("light", "dark"):
                size(driver, WIDTH, HEIGHT, 2.0)
                color_scheme(driver, scheme)
                show(driver, dashboard / "index.html", route or f"#/feature/{feature}")
                if name != "features":
                    size(driver, WIDTH, driver.execute_script("return document.documentElement.scrollHeight"), 2.0)
                save_small(driver.get_screenshot_as_png(), Path(f"{prefix}-{name}{'-dark' if scheme == 'dark' else ''}.png"))


def save_small(picture: bytes, path: Path) -> None:
    """Write a PNG of at most COLORS colours: text and flat areas look the same, at a third of the size."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]), sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else "513")
