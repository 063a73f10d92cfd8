"""Measure gcp beside the pools and queues that people use today: print a table, and with --write update the docs.

All run in turn in one process, on fake connections that need no network, each in the fast configuration that its
documentation describes. asyncpg's pool accepts its own driver's connections only, so it gets a real PostgreSQL, and
sends it no query.

    make bench-peers                  everything, about four minutes
    make bench-peers ARGS=--quick     shorter, and less certain
    make bench-peers ARGS=--write     write docs/performance.md and docs/peers.svg as well
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WIDE = 132
PAGE, CHART = ROOT / 'docs' / 'performance.md', ROOT / 'docs' / 'peers.svg'

if __name__ == '__main__':
    sys.path.append(str(ROOT))  # a clone, built in place but not installed

try:
    from comparison import table
    from comparison.measure import QUICK, Comparison, Effort, compare
    from rich.console import Console
except ModuleNotFoundError as missing:
    sys.exit(f'{missing.name} is not installed: use make bench-peers, or install the dependency group "bench"')


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='fewer and shorter rounds: under a minute')
    parser.add_argument('--write', action='store_true', help='write docs/performance.md and docs/peers.svg')
    parsed = parser.parse_args(arguments)
    if parsed.write and parsed.quick:
        parser.error('--write is for figures to be trusted: without --quick')
    return parsed


def show(seen: Comparison, console: Console) -> None:
    for part in table.for_terminal(seen):
        console.print(part)
    console.print(
        'Times: processor time, and multiples of a bare deque. Loads: served, as a part of what the bare queue serves; '
        "Jain's fairness index; the longest wait, in multiples of workers / connections x hold.",
        style='dim',
    )
    for note in table.notes(seen):
        console.print(f'- {note}', style='dim', highlight=False)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write if asked to. Returns the exit status."""
    parsed = parse(arguments)
    if parsed.write:
        from comparison import chart  # a missing matplotlib fails now, not after four minutes
    progress = Console(stderr=True)
    try:
        with progress.status('') as status:
            seen = compare(QUICK if parsed.quick else Effort(), step=status.update)
    except KeyboardInterrupt:
        progress.print('Stopped; nothing is written.')
        return 130
    show(seen, Console() if sys.stdout.isatty() else Console(width=WIDE))
    if parsed.write:
        table.write(PAGE, table.for_page(seen))
        chart.draw(seen, CHART)
        progress.print(f'Written: {PAGE.relative_to(ROOT)}, {CHART.relative_to(ROOT)}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
