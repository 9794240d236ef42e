"""The built site in Chromium: offline, without scripts, narrow, dark, with a keyboard, and by axe's rules.

A missing browser is a failure, never a skip.
"""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import bookfiles
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, Request, sync_playwright

SITE = bookfiles.SITE
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
ON_MACOS = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    # No other host exists: a page that asks for one fails as it would offline.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

each_page = pytest.mark.parametrize("page", bookfiles.site_pages(), ids=lambda page: str(page.relative_to(SITE)))


# What reaches over the right edge of a narrow screen and is in no box that scrolls.
STICKING_OUT = """() => [...document.querySelectorAll('article *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let b = e; b.tagName !== 'ARTICLE'; b = b.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(b).overflowX) || b.matches('.katex-mathml, .hide-tail')) return false;
    return true;
  }).slice(0, 3).map(e => `${e.parentElement.outerHTML.slice(0, 200)}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? [`the page is ${document.documentElement.scrollWidth} wide`] : [])"""


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(SITE))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next(filter(None, map(shutil.which, NAMES)), None) or next(
        filter(lambda p: Path(p).exists(), ON_MACOS), None
    )
    if path is None:
        pytest.fail("the tests of the site need Chromium or Chrome (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


class Visit:
    """A page that was opened, and everything that went wrong on the way."""

    def __init__(self, context: BrowserContext, address: str, file: Path) -> None:
        self.wrong: list[str] = []
        self.page: Page = context.new_page()
        self.page.set_default_timeout(120_000)  # a loaded machine is no broken page
        self.page.on("console", lambda m: self.wrong.append(f"console: {m.text}") if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("requestfailed", self.failed)
        self.page.on("response", lambda r: self.wrong.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        self.page.on("request", lambda request: self.at_home(request, address))
        self.page.goto(f"{address}/{file.relative_to(SITE).as_posix()}", wait_until="load")
        self.page.wait_for_timeout(200)  # what a script asks for after the page has loaded

    def failed(self, request: Request) -> None:
        # Without scripts, Chromium itself gives up the scripts that a page announced.
        if not (request.resource_type == "script" and request.failure == "csp"):
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def at_home(self, request: Request, address: str) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"another host: {urlsplit(request.url).netloc}")


@pytest.fixture(scope="module")
def contexts(browser: Browser) -> Iterator[dict[str, BrowserContext]]:
    wide, narrow = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
    contexts = {
        "light": browser.new_context(viewport=wide, color_scheme="light"),
        "dark": browser.new_context(viewport=wide, color_scheme="dark"),
        "narrow": browser.new_context(viewport=narrow, color_scheme="light"),
        "no scripts": browser.new_context(viewport=narrow, java_script_enabled=False),
    }
    yield contexts
    for context in contexts.values():
        context.close()


# A chapter has thousands of spans that draw its formulas, in the colour of the text and hidden from screen readers, which
# read the MathML beside them. To ask about each took most of the time of these tests; one page is asked about all of it.
def violations(page: Page, *, formulas: bool = False, rules: tuple[str, ...] = ()) -> list[str]:
    if not formulas:
        page.evaluate("document.querySelectorAll('.katex-html').forEach(e => e.remove())")
    only = {"runOnly": list(rules)} if rules else {}
    found = Axe().run(page, options={"resultTypes": ["violations"], **only}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]


@each_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_loads_offline_and_is_accessible(
    page: Path, scheme: str, contexts: dict[str, BrowserContext], address: str
) -> None:
    visit = Visit(contexts[scheme], address, page)
    try:
        assert visit.wrong == []
        assert visit.page.locator("html").get_attribute("data-theme") == scheme
        assert violations(visit.page, formulas=page.stem == "notation") == []
        for image in visit.page.locator(".cell_output img").all():
            style = image.evaluate("e => [getComputedStyle(e).filter, getComputedStyle(e).backgroundColor]")
            inverted = scheme == "dark" and not image.evaluate("e => e.classList.contains('photo')")
            assert style == ["invert(1) hue-rotate(180deg)" if inverted else "none", "rgba(0, 0, 0, 0)"]
            assert image.evaluate("e => e.complete && e.naturalWidth > 0")
    finally:
        visit.page.close()


@each_page
def test_a_narrow_page_does_not_scroll_sideways(page: Path, contexts: dict[str, BrowserContext], address: str) -> None:
    visit = Visit(contexts["narrow"], address, page)
    try:
        assert visit.wrong == []
        folded = visit.page.evaluate(STICKING_OUT)
        visit.page.evaluate(
            """() => { document.querySelectorAll('.toggle-hidden').forEach(e => e.classList.remove('toggle-hidden'));
                       dispatchEvent(new Event('resize')); }"""
        )
        assert (folded, visit.page.evaluate(STICKING_OUT)) == ([], [])
        # What is wider than the screen scrolls in a box of its own, which the keyboard reaches.
        assert violations(visit.page, formulas=True, rules=("scrollable-region-focusable",)) == []
    finally:
        visit.page.close()


@each_page
def test_formulas_are_there_without_scripts(page: Path, contexts: dict[str, BrowserContext], address: str) -> None:
    formulas = len(bookfiles.soup(page).select("article .katex-html"))
    visit = Visit(contexts["no scripts"], address, page)
    try:
        assert visit.wrong == []
        shown = visit.page.locator("article .katex-html")
        assert shown.count() == formulas
        if formulas:
            boxes = [box for box in (shown.nth(n).bounding_box() for n in range(min(formulas, 20))) if box]
            assert all(box["width"] > 2 and box["height"] > 5 for box in boxes)
            assert boxes
    finally:
        visit.page.close()


def test_formulas_are_set_in_the_fonts_of_the_site(contexts: dict[str, BrowserContext], address: str) -> None:
    file = SITE / "chapters" / f"{bookfiles.chapters()[0].stem}.html"
    visit = Visit(contexts["light"], address, file)
    try:
        loaded = visit.page.evaluate(
            "() => [...document.fonts].filter(f => f.status === 'loaded').map(f => f.family.replace(/\\W/g, ''))"
        )
        assert {"KaTeX_Main", "KaTeX_Math"} <= set(loaded)
    finally:
        visit.page.close()


def test_the_keyboard_reaches_the_text_and_shows_where_it_is(contexts: dict[str, BrowserContext], address: str) -> None:
    file = SITE / "chapters" / f"{bookfiles.chapters()[0].stem}.html"
    visit = Visit(contexts["light"], address, file)
    page = visit.page
    try:
        page.keyboard.press("Tab")
        assert "main content" in page.evaluate("document.activeElement.textContent").lower()
        page.wait_for_function("document.activeElement.getBoundingClientRect().top >= 0", timeout=3000)  # it slides in
        page.keyboard.press("Enter")
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('main') !== null"):
                break
        else:
            pytest.fail("no stop inside the text after the link to it")
        assert page.evaluate("parseFloat(getComputedStyle(document.activeElement).outlineWidth)") >= 2
        unseen = page.evaluate(
            """() => [...document.querySelectorAll('article a[href]')].slice(0, 40).filter(a => {
                 a.focus({focusVisible: true}); return parseFloat(getComputedStyle(a).outlineWidth) < 2;
               }).map(a => a.outerHTML)"""
        )
        assert unseen == []
    finally:
        page.close()
