"""The real frontend in headless Chromium, on one server per ComfyUI found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wanexperts import comfy_server
from wanexperts.tests.nodes.checkouts import CHECKOUTS

from .at_hand import chromium, frontend_of, missing

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from .canvas import Canvas

HERE = Path(__file__).parent
# Without a browser one test says so, in one line; without a ComfyUI one of the host suite does.
collect_ignore = [
    *(path.name for path in HERE.glob("test_in_browser_*.py") if missing()),
    *(path.name for path in HERE.glob("test_on_canvas_*.py") if missing() or not CHECKOUTS),
]

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip


# Not longer than this folder's tests: while Playwright runs no other test can have an event loop.
@pytest.fixture(scope="package")
def browser() -> Iterator[BrowserContext]:
    """Tabs of one window, each of which starts as on a first visit."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        window = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        tabs = window.new_context(viewport={"width": 1400, "height": 900})
        tabs.add_init_script("localStorage.clear(); sessionStorage.clear()")
        yield tabs
        window.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    """An empty tab."""
    tab = browser.new_page()
    yield tab
    tab.close()


@pytest.fixture(scope="package", params=CHECKOUTS, ids=lambda path: path.name)
def site(request: pytest.FixtureRequest) -> Iterator[comfy_server.Host]:
    """A server with its own frontend and the bundled family, past the first visit's dialogue."""
    frontend = str(frontend_of(request.param))
    options = ("--cpu", "--preview-method", "auto", "--front-end-root", frontend)
    with comfy_server.Host(request.param, options=options) as host:
        host.post("/settings", {"Comfy.TutorialCompleted": True})
        yield host


@pytest.fixture
def canvas(page: Page, site: comfy_server.Host, request: pytest.FixtureRequest) -> Iterator[Canvas]:
    """ComfyUI's page, open; fails the test for any error of ours in its console."""
    from .canvas import Canvas

    tab = Canvas(page, site)
    tab.open()
    yield tab
    tab.screenshot(request.node.name)
    assert tab.errors == []
