"""The package as a whole: what importing it loads, what it shows, and that its front doors define nothing."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pwl_lib

ROOT = Path(__file__).parents[1]


def _fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def test_import_loads_torch_and_numpy_alone() -> None:
    code = """
import sys, numpy, torch
before = {name.partition(".")[0] for name in sys.modules}
import pwl_lib
after = {name.partition(".")[0] for name in sys.modules}
print(sorted(after - before - set(sys.stdlib_module_names)))
"""
    assert _fresh(code) == "['pwl_lib']"


def test_check_and_plot_load_when_used() -> None:
    pytest.importorskip("matplotlib")
    code = """
import sys, pwl_lib
lazy = ["pwl_lib.check", "pwl_lib.plot"]
print([name in sys.modules for name in lazy], pwl_lib.check.__name__, pwl_lib.plot.__name__)
"""
    assert _fresh(code) == "[False, False] pwl_lib.check pwl_lib.plot"


def test_plot_says_which_extra_it_needs() -> None:
    code = """
import sys
sys.modules["matplotlib"] = None  # as if it were not installed
import pwl_lib
try:
    pwl_lib.plot
except ModuleNotFoundError as error:
    print(error)
"""
    assert _fresh(code) == "pwl_lib.plot needs matplotlib: install pwl_lib[plot]"


def test_version_is_that_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert pwl_lib.__version__ == project["version"]


def test_top_level_holds_modules_only() -> None:
    assert {type(getattr(pwl_lib, name)).__name__ for name in pwl_lib.__all__} == {"module"}
    assert set(pwl_lib.__all__) <= set(dir(pwl_lib))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="module 'pwl_lib' has no attribute 'relu'"):
        pwl_lib.relu


@pytest.mark.parametrize("door", ["functional", "nn"])
def test_front_doors_define_nothing(door: str) -> None:
    module = importlib.import_module(f"pwl_lib.{door}")
    for name in module.__all__:
        thing = getattr(module, name)
        home = importlib.import_module(thing.__module__)
        assert home is not module
        assert getattr(home, name) is thing
        assert name in home.__all__


@pytest.mark.parametrize("name", ["rectifiers", "functional", "nn"])
def test_public_names_are_sorted_and_documented(name: str) -> None:
    module = importlib.import_module(f"pwl_lib.{name}")
    assert list(module.__all__) == sorted(module.__all__)
    for public in module.__all__:
        assert (getattr(module, public).__doc__ or "").strip(), f"{name}.{public} has no docstring"


def test_types_are_shipped() -> None:
    assert (Path(pwl_lib.__file__).parent / "py.typed").exists()
