"""Every task of the book by name: `python -m nox --list`, `python -m nox -s book`."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import webbrowser
from pathlib import Path

import nox

nox.options.sessions = ["book"]
nox.options.stop_on_first_error = True

ROOT = Path(__file__).parent
SITE = ROOT / "_build" / "html"
# nox makes an environment for each session. Torch is large, so ours share this one, which `prepare` makes.
ENVIRONMENT = ROOT / ".nox" / "pwl"
PROGRAMS = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
task = nox.session(venv_backend="none")


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Runs a program of the shared environment."""
    session.run(str(PROGRAMS / program), *arguments, external=True)


def install(session: nox.Session, *what: str) -> None:
    run(session, "python", "-m", "pip", "install", "-q", "-c", "constraints.txt", *what)


def prepare(session: nox.Session, extra: str) -> None:
    """Makes the environment and installs the package with an extra, unless nothing changed since the last time."""
    files = [ROOT / "pyproject.toml", ROOT / "constraints.txt"]
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    stamp = ENVIRONMENT / f"installed-{extra}"
    if not (PROGRAMS / "python").exists():
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT), external=True)
    if not stamp.is_file() or stamp.read_text() != wanted:
        # Notebooks and the site import the package from here, so that an edit counts at once.
        install(session, "-e", f".[{extra}]")
        stamp.write_text(wanted)
    session.env["VIRTUAL_ENV"] = str(ENVIRONMENT)
    session.env["PATH"] = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    # A kernel of the same name in the home folder would otherwise be taken before the environment's own.
    session.env["JUPYTER_PREFER_ENV_PATH"] = "1"
    session.env["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    # Two notebooks or test files run side by side, and their tensors are small: more threads only wait for each other.
    session.env["OMP_NUM_THREADS"] = "1"


def build(session: nox.Session) -> None:
    # From nothing each time: a page that is gone from the book must be gone from the site.
    shutil.rmtree(SITE, ignore_errors=True)
    run(session, "jupyter-book", "build", ".", "--all", "-W", "-n", "--keep-going", "-q")
    session.log(f"the book: {(SITE / 'index.html').as_uri()}")


def check_style(session: nox.Session) -> None:
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")
    run(session, "codespell")


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
    run(session, "python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(SITE), "8000")


@task
def test(session: nox.Session) -> None:
    """Runs everything: lint, types, tests, doctests, the notebooks, the site and its checks."""
    prepare(session, "test")
    check_style(session)
    build(session)
    # Two workers; `loadscope` keeps the cells of a notebook, and the tests of a file, together and in order. In the order
    # in which they are found, the tests in the browser come first: they take longest, and would keep one worker waiting.
    run(
        session,
        *("pytest", "-n", "2", "--dist", "loadscope", "--no-loadscope-reorder"),
        *("--doctest-modules", "--durations", "10"),
        *("--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"),
        *("tests", "pwl_lib", "chapters", "index.ipynb"),
        *session.posargs,
    )


@task
def unit(session: nox.Session) -> None:
    """Runs pytest alone, with any of its arguments."""
    prepare(session, "test")
    run(session, "pytest", *(session.posargs or ["tests", "--ignore=tests/book", "-n", "2"]))


@task
def lint(session: nox.Session) -> None:
    """Checks style, types and spelling."""
    prepare(session, "test")
    check_style(session)


@task
def execute(session: nox.Session) -> None:
    """Executes chapters in place: those named after `--`, or all."""
    prepare(session, "book")
    run(session, "python", "_ext/execute.py", *session.posargs)


@task
def student(session: nox.Session) -> None:
    """Writes the student notebooks into _build/student."""
    prepare(session, "book")
    run(session, "python", "_ext/student.py", *session.posargs)


@task
def lab(session: nox.Session) -> None:
    """Opens the chapters in JupyterLab, which then shows their theorems and exercises as the site does."""
    prepare(session, "book")
    install(session, "jupyterlab", "jupyterlab-myst")
    run(session, "jupyter", "lab", "chapters", *session.posargs)


@task
def bench(session: nox.Session) -> None:
    """Runs the benchmarks named after `--`, or all, and writes benchmarks/results/."""
    prepare(session, "bench")
    del session.env["OMP_NUM_THREADS"]
    for file in sorted((ROOT / "benchmarks").glob("bench_*.py")):
        if not session.posargs or file.stem.removeprefix("bench_") in session.posargs:
            run(session, "python", str(file))
