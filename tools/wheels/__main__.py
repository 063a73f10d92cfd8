"""Build the sdist and a repaired wheel for each Python that is found, test each of them, and print a table.

python -m tools.wheels [--pythons 'python3.12 /opt/python/bin/python3.13t'] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.metadata import repository
from tools.requirements import read
from tools.wheels.build import ROOT, Row, StepError, Workshop
from tools.wheels.pythons import NoPythonError, Python, find

HEADINGS = ('Python', 'file', 'size', 'tag', 'build', 'install', 'tests')


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and test; return the exit status: 0, 1 when something failed, 2 when nothing could be built."""
    options = _parser().parse_args(arguments)
    supported = re.findall(r'Python :: (3\.\d+)$', '\n'.join(read()['project']['classifiers']), flags=re.MULTILINE)
    try:
        pythons = find(supported, options.pythons.replace(',', ' ').split())
    except NoPythonError as error:
        print(f'wheels: {error}', file=sys.stderr)
        return 2
    without = [python for python in pythons if not python.headers]
    pythons = [python for python in pythons if python.headers]
    if not pythons:
        print(f'wheels: no CPython {supported[0]} to {supported[-1]} with its headers is here', file=sys.stderr)
        return 2

    flags = os.environ.get('CFLAGS', '-g0')
    workshop = Workshop(options.dist.resolve(), options.work.resolve(), flags=flags)
    started = time.monotonic()
    rows, errors = _produce(workshop, pythons, options.jobs)
    print()
    print(table(rows))
    for note in notes(supported, pythons, without, time.monotonic() - started):
        print(note)
    for failure in errors:
        print(f'\n{failure}', file=sys.stderr)

    return 1 if errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('python -m tools.wheels', description=__doc__.partition('\n')[0])
    parser.add_argument('--pythons', default='', help='paths or commands, separated by spaces (default: all found)')
    parser.add_argument('--jobs', type=int, default=os.cpu_count() or 1, help='how many are built at a time')
    parser.add_argument('--dist', type=Path, default=ROOT / 'dist', help='where they go (default: dist/)')
    parser.add_argument('--work', type=Path, default=ROOT / 'build' / 'wheels', help='environments and trees')

    return parser


def _produce(workshop: Workshop, pythons: Sequence[Python], jobs: int) -> tuple[list[Row], list[str]]:
    """Build all; return the rows of what was built, and what failed."""
    rows: list[Row] = []
    errors: list[str] = []

    def attempt(name: str, job: Callable[[], Row]) -> None:
        try:
            row = job()
        except StepError as error:
            errors.append(f'{name}: {error}')
            print(f'{name}: FAILED', flush=True)
        else:
            rows.append(row)
            print(f'{name}: {row.file} in {row.build:.0f} s', flush=True)

    try:
        sdist = workshop.sdist()
    except StepError as error:
        return [], [f'sdist: {error}']
    with ThreadPoolExecutor(jobs) as threads:
        for python in pythons:
            threads.submit(attempt, python.name, lambda python=python: workshop.wheel(python, sdist))  # type: ignore[misc]
        threads.submit(attempt, f'sdist on {pythons[-1].name}', lambda: workshop.rebuilt(pythons[-1], sdist))
    try:
        workshop.check()
    except StepError as error:
        errors.append(str(error))
    order = [python.name for python in pythons]

    return sorted(rows, key=lambda row: (row.tag == 'sdist', order.index(row.python))), errors


def table(rows: Sequence[Row]) -> str:
    """Lay the rows out in columns, under their headings."""
    lines = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    return '\n'.join('  '.join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    size = f'{row.size / 1e6:.2f} MB'
    return row.python, row.file, size, row.tag, f'{row.build:.1f} s', f'{row.install:.1f} s', row.tests


def notes(supported: Sequence[str], pythons: Sequence[Python], without: Sequence[Python], seconds: float) -> list[str]:
    """Say below the table what is absent, and what the metadata lacks."""
    said = [f'In all {seconds:.0f} s.']
    if absent := sorted(set(supported) - {python.minor for python in [*pythons, *without]}, key=supported.index):
        said.append(f'Not found on this machine: Python {", ".join(absent)}.')
    said += [f'No wheel for Python {python.name}: its headers (Python.h) are not installed.' for python in without]
    if repository(read()) is None:
        said.append(
            '[tool.gcpool] repository is not set in pyproject.toml: there are no Project-URLs, and the links of the '
            'README stay relative.'
        )

    return said


if __name__ == '__main__':
    sys.exit(main())
