"""A pytest plugin: tables and counts that tests made, shown at the end, also when the tests ran on xdist's workers."""

from __future__ import annotations

import sys
from typing import Any

import pytest

#: Titles and lines, as workers sent them.
received: list[tuple[str, list[str]]] = []


def sections() -> list[tuple[str, list[str]]]:
    """Tell what was seen in this process, if it saw all of it."""
    found = []
    if (matrix := sys.modules.get('matrix_table')) and matrix.TABLE.cells and matrix.TABLE.is_complete():
        found.append(('managers in trouble', matrix.TABLE.text()))
    if (stage := sys.modules.get('stage')) and stage.TABLE:
        found.append(('what a real Prometheus saw', list(stage.TABLE)))
    if (explored := sys.modules.get('core.test_interleavings')) and explored.Tally.scenarios:
        found.append(('interleavings', [explored.Tally.told()]))
    return found


def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, Any] | None = getattr(session.config, 'workeroutput', None)
    if output is not None:
        output['sections'] = sections()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    received.extend((title, lines) for title, lines in getattr(node, 'workeroutput', {}).get('sections', ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for title, lines in [*sections(), *received]:
        terminalreporter.section(title)
        for line in lines:
            terminalreporter.line(line)
