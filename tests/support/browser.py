"""A headless Chromium that opens a page from disk and records what goes wrong in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from support.time_limits import time_limit

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_INSTALL_SECONDS = 280


@dataclass
class Opened:
    """A drawn page, with its errors, warnings and network requests."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def chromium() -> str:
    """Return Chromium's path.

    Chromium is installed with apt if the tests run as root. Without it the test is skipped; in CI, it fails.
    """
    if not (path := _installed()):
        try:
            _install()
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"no Chromium: {error}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
        path = _installed()
    assert path, "apt-get installed chromium, but no program of that name is there"
    return path


def _installed() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def _install() -> None:
    if os.geteuid() != 0:
        raise OSError("it is not installed, and only root can install it (apt-get install chromium)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with open(Path(tempfile.gettempdir(), "flipscale_chromium.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests run side by side, and apt refuses a second apt
        if _installed():
            return
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            subprocess.run(
                ["apt-get", "--quiet", *command],
                env=environment,
                capture_output=True,
                check=True,
                timeout=_INSTALL_SECONDS,
            )


@contextmanager
def launched() -> Generator[Browser]:
    """Return a running browser."""
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium(), args=arguments)
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, path: Path, width: int, *, dark: bool = False) -> Generator[Opened]:
    """Open a page, and wait until every plot is drawn.

    Args:
        browser: The browser.
        path: The HTML file.
        width: Width of the window in pixels.
        dark: Whether the system has a dark colour scheme.

    Raises:
        TimeoutError: playwright's, if a plot is not drawn within 30 s.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
        offline=True,
    )
    page = context.new_page()
    result = Opened(page)
    page.on(
        "console",
        lambda message: (
            result.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: result.complaints.append(str(error)))
    page.on("requestfailed", lambda request: result.complaints.append(f"failed: {request.url[:80]}"))
    page.on("request", lambda request: result.requests.append(request.url))
    page.set_default_timeout(1000 * time_limit(120))  # milliseconds; a busy machine takes a minute
    page.goto(path.resolve().as_uri())
    page.wait_for_function(
        "[...document.querySelectorAll('.canvas')].every(canvas => canvas.dataset.drawn === 'yes')",
    )
    yield result
    context.close()
