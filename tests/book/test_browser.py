"""The built site in Chromium: offline, without scripts, narrow, dark, with a keyboard, and by axe's rules.

A missing browser is a failure, never a skip.
"""

from __future__ import annotations

from pathlib import Path

import bookfiles
import pytest
from browsing import STICKING_OUT, Visit, violations
from playwright.sync_api import BrowserContext

SITE = bookfiles.SITE
# axe's rules that look at colours, the only ones that a theme can break
COLOURS = ("color-contrast", "link-in-text-block")
each_page = pytest.mark.parametrize("page", bookfiles.site_pages(), ids=lambda page: str(page.relative_to(SITE)))


@each_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_loads_offline_and_is_accessible(
    page: Path, scheme: str, contexts: dict[str, BrowserContext], address: str
) -> None:
    visit = Visit(contexts[scheme], address, page)
    try:
        assert visit.wrong == []
        assert visit.page.locator("html").get_attribute("data-theme") == scheme
        rules = COLOURS if scheme == "dark" else ()  # the others were asked in the light
        assert violations(visit.page, whole=page.stem in ("index", "notation"), rules=rules) == []
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
        assert violations(visit.page, whole=True, rules=("scrollable-region-focusable",)) == []
    finally:
        visit.page.close()


@each_page
def test_formulas_are_there_without_scripts(page: Path, contexts: dict[str, BrowserContext], address: str) -> None:
    formulas = len(bookfiles.soup(page).select("article .katex-html"))
    visit = Visit(contexts["no scripts"], address, page)
    try:
        assert visit.wrong == []
        shown = visit.page.eval_on_selector_all(
            "article .katex-html",
            "all => all.map(e => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])",
        )
        assert len(shown) == formulas
        boxes = [(width, height) for width, height in shown if width or height]  # others are folded away
        assert all(width > 2 and height > 5 for width, height in boxes)
        assert boxes or not formulas
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
