"""A pytest plugin: which cases `make test` runs, and which wait for `make test-all` (``--nightly``).

Two markers name what is left out of the quick run, beside the test that it concerns:

- ``nightly``: the test, or one case of it (`pytest.param(..., marks=pytest.mark.nightly)`); so is all of tests/nightly.
- ``sample(count)``: the quick run has so many of the cases, spread evenly over their order; the first is among them.

A test whose own loops are long asks for the fixture `thorough` and does less when it is false.

What is named on the command line (``file.py::test``, or a path in tests/nightly) runs in any case."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

NIGHTLY = Path(__file__).resolve().parents[1] / 'nightly'


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption('--nightly', action='store_true', help='run all cases, those for the night too')


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        'nightly: runs with --nightly only',
        'sample(count): without --nightly, so many of the cases',
    ):
        config.addinivalue_line('markers', line)


@pytest.fixture(scope='session')
def thorough(request: pytest.FixtureRequest) -> bool:
    """Whether to take the time for all that a loop inside a test could try."""
    chosen: bool = request.config.getoption('--nightly')
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption('--nightly') or any('::' in argument for argument in config.args):
        return
    left_out = set(postponed(items)) - set(named(config, items))
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


def named(config: pytest.Config, items: list[pytest.Item]) -> Iterable[pytest.Item]:
    """Give the nightly tests whose file or folder is named on the command line."""
    paths = [(config.invocation_params.dir / argument).resolve() for argument in config.args]
    chosen = [path for path in paths if path.is_relative_to(NIGHTLY)]
    return (item for item in items if any(item.path.is_relative_to(path) for path in chosen))


def postponed(items: list[pytest.Item]) -> Iterable[pytest.Item]:
    """Give what runs at night only."""
    cases: dict[tuple[str, str], list[pytest.Function]] = {}
    for item in items:
        if item.get_closest_marker('nightly') or item.path.is_relative_to(NIGHTLY):
            yield item
        elif isinstance(item, pytest.Function) and hasattr(item, 'callspec'):
            parent = item.parent.nodeid if item.parent else ''
            cases.setdefault((parent, item.originalname), []).append(item)
    for siblings in cases.values():
        if sample := siblings[0].get_closest_marker('sample'):
            yield from set(siblings) - set(spread(siblings, *sample.args))


def spread(cases: list[pytest.Function], count: int) -> list[pytest.Function]:
    return [cases[number * len(cases) // count] for number in range(count)] if count < len(cases) else cases
