"""Instructions of an idle hit, counted and held against a baseline. The exit status is 1 when one differs.

Times on a shared machine tell little; a count of instructions is the same on each run. Of each operation three things
are counted under valgrind: instructions in the compiled core, calls from it into the interpreter and libc, and
instructions in the whole process.

    python asv_bench/instructions.py             count, compare with the baseline
    python asv_bench/instructions.py --update    make what was counted the baseline of this Python and compiler
    python asv_bench/instructions.py --json      the same as JSON
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
HITS = ROOT / 'asv_bench' / 'hits.py'
BASELINE = ROOT / 'tests' / 'instructions.json'

LENGTHS = (1000, 2000)
"""How often it is done, in one stretch and the next; what both have besides cancels out in their difference."""

MARGIN = 0.01
"""By what part a count in the core may differ from one of the same Python, compiler and machine. Seen: 0.5 %, of use
times that fall into other buckets of a histogram."""

TOTAL_MARGIN = 0.06
"""By what part one in the whole process may, and only of the same interpreter. Seen: 3.5 %, of entries of its cache of
methods that displace each other, or do not, wherever names lie in memory."""

WIDE_MARGIN = 0.3
"""By what part one may exceed a baseline of another compiler or machine: its code for the same C differs."""

CALLS_MARGIN, WIDE_CALLS_MARGIN = 0.5, 2.0
"""How many calls out of the core there may be more (or fewer): none; or those that another Cython makes."""

KEPT = ('HOME', 'LD_LIBRARY_PATH', 'PATH', 'PYTHONPATH', 'VALGRIND_LIB')
"""Variables that the counted process inherits. Others could change what it does."""


# --- what was built by what ---

@dataclass(frozen=True)
class Build:
    """What counts depend on.

    :ivar core: on this those in the core
    :ivar interpreter: and on this those in the whole process
    """

    core: str
    interpreter: str

    @property
    def python(self) -> str:
        return self.core.split(',')[0]


def build_of(core: Path) -> Build:
    """Read from a compiled core, and from the running interpreter, how they were made."""
    content = core.read_bytes()
    compiler = cython = 'unknown'
    for name, pattern in ('gcc', rb'GCC: \([^)]*\) (\d+)'), ('clang', rb'clang version (\d+)'):
        if found := re.search(pattern, content):
            compiler = f'{name} {found[1].decode()}'
    if found := re.search(rb'_cython_(\d+)_(\d+)', content):
        cython = f'cython {found[1].decode()}.{found[2].decode()}'
    python = f'python {sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}'
    how = sysconfig.get_config_var('CONFIG_ARGS') or ''
    optimized = [word for word in ('optimizations', 'lto', 'shared') if re.search(rf'--(enable|with)-{word}\b', how)]
    return Build(
        core=f'{python}, {compiler}, {cython}, {platform.machine()}',
        interpreter=', '.join([
            platform.python_version(), platform.python_compiler(), ' '.join(platform.libc_ver()), *optimized]))


# --- counting ---

@dataclass(frozen=True)
class Cost:
    """What one operation costs.

    :ivar core: instructions in the compiled core
    :ivar total: instructions in the whole process
    :ivar calls: calls from the core into the interpreter and libc, by function
    """

    core: float
    total: float
    calls: Mapping[str, float]

    @property
    def called(self) -> float:
        """How many calls leave the core."""
        return sum(self.calls.values())


@dataclass(frozen=True)
class Seen:
    """What was counted."""

    build: Build
    costs: dict[str, Cost]


class ValgrindError(Exception):
    """valgrind did not do its work."""


class ValgrindMissingError(ValgrindError):
    """There is no valgrind."""


def count() -> Seen:
    """Run `hits.py` under valgrind.

    :raises ValgrindError: when that fails
    """
    valgrind = shutil.which('valgrind')
    if valgrind is None:
        raise ValgrindMissingError('valgrind is not installed')
    with tempfile.TemporaryDirectory(prefix='gcp-instructions-') as directory:
        account, log = Path(directory, 'account'), Path(directory, 'log')
        process = subprocess.run(
            [
                valgrind, '--tool=callgrind', '--dump-before=getppid', '--combine-dumps=yes', '--dump-line=no',
                '--compress-strings=no', '--compress-pos=no', f'--callgrind-out-file={account}', f'--log-file={log}',
                sys.executable, str(HITS), *map(str, LENGTHS),
            ],
            capture_output=True, text=True, timeout=300, cwd=directory,
            env={'PYTHONHASHSEED': '0', **{name: os.environ[name] for name in KEPT if name in os.environ}},
        )
        if process.returncode:
            said = process.stderr or (log.read_text() if log.exists() else '')
            raise ValgrindError(f'hits.py ended with status {process.returncode} under valgrind:\n{said[-2000:]}')
        core, *names = process.stdout.splitlines()
        with account.open() as lines:
            parts = list(read(lines, core))
    # a part for each stretch, one for what comes before an operation's first, and one for the end
    if len(parts) != 3 * len(names) + 1:
        raise ValgrindError(f'callgrind wrote {len(parts)} parts for {len(names)} operations')
    stretches = zip(parts[1::3], parts[2::3], strict=True)
    return Seen(
        build_of(Path(core)),
        {name: difference(*both) for name, both in zip(names, stretches, strict=True)})


def read(lines: Iterator[str], core: str) -> Iterator[Cost]:
    """Read an account of callgrind, part by part.

    Lines of one function follow `ob=`, the file of its code, which stays until the next one. A line after `calls=` is
    about the called function, in the file `cob=` if that is another one.
    """
    total: Counter[bool] = Counter()
    calls: Counter[str] = Counter()
    begun = inside = of_callee = False
    elsewhere = name = ''
    for line in lines:
        if line[0].isdigit() or line[0] in '+-*':
            if not of_callee:
                total[inside] += int(line.split()[1])
            of_callee = False
        elif line.startswith('ob='):
            inside = line[3:-1] == core
        elif line.startswith('cob='):
            elsewhere = line[4:-1]
        elif line.startswith('cfn='):
            name = re.split(r"['@]", line[4:-1])[0]     # without a version, or the depth of a recursion
        elif line.startswith('calls='):
            if inside and elsewhere not in ('', core):
                calls[name] += int(line[6:].split()[0])
            elsewhere = ''
            of_callee = True
        elif line.startswith('part:'):
            if begun:
                yield Cost(total[True], sum(total.values()), calls)
            begun, inside = True, False
            total, calls = Counter(), Counter()
    yield Cost(total[True], sum(total.values()), calls)


def difference(shorter: Cost, longer: Cost) -> Cost:
    """Return the cost of one operation, from those of two stretches."""
    times = LENGTHS[1] - LENGTHS[0]
    calls = {name: round((times_called - shorter.calls.get(name, 0)) / times, 1)
             for name, times_called in sorted(longer.calls.items())}
    return Cost(
        core=round((longer.core - shorter.core) / times, 1),
        total=round((longer.total - shorter.total) / times, 1),
        calls={name: number for name, number in calls.items() if number})


# --- the baseline ---

def load(path: Path = BASELINE) -> dict[str, Seen]:
    """Return baselines by what the core was built with."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    return {
        core: Seen(Build(core, one['interpreter']), {name: Cost(**cost) for name, cost in one['operations'].items()})
        for core, one in kept.items()
    }


def save(seen: Seen, path: Path = BASELINE) -> None:
    """Make what was counted the baseline of its build, and leave those of others. An operation is a line."""
    builds = []
    for core, one in sorted({**load(path), seen.build.core: seen}.items()):
        operations = ',\n'.join(
            f'      {json.dumps(name)}: {json.dumps(asdict(cost))}' for name, cost in one.costs.items())
        builds.append(
            f'  {json.dumps(core)}: {{\n    "interpreter": {json.dumps(one.build.interpreter)},\n'
            f'    "operations": {{\n{operations}\n    }}\n  }}')
    path.write_text('{\n' + ',\n'.join(builds) + '\n}\n')


def nearest(build: Build, baselines: Mapping[str, Seen]) -> Seen | None:
    """Return the baseline to compare with: of this build; or else of this Python, best on such a machine; or None."""
    if build.core in baselines:
        return baselines[build.core]
    of_python = [one for one in baselines.values() if one.build.python == build.python]
    return next((one for one in of_python if one.build.core.endswith(platform.machine())), next(iter(of_python), None))


def judge(name: str, seen: Seen, before: Seen) -> list[str]:
    """Say what is wrong with an operation's cost; nothing when it is what it was."""
    if name not in before.costs:
        return [f'{name}: not in the baseline yet']
    now, then = seen.costs[name], before.costs[name]
    same = seen.build.core == before.build.core
    margin = MARGIN if same else WIDE_MARGIN
    wrong = [differ('instructions in the core', now.core, then.core, then.core * margin, same)]
    calls_margin = CALLS_MARGIN if same else WIDE_CALLS_MARGIN
    if said := differ('calls out of the core', now.called, then.called, calls_margin, same):
        changed = [f'{function} {now.calls.get(function, 0):g}, was {then.calls.get(function, 0):g}'
                   for function in sorted({*now.calls, *then.calls})
                   if now.calls.get(function, 0) != then.calls.get(function, 0)]
        wrong.append(f'{said} ({"; ".join(changed)})')
    if seen.build == before.build:
        wrong.append(differ('instructions in all', now.total, then.total, then.total * TOTAL_MARGIN, same))
    return [f'{name}: {said}' for said in wrong if said]


def differ(what: str, now: float, then: float, margin: float, both_ways: bool) -> str:
    """Say that two counts differ by more than a margin; nothing when they do not."""
    if now - then <= margin and (now - then >= -margin or not both_ways):
        return ''
    word = 'dearer' if now > then else 'cheaper: keep it so'
    return f'{now:g} {what}, was {then:g} ({(now - then) / max(then, 1):+.1%}), {word}'


def how_to_update(build: Build) -> str:
    return f'if this is meant: make instructions ARGS=--update PYTHON={build.python.replace(" ", "")} VENV=...'


# --- the table ---

def show(console: Console, seen: Seen, before: Seen | None) -> None:
    """Print what was counted beside the baseline."""
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
    for said in wrong:
        print(said, file=sys.stderr)
    if before is None:
        print(f'no baseline for {seen.build.python}; make one with --update', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
