"""Says at the end of a run how many interleavings were tried."""

from __future__ import annotations

import sys

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    explored = sys.modules.get('core.test_interleavings')
    if explored is not None and explored.Tally.scenarios:
        terminalreporter.write_line(f'interleavings: {explored.Tally.told()}')
