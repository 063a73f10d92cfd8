"""Compare the speed of two commits: `make bench-compare BASE=...`. The exit status is 1 when something became slower.

On a shared machine, a difference of 10 % between two times means nothing. So both commits are built and run in turn,
round after round, in processes of their own. The ratio of the two in each round counts, since a disturbance affects
both. What seems slower or faster in the first rounds runs again, twice as often, and these rounds alone decide: three
quarters of them have to exceed the factor. (asv itself merges the samples of all rounds and applies the Mann-Whitney
test. Samples of one process are similar to each other, so that this finds differences between equal commits; and it
takes a higher rate for a regression.)

The benchmarks are those of the work tree, for both commits.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from math import inf, isnan, nan
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from asv.benchmarks import Benchmarks
from asv.config import Config
from asv.results import iter_results
from asv.util import human_value, load_json
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
CONFIG = HERE / 'asv.conf.json'
BUILDS = HERE / 'env' / 'compare'

ASV = (sys.executable, '-m', 'asv')
ALL = r'^(?!peers\.)'
"""Other pools are the same in any two commits."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)


class Trouble(Exception):
    """The commits cannot be compared; the text says why."""


def run(*command: str | Path, accept: tuple[int, ...] = (0,), **options: Any) -> str:
    """Run a program in the repository. Return what it prints; where it fails, its last lines are the trouble."""
    options = {'cwd': HERE.parent, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True} | options
    done = subprocess.run(list(map(str, command)), **options)
    if done.returncode not in accept:
        last = '\n'.join(done.stdout.splitlines()[-15:])
        raise Trouble(f'{" ".join(map(str, command[:4]))} ... ended with status {done.returncode}:\n{last}')
    return str(done.stdout)


# --- two builds ---


def commit_of(what: str, name: str) -> str:
    """Return the hash of a commit, by any name that git knows."""
    try:
        return run('git', 'rev-parse', '--verify', '--quiet', '--end-of-options', f'{name}^{{commit}}').strip()
    except Trouble:
        raise Trouble(f'{what}: git knows no commit {name!r} here') from None


def build(commit: str) -> Path:
    """Build a commit, unless an earlier run has built it. Return the directory to import it from."""
    place = BUILDS / f'{commit}-{sys.implementation.cache_tag}'
    if not place.exists():
        console.print(f'building {commit[:8]}')
        with tempfile.TemporaryDirectory() as scratch:
            source, installed = Path(scratch, 'source'), Path(scratch, 'installed')
            source.mkdir()
            run('git', 'archive', '--output', source.with_suffix('.tar'), commit)
            shutil.unpack_archive(source.with_suffix('.tar'), source)
            run(
                sys.executable,
                '-m',
                'pip',
                'install',
                '--quiet',
                '--no-deps',
                '--no-build-isolation',
                '--target',
                installed,
                source,
            )
            BUILDS.mkdir(parents=True, exist_ok=True)
            shutil.move(installed, place)
    program = 'import gcp._core; print(gcp._core.__file__)'
    core = run(sys.executable, '-c', program, cwd=BUILDS, env=os.environ | {'PYTHONPATH': str(place)}).strip()
    if not core.startswith(str(place)):
        raise Trouble(f'{commit[:8]} was built in {place}, but {core} is imported')
    return place


# --- rounds ---

Key = tuple[str, tuple[str, ...]]
"""A benchmark and its parameters."""


@dataclass
class Compared:
    """The rounds of one benchmark. Values are in its unit, NaN where it failed."""

    unit: str
    more_is_better: bool
    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times worse the head was, round by round."""
        pairs = list(zip(self.base, self.head, strict=True))
        return [ratio(base, head) if self.more_is_better else ratio(head, base) for base, head in pairs]

    @property
    def broken(self) -> bool:
        """Whether the head fails where the base does not."""
        return not any(map(isnan, self.base)) and any(map(isnan, self.head))

    def seems_changed(self, factor: float) -> bool:
        return not 1 / factor <= median(self.ratios) <= factor

    def verdict(self, factor: float) -> str:
        """Return the verdict of three quarters of the rounds."""
        if any(map(isnan, self.ratios)):
            return 'broken' if self.broken else ''
        first, _, third = quantiles(self.ratios, n=4, method='inclusive')
        return 'slower' if first > factor else 'faster' if third < 1 / factor else ''


def ratio(one: float, other: float) -> float:
    return one / other if other else 1.0 if not one else inf


def measure(build: Path, commit: str, bench: Iterable[str], seen: dict[Key, Compared], side: str) -> None:
    """Run the benchmarks once with a build, and record their values."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, 'asv.conf.json')
        path.write_text(
            json.dumps(
                load_json(str(CONFIG), js_comments=True)
                | {
                    'repo': str(HERE.parent),
                    'benchmark_dir': str(HERE / 'benchmarks'),
                    'results_dir': f'{scratch}/results',
                    'env_dir': f'{scratch}/env',
                }
            )
        )
        command = [
            *ASV,
            'run',
            '--config',
            path,
            '--python=same',
            f'--set-commit-hash={commit}',
            '--attribute=rounds=1',
            *(f'--bench={regex}' for regex in bench),
        ]
        run(*command, accept=(0, 2), env=os.environ | {'ASV_PYTHONPATH': str(build)})  # 2: some of them failed
        note(Config.load(path), seen, side)


def note(config: Config, seen: dict[Key, Compared], side: str) -> None:
    benchmarks = Benchmarks.load(config)
    for result in iter_results(config.results_dir):
        for name in result.get_all_result_keys():
            params = benchmarks[name]['params']
            values, spreads = result.get_result_value(name, params), result.get_result_stats(name, params)
            for combination, value, spread in zip(product(*params), values, spreads, strict=True):
                compared = seen.setdefault((name, combination), Compared(benchmarks[name]['unit'], prefers_more(name)))
                getattr(compared, side).append(undisturbed(value, spread))


def undisturbed(value: float | None, spread: dict[str, float] | None) -> float:
    """Return the lower quartile of the times of a process, since interruptions only add time; else the value itself."""
    return nan if value is None else value if spread is None or 'q_25' not in spread else spread['q_25']


def prefers_more(name: str) -> bool:
    """Look up whether more of what a benchmark tracks is better."""
    chapter, owner, method = name.rsplit('.', 2)
    found = getattr(getattr(importlib.import_module(f'benchmarks.{chapter}'), owner), method)
    return getattr(found, 'more_is_better', False)


def take_turns(
    base: tuple[Path, str],
    head: tuple[Path, str],
    bench: Iterable[str],
    rounds: int,
) -> dict[Key, Compared]:
    """Run both, round after round, in alternating order."""
    seen: dict[Key, Compared] = {}
    for number in range(rounds):
        console.print(f'round {number + 1} of {rounds}')
        sides = [('base', base), ('head', head)]
        for side, (place, commit) in sides if number % 2 else reversed(sides):
            measure(place, commit, bench, seen, side)
    return seen


def compare(
    base: tuple[Path, str],
    head: tuple[Path, str],
    bench: list[str],
    rounds: int,
    factor: float,
) -> dict[Key, Compared]:
    """Return the results; for benchmarks that seemed to have changed, those of the second measurement."""
    seen = take_turns(base, head, bench, rounds)
    suspects = {key for key, compared in seen.items() if compared.seems_changed(factor)}
    if suspects:
        names = sorted({name for name, _ in suspects})
        console.print(f'{len(suspects)} of {len(seen)} seem to have changed: again')
        again = take_turns(base, head, [rf'^{re.escape(name)}(\(|$)' for name in names], 2 * rounds)
        seen |= {key: compared for key, compared in again.items() if key in suspects}
    return seen


# --- the report ---


def show(seen: dict[Key, Compared], factor: float) -> None:
    table = Table('benchmark', 'base', 'head', 'worse by', 'least to most', '', box=None)
    table.columns[0].overflow = 'fold'
    colours = {'slower': 'red', 'broken': 'red', 'faster': 'green', '': ''}
    there = {key: compared for key, compared in seen.items() if not all(map(isnan, compared.ratios)) or compared.broken}
    for (name, params), compared in sorted(there.items(), key=lambda item: -median(item[1].ratios)):
        ratios, verdict = compared.ratios, compared.verdict(factor)
        values = [human(median(side), compared.unit) for side in (compared.base, compared.head)]
        spread = f'{min(ratios):.2f} to {max(ratios):.2f}'
        what = f'{name}({", ".join(params)})' if params else name
        table.add_row(what, *values, f'{median(ratios):.2f} x', spread, verdict, style=colours[verdict])
    console.print(table)


def human(value: float, unit: str) -> str:
    return 'failed' if isnan(value) else human_value(value, unit) if unit == 'seconds' else f'{value:.4g} {unit}'


def main() -> int:
    """Compare and print. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('base', help='the commit or branch to compare with')
    parser.add_argument('--head', default='HEAD', help='the commit that may be slower (default: %(default)s)')
    parser.add_argument('--bench', action='append', metavar='REGEX', help='only these (default: all but peers)')
    parser.add_argument('--factor', type=float, default=1.1, help='more is a regression (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='turns before the second look (default: %(default)s)')
    options = parser.parse_args()
    if not options.factor > 1:
        parser.error(f'--factor must be more than 1, not {options.factor:g}')
    if options.rounds < 2:
        parser.error(f'--rounds must be at least 2, not {options.rounds}')
    try:
        commits = [commit_of('BASE', options.base), commit_of('HEAD', options.head)]
        if run('git', 'status', '--porcelain', '--untracked-files=no', 'gcp', 'setup.py') and options.head == 'HEAD':
            console.print('what is not committed is not compared')
        run(*ASV, 'machine', '--config', CONFIG, '--yes')
        base, head = ((build(commit), commit) for commit in commits)
        seen = compare(base, head, options.bench or [ALL], options.rounds, options.factor)
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 2
    show(seen, options.factor)
    verdicts = [compared.verdict(options.factor) for compared in seen.values()]
    worse = verdicts.count('slower') + verdicts.count('broken')
    console.print(
        f'{len(seen)} compared, {commits[0][:8]} with {commits[1][:8]}: {verdicts.count("slower")} slower by more than '
        f'{options.factor:g} x, {verdicts.count("broken")} broken, {verdicts.count("faster")} faster'
    )
    return 1 if worse else 0


if __name__ == '__main__':
    sys.exit(main())
