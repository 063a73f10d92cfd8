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

    config.option.loadscopereorder = False
    return Spreading(config, log)
