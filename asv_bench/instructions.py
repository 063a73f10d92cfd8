"""Count the instructions of an idle hit and compare them with a baseline. The exit status is 1 when one differs.

Times on a shared machine are unreliable; a count of instructions is the same on each run. For each operation valgrind
counts three things: instructions in the compiled core, calls from it into the interpreter and libc, and
instructions in the whole process.

    python asv_bench/instructions.py             count, compare with the baseline
    python asv_bench/instructions.py --update    write the counts as the baseline of this Python and compiler
    python asv_bench/instructions.py --json      the same as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from callgrind import Build, Cost, Seen, ValgrindError, count
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
BASELINE = ROOT / 'tests' / 'instructions.json'

MARGIN = 0.01
"""By what part a count in the core may differ from one of the same Python, compiler and machine. Seen: 0.2 %."""

SLOW_MARGIN = 0.002
"""Or by what part of all instructions of the operation, if that is more: those that take long under valgrind have times
that fall into other buckets of a histogram, which cost more or less to find. Seen: 0.05 %."""

TOTAL_MARGIN = 0.06
"""By what part a count in the whole process may differ, and only of the same interpreter. Seen: 3.5 %, of entries of
its cache of methods that displace each other, or do not, wherever names lie in memory."""

WIDE_MARGIN = 0.3
"""By what part one in the core may exceed a baseline of another compiler or machine, whose code differs."""

CALLS_MARGIN, WIDE_CALLS_MARGIN = 0.5, 2.0
"""How many calls out of the core there may be more (or fewer): none; or those that another Cython makes."""


# --- the baseline ---


def load(path: Path = BASELINE) -> dict[str, Seen]:
    """Return baselines by what the core was built with."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {
        core: Seen(Build(core, one['interpreter']), {name: Cost(**cost) for name, cost in one['operations'].items()})
        for core, one in kept.items()
    }


def save(seen: Seen, path: Path = BASELINE) -> None:
    """Write the counts as the baseline of their build, and leave other baselines. An operation is one line."""
    baselines = load(path)
    baselines[seen.build.core] = settled(seen, baselines.get(seen.build.core))
    builds = []
    for core, one in sorted(baselines.items()):
        operations = ',\n'.join(
            f'      {json.dumps(name)}: {json.dumps(asdict(cost))}' for name, cost in one.costs.items()
        )
        builds.append(
            f'  {json.dumps(core)}: {{\n    "interpreter": {json.dumps(one.build.interpreter)},\n'
            f'    "operations": {{\n{operations}\n    }}\n  }}'
        )
    path.write_text('{\n' + ',\n'.join(builds) + '\n}\n')


def settled(seen: Seen, before: Seen | None) -> Seen:
    """Keep the old costs within the margin: an update shows real changes only, and costs cannot grow slowly."""
    if before is None or before.build != seen.build:
        return seen
    unchanged = {
        name: then
        for name, then in before.costs.items()
        if name in seen.costs and then.calls == seen.costs[name].calls and not judge(name, seen, before)
    }
    return Seen(seen.build, {name: unchanged.get(name, cost) for name, cost in seen.costs.items()})


def nearest(build: Build, baselines: Mapping[str, Seen]) -> Seen | None:
    """Return the baseline of this build; else one of this Python, if possible on such a machine; else None."""
    if build.core in baselines:
        return baselines[build.core]
    of_python = [one for one in baselines.values() if one.build.python == build.python]
    return next((one for one in of_python if one.build.core.endswith(platform.machine())), next(iter(of_python), None))


def judge(name: str, seen: Seen, before: Seen) -> list[str]:
    """Describe how an operation's cost differs from its baseline; empty if it does not."""
    if name not in before.costs:
        return [f'{name}: not in the baseline yet']
    now, then = seen.costs[name], before.costs[name]
    same = seen.build.core == before.build.core
    margin, calls_margin = then.core * WIDE_MARGIN, WIDE_CALLS_MARGIN
    if same:
        margin, calls_margin = max(then.core * MARGIN, then.total * SLOW_MARGIN), CALLS_MARGIN
    wrong = [differ('instructions in the core', now.core, then.core, margin, same)]
    if said := differ('calls out of the core', now.called, then.called, calls_margin, same):
        wrong.append(f'{said} ({"; ".join(changed_calls(now, then))})')
    if seen.build == before.build:
        wrong.append(differ('instructions in all', now.total, then.total, then.total * TOTAL_MARGIN, same))
    return [f'{name}: {said}' for said in wrong if said]


def differ(what: str, now: float, then: float, margin: float, both_ways: bool) -> str:
    """Describe a difference of two counts beyond a margin; empty if there is none."""
    if now - then <= margin and (now - then >= -margin or not both_ways):
        return ''
    word = 'dearer' if now > then else 'cheaper: keep it so'
    return f'{now:g} {what}, was {then:g} ({(now - then) / max(then, 1):+.1%}), {word}'


def changed_calls(now: Cost, then: Cost) -> Iterator[str]:
    """Describe which functions are called more or less often."""
    for function in sorted({*now.calls, *then.calls}):
        times, before = now.calls.get(function, 0), then.calls.get(function, 0)
        if times != before:
            yield f'{function} {times:g}, was {before:g}'


def how_to_update() -> str:
    """Return the command that makes the counts of this interpreter the baseline."""
    python, environment = os.path.realpath(sys.executable), os.path.relpath(sys.prefix, ROOT)
    return f'if this is meant: make instructions ARGS=--update PYTHON={python} VENV={environment}'


# --- the table ---


def show(console: Console, seen: Seen, before: Seen | None) -> None:
    """Print the counts beside the baseline."""
    table = Table(title=f'{seen.build.core} ({seen.build.interpreter})', title_justify='left', box=None)
    table.add_column('one operation', no_wrap=True)
    for title in ('in the core', 'was', 'calls out', 'was', 'in all', 'was'):
        table.add_column(title, justify='right')
    for name, cost in seen.costs.items():
        then = before.costs.get(name) if before else None
        cells = [
            (f'{cost.core:,.0f}', then and f'{then.core:,.0f}'),
            (f'{cost.called:g}', then and f'{then.called:g}'),
            (f'{cost.total:,.0f}', then and f'{then.total:,.0f}'),
        ]
        table.add_row(name, *(cell or '' for both in cells for cell in both))
    console.print(table)
    if before and before.build != seen.build:
        console.print(f'compared with {before.build.core} ({before.build.interpreter})')


def main() -> int:
    """Count, print, compare. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--update', action='store_true', help='keep what was counted as the baseline')
    parser.add_argument('--json', action='store_true', help='print JSON')
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    try:
        seen = count()
    except ValgrindError as error:
        print(error, file=sys.stderr)
        return 2
    before = nearest(seen.build, load())
    if arguments.json:
        print(json.dumps(asdict(seen), indent=2))
    else:
        show(console, seen, before)
    if arguments.update:
        save(seen)
        return 0
    wrong = [said for name in seen.costs for said in (judge(name, seen, before) if before else [])]
    if before is None:
        wrong = [f'no baseline for {seen.build.python}']
    if wrong:
        print(*wrong, how_to_update(), sep='\n', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
