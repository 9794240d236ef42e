"""Settings of all tests, and the time each chapter took in the closing summary."""

from __future__ import annotations

import os
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, settings

BUDGET = 20.0  # seconds a chapter may take on two cores

# The first call of a torch function is slow, so a deadline would fail at random. A developer's run looks at new examples
# each time; in CI they are the same for the same code, so that a failure there can be had again.
settings.register_profile(
    "book", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("book")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            notebook = getattr(report, "nodeid", "").split("::")[0]
            if notebook.endswith(".ipynb") and getattr(report, "when", "") == "call":
                seconds[notebook] += report.duration
    if not seconds:
        return
    terminalreporter.section("time of the chapters")
    for notebook, total in sorted(seconds.items()):
        late = f"  WARNING: more than the budget of {BUDGET:.0f} s" if total > BUDGET else ""
        terminalreporter.line(f"{total:6.1f} s  {notebook}{late}", yellow=bool(late))
