"""Rules of the whole suite. Fixtures live in tests/support/ and are imported where they are used."""

from __future__ import annotations

import os

import hypothesis
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]  # pytest's hook
    """With CI=true nothing may be skipped: a missing tool is a failure of the set-up, not a reason to look away."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.longrepr = f"skipped with CI=true: {item.nodeid}: {reason}"
    return report


# Hypothesis' own clock fails an example that a busy machine held up: what takes how long is not what these tests are about.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
