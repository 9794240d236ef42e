"""Every task of the book by name: `python -m nox --list`, `python -m nox -s book`."""

from __future__ import annotations

import hashlib
import shutil
import webbrowser
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.sessions = ["book"]
nox.options.stop_on_first_error = True

ROOT = Path(__file__).parent
SITE = ROOT / "_build" / "html"
# One environment for all tasks, so that torch is installed once.
task = nox.session(venv_location=str(ROOT / ".nox" / "pwl"), reuse_venv=True)


def prepare(session: nox.Session, extra: str) -> None:
    """Installs the package with an extra, unless nothing changed since the last time."""
    wanted = hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))).hexdigest()
    stamp = Path(session.virtualenv.location) / f"installed-{extra}"
    if not stamp.is_file() or stamp.read_text() != wanted:
        # Notebooks and the site import the package from here, so that an edit counts at once.
        session.install("-q", "-c", "constraints.txt", "-e", f".[{extra}]")
        stamp.write_text(wanted)
    # A kernel of the same name in the home folder would otherwise be taken before the environment's own.
    session.env["JUPYTER_PREFER_ENV_PATH"] = "1"
    session.env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"


def build(session: nox.Session) -> None:
    # From nothing each time: a page that is gone from the book must be gone from the site.
    shutil.rmtree(SITE, ignore_errors=True)
    session.run("jupyter-book", "build", ".", "--all", "-W", "-n", "--keep-going", "-q")
    session.log(f"the book: {(SITE / 'index.html').as_uri()}")


def check_style(session: nox.Session) -> None:
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("codespell")


@task
def book(session: nox.Session) -> None:
    """Builds the site into _build/html; warnings are errors."""
    prepare(session, "book")
    build(session)


@task
def serve(session: nox.Session) -> None:
    """Builds the site, then opens it."""
    prepare(session, "book")
    build(session)
    webbrowser.open((SITE / "index.html").as_uri())
    session.run("python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(SITE), "8000")


@task
def test(session: nox.Session) -> None:
    """Runs everything: lint, types, tests, doctests, the notebooks, the site and its checks."""
    prepare(session, "test")
    check_style(session)
    build(session)
    # Two workers; `loadscope` keeps the cells of a notebook, and the tests of a file, together and in order.
    session.run(
        *("pytest", "-n", "2", "--dist", "loadscope", "--doctest-modules", "--durations", "10"),
        *("--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"),
        *("tests", "pwl_lib", "chapters", "index.ipynb"),
        *session.posargs,
    )


@task
def unit(session: nox.Session) -> None:
    """Runs pytest alone, with any of its arguments."""
    prepare(session, "test")
    session.run("pytest", *(session.posargs or ["tests", "--ignore=tests/book", "-n", "2"]))


@task
def lint(session: nox.Session) -> None:
    """Checks style, types and spelling."""
    prepare(session, "test")
    check_style(session)


@task
def execute(session: nox.Session) -> None:
    """Executes chapters in place: those named after `--`, or all."""
    prepare(session, "book")
    session.run("python", "_ext/execute.py", *session.posargs)


@task
def student(session: nox.Session) -> None:
    """Writes the student notebooks into _build/student."""
    prepare(session, "book")
    session.run("python", "_ext/student.py", *session.posargs)


@task
def lab(session: nox.Session) -> None:
    """Opens the chapters in JupyterLab, which then shows their theorems and exercises as the site does."""
    prepare(session, "book")
    session.install("-q", "-c", "constraints.txt", "jupyterlab", "jupyterlab-myst")
    session.run("jupyter", "lab", "chapters", *session.posargs)


@task
def bench(session: nox.Session) -> None:
    """Runs the benchmarks named after `--`, or all, and writes benchmarks/results/."""
    prepare(session, "bench")
    for file in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        if not session.posargs or file.stem.removeprefix("bench_") in session.posargs:
            session.run("python", str(file))
