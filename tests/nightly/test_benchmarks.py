"""The benchmarks in `asv_bench/` cannot rot: each runs once here, with the least of everything. No time is judged."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SUITE = Path(__file__).parents[2] / 'asv_bench' / 'benchmarks'
PACKAGE = 'benchmarks_once'
"""Imported under a name of its own: another test may have imported it as it is."""

KINDS = re.compile('(time|track|mem|peakmem|timeraw)_')


def load() -> tuple[ModuleType, list[ModuleType]]:
    """Import the suite and its chapters, with the smallest parameters."""
    spec = importlib.util.spec_from_file_location(
        PACKAGE, SUITE / '__init__.py', submodule_search_locations=[str(SUITE)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE] = package
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('GCP_BENCH', 'once')
        spec.loader.exec_module(package)
        names = [module.name for module in pkgutil.iter_modules([str(SUITE)])]
        return package, [importlib.import_module(f'{PACKAGE}.{name}') for name in names]


@dataclass(frozen=True)
class Benchmark:
    """A method that asv runs, of a class of a chapter."""

    owner: type[Any]
    method: str

    def __str__(self) -> str:
        return f'{self.owner.__module__.removeprefix(PACKAGE)[1:]}.{self.owner.__name__}.{self.method}'


def benchmarks_of(chapter: ModuleType) -> Iterator[Benchmark]:
    """Find them as asv does: in all classes that the chapter has, imported ones included."""
    for name, owner in vars(chapter).items():
        if inspect.isclass(owner) and not name.startswith('_'):
            yield from (Benchmark(owner, method) for method in dir(owner) if KINDS.match(method))


package, chapters = load()
benchmarks = [benchmark for chapter in chapters for benchmark in benchmarks_of(chapter)]


def smallest(owner: type[Any]) -> list[Any]:
    """Return the first of each parameter."""
    params = getattr(owner, 'params', [])
    nested = params if params and isinstance(params[0], list | tuple) else [params] if params else []
    return [values[0] for values in nested]


@pytest.fixture(scope='module')
def caches() -> dict[object, list[Any]]:
    """What was set up for all benchmarks of a class."""
    return {}


@pytest.mark.parametrize('benchmark', benchmarks, ids=str)
def test_each_runs(benchmark: Benchmark, caches: dict[object, list[Any]]) -> None:
    owner = benchmark.owner
    made = owner()
    arguments = smallest(owner)
    if hasattr(made, 'setup_cache'):
        if owner not in caches:
            caches[owner] = [made.setup_cache()]
        arguments = caches[owner] + arguments
    try:
        getattr(made, 'setup', lambda *_: None)(*arguments)
    except NotImplementedError as lacks:
        pytest.skip(str(lacks))
    try:
        result = getattr(made, benchmark.method)(*arguments)
    finally:
        getattr(made, 'teardown', lambda *_: None)(*arguments)
    if benchmark.method.startswith('track_'):
        assert isfinite(result) and result >= 0
    else:
        assert result is None
    del made
    gc.collect()  # what a benchmark leaves open is an error of its own, not of the test that comes next


def test_the_table_of_contents_names_the_chapters() -> None:
    assert package.__doc__ is not None
    named = re.findall(r'^(\w+) {2,}\S', package.__doc__, re.MULTILINE)
    assert Counter(named) == Counter(module.name for module in pkgutil.iter_modules([str(SUITE)]))


def test_each_chapter_says_what_it_is_about() -> None:
    assert [chapter.__name__ for chapter in chapters if not chapter.__doc__] == []


def test_no_two_have_one_name() -> None:
    assert [name for name, times in Counter(map(str, benchmarks)).items() if times > 1] == []


def test_each_chapter_of_benchmarks_has_its_own_only() -> None:
    """asv would run an imported class twice, under two names."""
    assert [
        str(benchmark)
        for chapter in chapters
        for benchmark in benchmarks_of(chapter)
        if benchmark.owner.__module__ != chapter.__name__
    ] == []


def test_each_track_has_a_unit_and_a_direction() -> None:
    tracks = [getattr(benchmark.owner, benchmark.method) for benchmark in benchmarks if '.track_' in str(benchmark)]
    assert tracks
    assert [track for track in tracks if not getattr(track, 'unit', '')] == []
    assert [track for track in tracks if not isinstance(getattr(track, 'more_is_better', None), bool)] == []


def test_parameters_have_names() -> None:
    owners = {benchmark.owner for benchmark in benchmarks}
    assert [owner for owner in owners if len(getattr(owner, 'param_names', [])) != len(smallest(owner))] == []


@pytest.mark.parametrize('level', ['', 'small', 'full'])
def test_all_chapters_can_be_imported_at_each_level(level: str) -> None:
    names = ', '.join(chapter.__name__.removeprefix(f'{PACKAGE}.') for chapter in chapters)
    done = subprocess.run(
        [sys.executable, '-c', f'from benchmarks import {names}; print(effort.level)'],
        cwd=SUITE.parent,
        text=True,
        env=os.environ | {'GCP_BENCH': level},
        capture_output=True,
    )
    assert (done.stdout, done.stderr) == (f'{level or "small"}\n', '')


def test_an_unknown_level_is_told() -> None:
    done = subprocess.run(
        [sys.executable, '-c', 'from benchmarks import effort'],
        cwd=SUITE.parent,
        text=True,
        env=os.environ | {'GCP_BENCH': 'huge'},
        capture_output=True,
    )
    assert done.returncode == 1
    assert "ValueError: GCP_BENCH must be one of once, small, full, not 'huge'" in done.stderr
