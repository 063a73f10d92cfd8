"""Measure the targets of gcp: a table of targets and values. The exit status is 1 when a target is missed.

Contenders take turns in one run, round after round, and medians are compared: on a shared machine, ratios are
reliable where times are not. Metrics are on, as always. Peers are measured if they are installed; a target that
cannot be measured is listed, and is neither met nor missed.

    python asv_bench/must_show.py                     everything, about seven minutes
    python asv_bench/must_show.py hit endpoints       these cases
    python asv_bench/must_show.py --quick             shorter, and less certain
    python asv_bench/must_show.py --json seen.json    as JSON, too, with the medians of each row
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

if __name__ == '__main__':
    sys.path.append(str(Path(__file__).resolve().parents[1]))  # a clone, built in place but not installed

os.environ['GCP_BENCH'] = 'full'  # the benchmarks read it when they are imported; rounds are counted here
try:
    from benchmarks.adapters import TASKS, THREADS
    from cases import CASES, Row
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError as missing:
    sys.exit(f'{missing.name} is not installed: use make must-show, or install the dependency group "bench"')

QUICK = 0.2
WIDTH = 140
"""What a line needs that is not broken, where there is no terminal that says how much it has."""

MARKS = {True: Text('yes', 'green'), False: Text('NO', 'bold red'), None: Text('')}


def parse(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('cases', nargs='*', metavar='case', help=f'one of {", ".join(CASES)}; all by default')
    parser.add_argument('--quick', action='store_true', help='a fifth of the rounds')
    parser.add_argument('--list', action='store_true', help='say what the cases are')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all rows there, with their medians')
    arguments = parser.parse_args(args)
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f'no such case: {", ".join(unknown)}; there are {", ".join(CASES)}')
    arguments.cases = list(dict.fromkeys(arguments.cases)) or list(CASES)
    return arguments


def show_cases(console: Console) -> None:
    table = Table(box=None, show_header=False)
    for name, case in CASES.items():
        table.add_row(name, case.__doc__)
    console.print(table)


def show(console: Console, name: str, rows: Iterable[Row]) -> None:
    """Print the rows of a case."""
    table = Table(
        title=f'{name}: {CASES[name].__doc__}',
        title_justify='left',
        title_style='',
        width=min(console.width, WIDTH),
        header_style='bold',
    )
    table.add_column('what', ratio=1)
    table.add_column('target', justify='right', no_wrap=True)
    table.add_column('seen', justify='right')
    table.add_column('met')
    for row in rows:
        table.add_row(row.what, row.target, row.seen, MARKS[row.ok])
    console.print(table)


def sum_up(rows: Sequence[Row]) -> str:
    """Return how many targets were met, missed, not measured."""
    missed = sum(row.ok is False for row in rows)
    unmeasured = sum(row.value is None for row in rows)
    said = [f'{sum(row.ok is True for row in rows)} met', f'{missed} missed' if missed else 'none missed']
    return ', '.join(said + ([f'{unmeasured} not measured'] if unmeasured else []))


def as_json(seen: dict[str, list[Row]], quick: bool) -> dict[str, Any]:
    """Return all rows as JSON."""
    return {
        'python': platform.python_version(),
        'implementation': platform.python_implementation(),
        'machine': platform.machine(),
        'peers': {peer.name: peer.version for peer in (*THREADS.values(), *TASKS.values()) if peer.version},
        'quick': quick,
        'missed': sum(row.ok is False for rows in seen.values() for row in rows),
        'rows': [{'case': name, **row.as_json()} for name, rows in seen.items() for row in rows],
    }


def main(args: Sequence[str] | None = None) -> int:
    """Measure and print. Returns the exit status."""
    arguments = parse(args)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if arguments.list:
        show_cases(console)
        return 0
    python = f'{platform.python_implementation()} {platform.python_version()}'
    console.print(f'{python}, {platform.machine()}', highlight=False)
    seen: dict[str, list[Row]] = {}
    for name in arguments.cases:
        with console.status(f'{name}: {CASES[name].__doc__}'):
            seen[name] = list(CASES[name](QUICK if arguments.quick else 1.0))
        show(console, name, seen[name])
    rows = [row for name in arguments.cases for row in seen[name]]
    console.print(sum_up(rows), highlight=False)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(seen, arguments.quick), indent=2) + '\n')
    return 1 if any(row.ok is False for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
