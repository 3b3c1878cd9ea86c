"""What tests of the page of `fqgan serve` share: visits in a real browser, before a stand-in for the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_serve import FakeServe, Wishes, pair

api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright: pip install playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NONE = "the page's tests need a browser: apt-get install chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDE, NARROW, PHONE = 1400, 400, 360
PATIENCE = 30_000  # milliseconds: a machine may be slow, and only what never happens is a fault


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(NONE)
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


class Visit:
    """A page before a server; `faults` are the errors that its console and the network showed."""

    def __init__(self, page: Any, server: FakeServe, may_fail: bool) -> None:
        self.page, self.server, self.may_fail = page, server, may_fail
        self.faults: list[str] = []
        self.foreign: list[str] = []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        local = (server.url, "data:", "blob:")
        page.on("request", lambda request: request.url.startswith(local) or self.foreign.append(request.url))

    def go(self, address: str = "") -> Any:
        self.page.goto("about:blank")  # otherwise another address of the same page does not load it anew
        self.page.goto(self.server.url + address)
        return self.page

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    @property
    def state(self) -> str:
        return self.page.evaluate("location.hash")

    def asked(self, path: str) -> list[dict]:
        return [body for asked, body in self.server.wishes.asked if asked == path]

    def drawn(self, count: int) -> None:
        api.expect(self.page.locator(".panel:not([hidden]) .card:not([aria-busy])")).to_have_count(count)


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Opens a page of a width before a server; in the end nothing may have gone wrong in the console."""
    visits: list[Visit] = []

    def open_page(wishes: Wishes | None = None, width: int = WIDE, faults: bool = False, **options: Any) -> Visit:
        server = FakeServe(wishes or Wishes(pair()))
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        found = Visit(context.new_page(), server, faults)
        visits.append(found)
        return found

    yield open_page
    for each in visits:
        each.page.context.close()
        each.server.shutdown()
        each.server.server_close()
        assert each.may_fail or not each.faults
        assert not each.foreign


def expect(found: Any) -> Any:
    return api.expect(found)
