"""The built site, read as HTML: links, anchors, alt text, formulas, and the links between equations and code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import bookfiles
import pytest
import torch

import pwl_lib.check

SITE = bookfiles.SITE
each_page = pytest.mark.parametrize("page", bookfiles.site_pages(), ids=lambda page: str(page.relative_to(SITE)))


def test_the_book_is_built() -> None:
    built = {str(page.relative_to(SITE).with_suffix("")) for page in bookfiles.site_pages()}
    wanted = {str(path.relative_to(bookfiles.ROOT).with_suffix("")) for path in bookfiles.pages()}
    assert wanted <= built, "build the book first: nox -s book"
    assert wanted


@each_page
def test_every_internal_link_leads_somewhere(page: Path) -> None:
    for tag in bookfiles.soup(page).find_all(["a", "link", "img", "script"]):
        address = tag.get("href") or tag.get("src")
        if not address or urlsplit(address).scheme:
            continue
        path, anchor = unquote(urlsplit(address).path), unquote(urlsplit(address).fragment)
        target = (page.parent / path).resolve() if path else page
        target = target / "index.html" if target.is_dir() else target
        assert target.is_relative_to(SITE.resolve()), f"{address} leaves the site"
        assert target.is_file(), f"{address} leads nowhere"
        if anchor and target.suffix == ".html":
            assert anchor in bookfiles.anchors(target), f"{address} names no place"


@each_page
def test_nothing_is_loaded_from_another_host(page: Path) -> None:
    for tag in bookfiles.soup(page).find_all(["link", "img", "script", "iframe", "source", "video", "object"]):
        address = tag.get("href") or tag.get("src") or tag.get("data") or ""
        assert urlsplit(address).scheme in ("", "data"), address
        assert "mathjax" not in address.lower()


@each_page
def test_every_image_has_alt_text(page: Path) -> None:
    for image in bookfiles.soup(page).find_all("img"):
        assert (image.get("alt") or "").strip(), image.get("src")
        assert not image["alt"].endswith((".png", ".svg")), image["alt"]


@each_page
def test_an_id_is_unique_on_its_page(page: Path) -> None:
    # sphinx-design, the theme and Pygments have their own; the article is ours.
    article = bookfiles.soup(page).select_one("article")
    count = Counter(tag["id"] for tag in article.find_all(id=True)) if article else Counter()
    assert [name for name, n in count.items() if n > 1] == []


@each_page
def test_every_formula_was_rendered(page: Path) -> None:
    soup = bookfiles.soup(page)
    assert not soup.select(".katex-error")
    for formula in soup.select("span.math, div.math"):
        assert formula.select_one(".katex-html"), formula.get_text()[:80]
        assert formula.select_one("math"), "MathML, for screen readers"
    # A formula that Markdown did not see stays as dollars in the text.
    for text in (
        soup.select("article")[0].find_all(string=re.compile(r"\\[a-zA-Z]{2,}|\$\S")) if soup.select("article") else []
    ):
        assert text.find_parent(["pre", "code", "script", "annotation"]), text


def test_sympy_outputs_are_formulas() -> None:
    for path in bookfiles.chapters():
        wanted = sum(
            1 for cell in bookfiles.code(path) for output in cell.outputs if "text/latex" in output.get("data", {})
        )
        page = bookfiles.soup(SITE / "chapters" / f"{path.stem}.html")
        assert len(page.select(".cell_output .text_latex .katex")) == wanted


def public() -> dict[str, object]:
    """Every public name of the library, by the name of its own module: modules that hand names on add none."""
    root = bookfiles.ROOT / "pwl_lib"
    found: dict[str, object] = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if any(part.startswith("_") for part in name.split(".")):
            continue
        module = importlib.import_module(name)
        exercises = [name for name, thing in vars(module).items() if isinstance(thing, pwl_lib.check.Exercise)]
        for attribute in getattr(module, "__all__", exercises):
            thing = getattr(module, attribute)
            if name not in ("pwl_lib", "pwl_lib.functional", "pwl_lib.nn") and not isinstance(thing, type(ast)):
                found[f"{name}.{attribute}"] = thing
    return found


def api() -> Path:
    return SITE / "chapters" / "api.html"


def test_every_public_name_has_its_entry_in_the_reference() -> None:
    entries = {tag["id"] for tag in bookfiles.soup(api()).select("dt.sig[id]")}
    assert sorted(set(public()) - entries) == []


def test_names_handed_on_lead_to_their_entry() -> None:
    listed = bookfiles.soup(api()).select("ul.handed-on")
    for name, rows in zip(("pwl_lib.functional", "pwl_lib.nn"), listed, strict=True):
        module = importlib.import_module(name)
        links = {link.get_text(): str(link["href"]) for link in rows.select("a[href]")}
        assert set(links) == set(module.__all__)
        for attribute, address in links.items():
            assert address.endswith(f".{getattr(module, attribute).__qualname__}")


def test_equations_and_their_code_link_to_each_other() -> None:
    """Both directions from the docstrings alone, not from what the extension found in them."""
    checked = 0
    for name, thing in public().items():
        docstring = getattr(thing, "__doc__", "") or ""
        for label in re.findall(r":eq:`(?:[^`<]*<)?([\w:-]+)>?`", docstring):
            checked += 1
            entry = bookfiles.by_id(api()).get(name)
            assert entry is not None, name
            there = entry.parent.select(f"a[href$='#equation-{label}']")
            assert there, f"{name} has no link to {label}"
            chapter = (api().parent / str(there[0]["href"]).split("#")[0]).resolve()
            equation = bookfiles.by_id(chapter).get(f"equation-{label}")
            assert equation is not None, label
            line = equation.find_next_sibling()
            assert line is not None, label
            assert "equation-code" in line["class"], label
            assert any(str(link["href"]).endswith(f"api.html#{name}") for link in line.select("a")), f"{label}: {name}"
    assert checked, "no docstring names an equation"


def test_only_labelled_equations_of_docstrings_have_a_line_of_code_links() -> None:
    named = {
        label
        for thing in public().values()
        for label in re.findall(r":eq:`(?:[^`<]*<)?([\w:-]+)>?`", all_docstrings(thing))
    }
    for page in bookfiles.site_pages():
        for line in bookfiles.soup(page).select(".equation-code"):
            equation = line.find_previous_sibling(class_="math")
            assert equation is not None
            assert str(equation["id"]).removeprefix("equation-") in named


def all_docstrings(thing: object) -> str:
    members = vars(thing).values() if isinstance(thing, type) else []
    return " ".join(getattr(part, "__doc__", "") or "" for part in (thing, *members))


@pytest.mark.parametrize("name", [name for name, thing in public().items() if callable(thing)])
def test_a_public_docstring_has_a_first_line_and_an_example(name: str) -> None:
    thing = public()[name]
    docstring = thing.__doc__ or ""
    assert docstring.strip(), "a docstring"
    assert docstring.strip().splitlines()[0].rstrip().endswith((".", ":")), "one line of what"
    # A class that is no module is what a function returns, and that function shows it. An exercise's example would be its solution.
    if inspect.isroutine(thing) or (inspect.isclass(thing) and issubclass(thing, torch.nn.Module)):
        assert ">>>" in docstring, "an example that doctest runs"


def test_every_public_module_says_what_is_public() -> None:
    for file in sorted((bookfiles.ROOT / "pwl_lib").rglob("*.py")):
        if not file.stem.startswith("_") and file.parent.name != "check":
            assigned = [
                ast.unparse(node.targets[0]) for node in bookfiles.syntax(file).body if isinstance(node, ast.Assign)
            ]
            assert "__all__" in assigned, f"{file.name} has no __all__"
