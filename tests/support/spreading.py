"""A pytest plugin: how pytest-xdist spreads the tests over its workers.

The tests of a file stay on one worker, in their order, where they share an expensive fixture, or where the last of them
looks at what the others saw (`TOGETHER`). Of other files, each function goes to one worker, with all its cases. What
takes long comes first, so that no worker is alone at the end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

#: These files are not split up.
TOGETHER = re.compile(
    r"""
    tests/drivers/ | tests/nightly/
    | tests/packaging/test_(examples|service|postgres_docs|redis_http_guide)\.py
    | tests/unit/test_instructions\.py
""",
    re.VERBOSE,
)
#: With all cases, these are not either: their last tests look at what the others saw.
TOGETHER_AT_NIGHT = re.compile(r'tests/unit/core/test_interleavings\.py')

#: From the longest to the shortest; what is not named comes behind them.
FIRST = [
    re.compile(pattern)
    for pattern in (
        r'tests/unit/core/test_interleavings\.py',
        r'tests/unit/test_instructions\.py',
        r'tests/packaging/test_(examples|demo|service)\.py',
        r'tests/drivers/test_(matrix|redis|socket_async|postgres_\w+)\.py',
        r'tests/behaviour/test_(exit|faults_asyncio|fork|stress|endpoints_come_and_go)\.py',
        r'tests/observability/test_multiprocess\.py',
        r'tests/drivers/',
    )
]


def rank(nodeid: str) -> int:
    return next((number for number, pattern in enumerate(FIRST) if pattern.match(nodeid)), len(FIRST))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, 'workerinput'):
        items.sort(key=lambda item: rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    from xdist.scheduler import LoadScopeScheduling

    class Spreading(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if TOGETHER.match(nodeid) or config.getoption('--nightly') and TOGETHER_AT_NIGHT.match(nodeid):
                return nodeid.partition('::')[0]
            return nodeid.partition('[')[0]

        def remove_node(self, node: WorkerController) -> str | None:
            """Take back what a worker has not run, but not the test in which it ended: that one has failed."""
            units = self.assigned_work[node]
            begun = next(((unit, test) for unit in units.values() for test, done in unit.items() if not done), None)
            if begun is None:
                super().remove_node(node)
                return None
            unit, test = begun
            unit[test] = True
            self.assigned_work[node] = {scope: unit for scope, unit in units.items() if not all(unit.values())}
            super().remove_node(node)
            return test

        def _reschedule(self, node: WorkerController) -> None:
            """Give a worker its next tests. It begins one when it knows the next, or that there is none. One that takes
            another's place has none yet, and is given none before it has collected them."""
            if node not in self.registered_collections:
                return
            super()._reschedule(node)
            while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                self._assign_work_unit(node)
            if not self.workqueue:
                node.shutdown()

    config.option.loadscopereorder = False
    return Spreading(config, log)
