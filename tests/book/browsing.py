"""What the tests in the browser share: a page that was opened, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import bookfiles
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page, Request

# What reaches over the right edge of a narrow screen and is in no box that scrolls.
STICKING_OUT = """() => [...document.querySelectorAll('article *')].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let b = e; b.tagName !== 'ARTICLE'; b = b.parentElement)
      if (['auto', 'scroll'].includes(getComputedStyle(b).overflowX) || b.matches('.katex-mathml, .hide-tail')) return false;
    return true;
  }).slice(0, 3).map(e => `${e.parentElement.outerHTML.slice(0, 200)}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? [`the page is ${document.documentElement.scrollWidth} wide`] : [])"""


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
        self.page.goto(f"{address}/{file.relative_to(bookfiles.SITE).as_posix()}", wait_until="load")
        self.page.wait_for_timeout(200)  # what a script asks for after the page has loaded

    def failed(self, request: Request) -> None:
        # Without scripts, Chromium itself gives up the scripts that a page announced.
        if not (request.resource_type == "script" and request.failure == "csp"):
            self.wrong.append(f"failed: {request.url} {request.failure}")

    def at_home(self, request: Request, address: str) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            self.wrong.append(f"another host: {urlsplit(request.url).netloc}")


# A page has thousands of elements that are its formulas, all of one colour and kind, and thousands of words in code or in bold,
# coloured by some dozen classes. To ask about each took most of the time of these tests: two pages are asked about all of it,
# the others about no formula, and about one such word for each class and place.
FEWER_WORDS = """() => {
  document.querySelectorAll('.katex').forEach(e => e.remove());
  const seen = new Set();
  const kind = e => [e, e.parentElement, e.parentElement.parentElement,
                     e.closest('.cell_input, .cell_output, .admonition, dt, dd, table, figcaption')]
    .map(place => place && `${place.tagName}.${place.className}`).join(' in ');
  for (const e of [...document.querySelectorAll('article :is(code, span, strong, em, i, b)')].reverse()) {
    if (e.closest('.board') || e.childElementCount) continue;
    if (seen.has(kind(e))) e.replaceWith(e.textContent);
    else seen.add(kind(e));
  }
}"""


def violations(page: Page, *, whole: bool = False, rules: tuple[str, ...] = ()) -> list[str]:
    if not whole:
        page.evaluate(FEWER_WORDS)
    only = {"runOnly": list(rules)} if rules else {}
    found = Axe().run(page, options={"resultTypes": ["violations"], **only}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]
