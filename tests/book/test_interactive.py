"""The interactive figures in Chromium: moved with mouse and keys, and held to the formulas computed here."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from urllib.parse import urlsplit

import bookfiles
import pytest
import torch
from browsing import Visit
from playwright.sync_api import Browser, BrowserContext, Locator, Page
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace
from torch import nn

from pwl_lib.piecewise_linear import activation_pattern, affine_piece
from pwl_lib.regions import Regions, slice_regions

SITE = bookfiles.SITE
BUDGET = 1_000_000  # bytes that a page with a board may load for it
FIGURES = {
    "logsumexp": "fig-lse-slider",
    "maxout": "fig-maxout-lines",
    "regions": "fig-regions-point",
}  # board and chapter have one name

each_board = pytest.mark.parametrize("name", FIGURES)
Opened = Callable[..., Page]


def chapter(name: str) -> Path:
    return SITE / "chapters" / f"{name}.html"


@pytest.fixture(scope="module")
def visits(contexts: dict[str, BrowserContext]) -> Iterator[dict[tuple[str, str], Visit]]:
    """The pages opened so far: a long chapter is loaded once, and not for each test."""
    visits: dict[tuple[str, str], Visit] = {}
    yield visits
    for visit in visits.values():
        visit.page.close()


@pytest.fixture
def opened(visits: dict[tuple[str, str], Visit], contexts: dict[str, BrowserContext], address: str) -> Iterator[Opened]:
    """Opens a chapter at its figure; at the end of the test nothing may have gone wrong on the page."""

    def open_it(name: str, context: str = "light") -> Page:
        if (name, context) not in visits:
            visits[name, context] = Visit(contexts[context], address, chapter(name))
        page = visits[name, context].page
        page.bring_to_front()  # Chromium lets a page behind another one wait
        if context == "light":
            page.set_viewport_size({"width": 1280, "height": 900})
            if name == "maxout":
                page.get_by_role("button", name="Start again").click()
        page.locator(f"#{FIGURES[name]}").scroll_into_view_if_needed()
        return page

    yield open_it
    assert [wrong for visit in visits.values() for wrong in visit.wrong] == []


def numbers(page: Page) -> dict[str, str]:
    return page.eval_on_selector_all(
        "[data-number]", "all => Object.fromEntries(all.map(e => [e.dataset.number, e.textContent]))"
    )


def middle(place: Locator) -> tuple[float, float]:
    box = place.bounding_box()
    assert box is not None
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page: Page, place: Locator, right: float, down: float) -> None:
    x, y = middle(place)
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()


VIEWS = {
    "logsumexp": (-3.2, 4.1, 3.2, -0.6),
    "maxout": (-3.4, 3.8, 3.4, -2.8),
    "regions": (-1.16, 1.1, 1.1, -1.16),
}  # left, top, right and bottom of the plane


class Board:
    """What stands on the page at one moment: its texts, and what is drawn, in the coordinates of the plane."""

    def __init__(self, name: str, page: Page) -> None:
        self.view = VIEWS[name]
        self.numbers = numbers(page)
        found = page.evaluate(
            """() => {
              const box = e => (({x, y, width, height}) => ({x, y, width, height}))(e.getBoundingClientRect());
              const says = e => Object.fromEntries(['now', 'min', 'max'].map(w => [w, e.getAttribute(`aria-value${w}`)]));
              const all = (selector, what) => [...document.querySelectorAll(`.board svg ${selector}`)].map(what);
              return {
                plane: box(document.querySelector('.board svg')),
                handles: all('.handle', e => [e.getAttribute('aria-label'), {box: box(e), says: says(e)}]),
                curves: all('path:is(.blue, .orange, .green, .red, .grey, .ink):not(.handle, .dot)',
                            e => [e.getAttribute('class').trim(), e.getAttribute('d')]),
              };
            }"""
        )
        self.plane, self.handles = found["plane"], dict(found["handles"])
        self.curves: dict[str, list[tuple[float, float]]] = {}
        for colour, path in found["curves"]:
            ends = [float(number) for number in re.findall(r"-?\d[\d.]*(?:e-\d+)?", path)]
            self.curves[colour] = [self.user(x, y) for x, y in zip(ends[::2], ends[1::2], strict=True)]

    def user(self, x: float, y: float) -> tuple[float, float]:
        """From pixels of the plane."""
        left, top, right, bottom = self.view
        return left + x / self.plane["width"] * (right - left), top + y / self.plane["height"] * (bottom - top)

    def place(self, name: str | None, parts: int = 20) -> tuple[Fraction, Fraction]:
        """Where a handle is, in twentieths or other parts; a pixel beside them would be a mistake."""
        box = self.handles[name]["box"]
        there = self.user(box["x"] + box["width"] / 2 - self.plane["x"], box["y"] + box["height"] / 2 - self.plane["y"])
        exact = [Fraction(round(number * parts), parts) for number in there]
        assert [float(number) for number in exact] == pytest.approx(there, abs=0.3 / parts)
        return exact[0], exact[1]

    def says(self, name: str, which: str = "now") -> Fraction:
        """What a handle tells a screen reader."""
        return Fraction(self.handles[name]["says"][which])

    def assert_drawn(self, colour: str, points: Iterable[tuple[float, float]]) -> None:
        assert self.curves[colour] == [pytest.approx(point, abs=0.03) for point in points], colour


# Of the board `logsumexp`


def fixed(number: float, digits: int) -> str:
    return f"{number:.{digits}f}".replace("-", "−")


def small(number: float) -> str:
    if number >= 0.001:
        return fixed(number, 4)
    digits, power = f"{number:.2e}".split("e")
    return f"{digits} × 10−{-int(power)}"


def gap(t: float, x: float) -> float:
    return math.log1p(math.exp(-t * abs(x))) / t


def wanted(page: Page) -> dict[str, str]:
    """The numbers that belong to where the two sliders stand."""
    exponent, x = page.eval_on_selector_all(".slider input", "all => all.map(e => e.valueAsNumber)")
    t = float(f"{2**exponent:.3g}")
    if t * abs(x) < 20:
        assert math.isclose(gap(t, x), math.log(math.exp(t * x) + 1) / t - max(x, 0), abs_tol=1e-9)
    return {"t": f"{t:#.3g}", "x": fixed(x, 2), "gap": small(gap(t, x)), "bound": small(math.log(2) / t)}


def assert_drawn_to_scale(page: Page) -> None:
    """The four curves and the point on the axis are where the numbers say."""
    board = Board("logsumexp", page)
    t, x = (float(board.numbers[name].replace("−", "-")) for name in "tx")
    top = max(x, 0)
    board.assert_drawn("orange", [(-3, 0), (0, 0), (3, 3)])
    board.assert_drawn("grey dashed", [(u, max(u, 0) + math.log(2) / t) for u in (-3, 0, 3)])
    board.assert_drawn("red thick", [(x, top), (x, top + gap(t, x))])
    us = [u for u, _ in board.curves["blue thick"]]
    assert (min(us), max(us)) == pytest.approx((-3, 3), abs=0.01)
    assert max(v - u for u, v in itertools.pairwise(us)) < 0.05
    board.assert_drawn("blue thick", [(u, max(u, 0) + gap(t, u)) for u in us])
    assert board.place(None) == (pytest.approx(x), 0)


def test_the_sliders_of_logsumexp_move_with_keys_and_the_numbers_are_those_of_the_formula(opened: Opened) -> None:
    page = opened("logsumexp")
    seen = [numbers(page)]
    assert seen == [wanted(page)]
    for slider, keys in (
        ("t", ["Home", *["ArrowRight"] * 3, "PageUp", "PageUp", "ArrowLeft", "End"]),
        ("x", ["Home", "ArrowRight", "PageUp", "End", "PageDown"]),
        ("t", ["PageDown", "Home"]),
        ("x", ["PageDown", "ArrowDown"]),
    ):
        page.locator(f"input[name={slider}]").focus()
        for key in keys:
            page.keyboard.press(key)
            there = numbers(page)
            assert there == wanted(page)
            assert there != seen[-1], key
            seen.append(there)
    assert {"0.250", "32.0"} <= {there["t"] for there in seen}
    assert {"−3.00", "3.00"} <= {there["x"] for there in seen}
    assert any("× 10−" in there["gap"] for there in seen)


def test_the_bound_falls_as_the_temperature_rises_and_is_the_gap_at_0(opened: Opened) -> None:
    page = opened("logsumexp")
    page.locator("input[name=x]").fill("0")
    page.locator("input[name=t]").focus()
    page.keyboard.press("Home")
    bounds = []
    while not bounds or numbers(page)["t"] != "32.0":
        if bounds:
            page.keyboard.press("PageUp")
        there = numbers(page)
        assert there == wanted(page)
        assert there["x"] == "0.00"
        assert there["gap"] == there["bound"] == fixed(math.log(2) / float(there["t"]), 4)
        bounds.append(float(there["bound"]))
    assert len(bounds) > 4
    assert all(before > after for before, after in itertools.pairwise(bounds))


def test_the_mouse_moves_temperature_and_place_and_the_gap_is_drawn_to_scale(opened: Opened) -> None:
    page = opened("logsumexp")
    before = numbers(page)
    track = page.locator("input[name=t]").bounding_box()
    assert track is not None
    page.locator("input[name=t]").click(position={"x": track["width"] * 0.2, "y": track["height"] / 2})
    assert numbers(page) == wanted(page)
    assert float(numbers(page)["t"]) < float(before["t"])

    plane = page.locator(".board svg").bounding_box()
    assert plane is not None
    unit = plane["width"] / 6.4
    drag(page, page.locator(".board .handle"), right=-1.25 * unit, down=30)
    assert float(numbers(page)["x"].replace("−", "-")) == pytest.approx(float(before["x"]) - 1.25, abs=0.051)
    assert numbers(page) == wanted(page)
    assert_drawn_to_scale(page)
    drag(page, page.locator(".board .handle"), right=2000, down=0)
    assert numbers(page)["x"] == "3.00"
    assert numbers(page) == wanted(page)
    for exponent, x in (("-2", "-0.4"), ("5", "0")):
        page.locator("input[name=t]").fill(exponent)
        page.locator("input[name=x]").fill(x)
        assert_drawn_to_scale(page)


# Of the board `maxout`


KEYS = {  # how far each lifts a handle
    "ArrowUp": Fraction(1, 10),
    "ArrowLeft": Fraction(-1, 10),
    "ArrowRight": Fraction(1, 10),
    "ArrowDown": Fraction(-1, 10),
    "PageDown": Fraction(-1, 2),
}
ROUND = [f"line {n}, height" for n in (1, 2, 3)]
SQUARE = [f"line {n}, slope" for n in (1, 2, 3)]


def handle(page: Page, name: str) -> Locator:
    return page.get_by_role("slider", name=name)


def unit(page: Page) -> Board:
    return Board("maxout", page)


def lines(board: Board) -> list[tuple[Fraction, Fraction]]:
    """Slope and bias of each line, from the places of its handles alone."""
    found = []
    for one, other in zip(ROUND, SQUARE, strict=True):
        (x, y), (u, v) = board.place(one), board.place(other)
        slope = (v - y) / (u - x)
        found.append((slope, y - slope * x))
    return found


def corners(lines: list[tuple[Fraction, Fraction]]) -> tuple[list[tuple[float, float]], int]:
    """The corners of the maximum on [-3, 3], and how many of the lines are above the others somewhere on it."""
    crossings = {
        (c - b) / (a - d)
        for (a, b), (d, c) in itertools.combinations(lines, 2)
        if a != d and -3 < (c - b) / (a - d) < 3
    }
    ends = sorted({Fraction(-3), Fraction(3), *crossings})
    top = [max(a * x + b for a, b in lines) for x in ends]
    showing = {max((a * x + b, a, b) for a, b in lines)[1:] for x in ((p + q) / 2 for p, q in itertools.pairwise(ends))}
    return [(float(x), float(y)) for x, y in zip(ends, top, strict=True)], len(showing)


def check(board: Board) -> int:
    """Formulas, count and what is drawn agree with the places of the handles. Returns the count."""
    for n, (colour, (slope, bias)) in enumerate(zip(("blue", "orange", "green"), lines(board), strict=True)):
        sign = "−" if bias < 0 else "+"
        assert board.numbers[f"line-{n + 1}"] == f"{fixed(float(slope), 2)}x {sign} {fixed(abs(float(bias)), 2)}"
        assert board.says(SQUARE[n]) == slope
        assert board.says(ROUND[n]) == board.place(ROUND[n])[1]
        board.assert_drawn(colour, [(x, float(slope * x + bias)) for x in (-3, 3)])
    points, count = corners(lines(board))
    assert board.numbers["pieces"] == str(count)
    board.assert_drawn("ink band", points)
    return count


def test_a_line_of_maxout_is_dragged_and_the_maximum_follows(opened: Opened) -> None:
    page = opened("maxout")
    start = unit(page)
    assert check(start) == 3
    page.mouse.move(*middle(page.locator(".board svg")))
    page.evaluate("scrollBy(0, 60)")  # just before: the drag starts from where the board is now
    drag(page, handle(page, "line 2, height"), right=-40, down=90)
    sunk = unit(page)
    assert check(sunk) == 2
    assert lines(sunk)[1][0] == lines(start)[1][0], "a round handle keeps the slope"
    assert lines(sunk)[1][1] < lines(start)[1][1]
    assert lines(sunk)[::2] == lines(start)[::2]

    drag(page, handle(page, "line 2, height"), right=0, down=-900)  # far outside: it stops at the edge
    for n in (1, 3):
        drag(page, handle(page, f"line {n}, height"), right=0, down=900)
    assert check(unit(page)) == 1

    fixed_end = unit(page).place("line 3, height")
    drag(page, handle(page, "line 3, slope"), right=25, down=-160)
    turned = unit(page)
    check(turned)
    assert turned.place("line 3, height") == fixed_end, "a square handle turns the line about the round one"
    assert lines(turned)[2][0] > lines(start)[2][0]
    page.keyboard.press("ArrowDown")  # the handle that was dragged has the keys
    assert lines(unit(page))[2][0] == lines(turned)[2][0] - Fraction(1, 10)


def test_the_arrow_keys_move_every_handle_of_maxout_and_the_button_starts_again(opened: Opened) -> None:
    page = opened("maxout")
    start = before = unit(page)
    counts = set()
    for name in (*ROUND, *SQUARE):
        handle(page, name).focus()
        for key, up in KEYS.items():
            page.keyboard.press(key)
            after = unit(page)
            counts.add(check(after))
            (x, y), before = before.place(name), after
            assert after.place(name) == (x, y + up)
    for key, end in (("Home", "min"), ("End", "max")):
        page.keyboard.press(key)
        counts.add(check(unit(page)))
        assert unit(page).says(SQUARE[2]) == unit(page).says(SQUARE[2], end)
    assert len(counts) > 1
    assert lines(unit(page)) != lines(start)
    page.get_by_role("button", name="Start again").press("Enter")
    assert lines(unit(page)) == lines(start)
    assert check(unit(page)) == 3


def test_equal_lines_count_once(opened: Opened) -> None:
    page = opened("maxout")
    for name in (*SQUARE, *ROUND):  # all three become the constant 0
        handle(page, name).focus()
        value = unit(page).says(name)
        lowers = (value > 0) != (name == "line 1, slope")  # its square handle is on the left
        for _ in range(round(abs(value) * 10)):
            page.keyboard.press("ArrowDown" if lowers else "ArrowUp")
    assert lines(unit(page)) == [(0, 0)] * 3
    assert check(unit(page)) == 1


def test_a_finger_moves_a_handle_and_scrolls_the_page_beside_it(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    visit = Visit(context, address, chapter("maxout"))
    page, fingers = visit.page, context.new_cdp_session(visit.page)

    def swipe(x: float, y: float, down: float) -> float:
        """How far the page has scrolled by it."""
        before = page.evaluate("scrollY")
        fingers.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 9):
            touch = {"x": x, "y": y + down * step / 8}
            fingers.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [touch]})
            page.wait_for_timeout(16)
        fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(100)
        return page.evaluate("scrollY") - before

    try:
        page.locator(".board").scroll_into_view_if_needed()
        start = unit(page)
        assert swipe(*middle(handle(page, "line 2, height")), down=60) == 0
        moved = unit(page)
        assert lines(moved)[1][1] < lines(start)[1][1]
        assert check(moved) == 2
        assert swipe(moved.plane["x"] + moved.plane["width"] * 0.4, moved.plane["y"] + 20, down=-80) > 40
        assert lines(unit(page)) == lines(moved)
        assert visit.wrong == []
    finally:
        context.close()


# Of the board `regions`


@pytest.fixture(scope="module")
def tiny() -> nn.Sequential:
    """The network of the board, with the weights that stand in the chapter."""
    cells = bookfiles.code(bookfiles.ROOT / "chapters" / "regions.ipynb")
    (source,) = (cell.source for cell in cells if cell.source.startswith("W1 = "))
    found: dict[str, list[list[float]]] = {}
    exec("\n".join(line for line in source.splitlines() if re.match(r"[Wb]\d", line)), found)
    layers: list[nn.Module] = []
    for n in "123":
        weight, bias = torch.tensor(found[f"W{n}"]).double(), torch.tensor(found[f"b{n}"]).double()
        layer = nn.Linear(*weight.T.shape, dtype=torch.float64)
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.fixture(scope="module")
def tiling(tiny: nn.Sequential) -> Regions:
    zero, one = torch.zeros(2).double(), torch.eye(2).double()
    return slice_regions(tiny, zero, one[0], one[1])


def check_region(page: Page, tiling: Regions, tiny: nn.Sequential) -> tuple[str, ...]:
    """The board says of its point what the library says, and has drawn its polygon. Returns where it is, and the pattern."""
    board = Board("regions", page)
    said = {name: number.replace("−", "-") for name, number in board.numbers.items()}
    x = torch.tensor([[float(said["x1"]), float(said["x2"])]]).double()
    assert board.place(None, parts=50) == (Fraction(said["x1"]), Fraction(said["x2"]))
    piece = affine_piece(tiny, x)
    wanted = {
        "a1": piece.A[0, 0, 0],
        "a2": piece.A[0, 0, 1],
        "b": piece.b[0, 0],
        "value": tiny(x)[0, 0],
    }
    for name, number in wanted.items():
        assert float(said[name]) == pytest.approx(number.item(), abs=5.1e-5), name
    word = activation_pattern(tiny, x)[0]
    assert said["pattern"] == "".join(map(str, word.tolist()))
    (found,) = (tiling.pattern == word).all(dim=1).nonzero()[0].tolist()
    polygon = tiling.polygons[found].tolist()
    assert said["corners"] == str(len(polygon))
    assert said["regions"] == str(len(tiling))
    drawn = board.curves["blue region"]
    assert drawn[0] == drawn[-1]
    first = min(range(len(polygon)), key=lambda k: math.dist(polygon[k], drawn[0]))
    board.assert_drawn("blue region", [*polygon[first:], *polygon[:first], polygon[first]])
    (p, q), half = board.curves["orange thick"], piece.A[0, 0] / 2
    assert [q[k] - p[k] for k in (0, 1)] == pytest.approx(half.tolist(), abs=0.02)
    return said["x1"], said["x2"], said["pattern"]


def test_the_point_of_regions_moves_with_keys_and_the_numbers_are_those_of_the_library(
    opened: Opened, tiling: Regions, tiny: nn.Sequential
) -> None:
    page = opened("regions")
    seen = [check_region(page, tiling, tiny)]
    for slider, keys in (
        ("x1", ["Home", "PageUp", "PageUp", "ArrowRight", "PageUp", "End"]),
        ("x2", ["Home", "ArrowUp", "PageUp", "End", "ArrowLeft"]),
        ("x1", ["PageDown", "PageDown", "Home"]),
    ):
        page.locator(f"input[name={slider}]").focus()
        for key in keys:
            page.keyboard.press(key)
            seen.append(check_region(page, tiling, tiny))
            assert seen[-1][:2] != seen[-2][:2], key
    assert len({word for _, _, word in seen}) >= 6


def test_the_point_of_regions_is_dragged_and_stops_at_the_edge(
    opened: Opened, tiling: Regions, tiny: nn.Sequential
) -> None:
    page = opened("regions")
    for x in tiling.centroid[:4].tolist():
        for name, number in zip(("x1", "x2"), x, strict=True):
            page.locator(f"input[name={name}]").fill(f"{round(number * 50) / 50:.2f}")
        check_region(page, tiling, tiny)
    point = page.locator(".board .handle")
    drag(page, point, right=60, down=-45)
    moved = check_region(page, tiling, tiny)
    drag(page, point, right=5, down=40)
    assert check_region(page, tiling, tiny) != moved
    drag(page, point, right=2000, down=2000)
    assert check_region(page, tiling, tiny)[:2] == ("1.00", "-1.00")


# Of all


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("logsumexp", ["temperature t", "place x"]),
        ("maxout", [*itertools.chain(*zip(ROUND, SQUARE, strict=True)), "Start again"]),
        ("regions", ["x1", "x2"]),
    ],
)
def test_the_tab_key_reaches_all_that_moves_and_shows_where_it_is(name: str, stops: list[str], opened: Opened) -> None:
    page = opened(name)
    page.evaluate(  # just before the board, as a reader who comes from the text above
        """() => { const stop = document.createElement('button');
                   document.querySelector('.board').before(stop); stop.focus(); stop.onblur = () => stop.remove(); }"""
    )
    for stop in stops:
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
                 return [e.getAttribute('aria-label') ?? (e.labels?.[0] ?? e).textContent, s.outlineStyle, parseFloat(s.outlineWidth)]; }"""
        )
        assert found == [stop, "solid", 2]
    page.keyboard.press("Tab")
    assert not page.evaluate("document.activeElement.closest('.board')"), "a stop without a name"


@each_board
def test_without_scripts_the_static_figure_stands(name: str, opened: Opened) -> None:
    page = opened(name, "no scripts")
    assert page.locator(f"#{FIGURES[name]} img").is_visible()
    assert page.locator(f"#{FIGURES[name]} .caption-text").is_visible()
    assert page.locator(".board").count() == 0
    assert page.locator(".interactive").count() == 1
    assert not page.locator(".interactive").is_visible()


@each_board
def test_the_board_takes_the_place_of_the_picture_on_screens_but_not_on_paper(name: str, opened: Opened) -> None:
    page = opened(name)
    figure = page.locator(f"#{FIGURES[name]}")

    def visible() -> dict[str, bool]:
        parts = {
            "board": ".board svg",
            "its words": ".interactive p >> nth=0",
            "picture": "> img",
            "caption": ".caption-text",
        }
        return {part: figure.locator(selector).first.is_visible() for part, selector in parts.items()}

    assert visible() == {"board": True, "its words": True, "picture": False, "caption": False}
    assert figure.locator(".caption-number").is_visible()
    page.emulate_media(media="print")
    assert visible() == {"board": False, "its words": False, "picture": True, "caption": True}
    page.emulate_media(media="screen")


@each_board
def test_a_board_follows_the_size_of_the_screen_and_fits_a_narrow_one(name: str, opened: Opened) -> None:
    page = opened(name)
    for width, least in ((390, 300), (700, 450 if name == "regions" else 550), (390, 300)):
        page.set_viewport_size({"width": width, "height": 844})
        page.wait_for_function(
            """([least, most]) => { const { width } = document.querySelector('.board svg').getBoundingClientRect();
                                    return least < width && width < most; }""",
            arg=[least, width],
        )
        # Of the whole page, a test of all pages asks this.
        outside = page.evaluate(
            """() => [...document.querySelectorAll('.has-board :is(.board, .board *, figcaption *):not(svg *, .katex *)')]
                 .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
        )
        assert outside == []
    if name == "maxout":
        assert check(unit(page)) == 3


# The contrast of every drawn line and letter to what is behind them; axe looks at text in HTML alone.
CONTRASTS = """() => {
  const luminance = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(c => c / 255)
      .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  let paper = document.querySelector('.board svg');
  while (getComputedStyle(paper).backgroundColor === 'rgba(0, 0, 0, 0)') paper = paper.parentElement;
  const back = luminance(getComputedStyle(paper).backgroundColor);
  return Object.fromEntries([...document.querySelectorAll('.board svg :is(text, .blue, .orange, .green, .red, .grey)')].map(e => {
    const style = getComputedStyle(e), colour = e.matches('text, .dot') ? style.fill : style.stroke;
    const [low, high] = [luminance(colour), back].sort((a, b) => a - b);
    return [colour, (high + 0.05) / (low + 0.05)];
  }));
}"""


@each_board
def test_colours_follow_the_theme(name: str, opened: Opened) -> None:
    page = opened(name)
    light = page.evaluate(CONTRASTS)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    dark = page.evaluate(CONTRASTS)
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert len(light) == len(dark) >= 4
    assert not set(light) & set(dark)
    assert min(*light.values(), *dark.values()) >= 4.5
    assert "rgb(27, 102, 168)" in light, "the blue of pwl_lib.plot"


def loaded(page: Path) -> set[Path]:
    """The files that a page asks for from the folder of the boards."""
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*", page.read_text())
    addresses = re.findall(r"""(?:src|href)=["']([^"']*)""", " ".join(tags))
    files = {(page.parent / urlsplit(address).path).resolve() for address in addresses}
    return {file for file in files if file.is_relative_to(SITE.resolve() / "interactive")}


def test_only_pages_with_a_board_load_its_scripts_which_are_small_enough() -> None:
    for page in bookfiles.site_pages():
        names = set(re.findall(r'<div class="interactive" data-board="(\w+)"', page.read_text()))
        files = loaded(page)
        assert names == ({page.stem} if page.stem in FIGURES else set())
        assert {file.stem for file in files} == ({"jsxgraphcore", "jsxgraph", "boards"} | names if names else set())
        assert sum(file.stat().st_size for file in files) <= BUDGET
        assert not names or page.read_text().count('<script defer src="../interactive/') == 3
    assert [page.stem for page in bookfiles.site_pages() if loaded(page)] == sorted(FIGURES)


def test_nothing_below_static_is_of_the_boards() -> None:
    # Jupyter Book loads every script below _static on every page.
    assert not [path for path in (SITE / "_static").rglob("*") if re.search("jsxgraph|boards", path.name)]
    assert (SITE / "interactive" / "jsxgraph" / "LICENSE.MIT").is_file()


@contextmanager
def built(source: str, folder: Path, builder: str) -> Iterator[tuple[str, str]]:
    """A book of one page, and the warnings of its build."""
    (folder / "_extra" / "interactive").mkdir(parents=True)
    (folder / "_extra" / "interactive" / "known.js").touch()
    (folder / "_extra" / "interactive" / "boards.js").touch()
    (folder / "picture.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "index.rst").write_text(
        f"Title\n=====\n\n.. figure:: picture.svg\n   :name: fig-known\n\n   Words.\n\n{source}"
    )
    warnings = io.StringIO()
    with docutils_namespace():
        Sphinx(
            *(folder, None, folder / "out", folder / "trees", builder),
            confoverrides={"extensions": ["interactive"]},
            status=None,
            warning=warnings,
            freshenv=True,
        ).build()
    yield (folder / "out" / f"index.{'html' if builder == 'html' else 'txt'}").read_text(), warnings.getvalue()


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        (".. interactive:: known\n   :static: fig-known\n\n   Move it.\n", ""),
        (".. interactive:: other\n   :static: fig-known\n\n   Move it.\n", "no board is named 'other'"),
        (".. interactive:: boards\n   :static: fig-known\n\n   Move it.\n", "no board is named 'boards'"),
        (
            ".. interactive:: known\n   :static: fig-other\n\n   Move it.\n",
            "no figure of this page has the label 'fig-other'",
        ),
        (".. interactive:: known\n\n   Move it.\n", "needs :static:"),
        (".. interactive:: known\n   :static: fig-known\n", "Content block expected"),
    ],
)
def test_a_board_or_figure_that_does_not_exist_is_a_warning(source: str, warning: str, tmp_path: Path) -> None:
    with built(source, tmp_path, "html") as (page, warnings):
        assert (warning in warnings) if warning else not warnings
        assert ('data-board="known" data-static="fig-known" hidden' in page) == (not warning)
        assert ("interactive/known.js" in page) == (not warning)


def test_where_no_script_can_run_the_text_is_a_note(tmp_path: Path) -> None:
    with built(".. interactive:: known\n   :static: fig-known\n\n   Move it.\n", tmp_path, "text") as (page, warnings):
        assert not warnings
        assert "Note:" in page
        assert "Move it." in page
