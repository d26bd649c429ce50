"""Says after the tests how many inputs were tried, and how to try the same again."""

from __future__ import annotations

import pytest

from tests.fuzz import harness


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if harness.counted:
        terminalreporter.write_line(
            f"fuzz: {harness.counted:,} inputs; again with HYENA_FUZZ_SEED={harness.SEED} HYENA_FUZZ={harness.CASES}"
        )
