"""What one idle hit of each kind costs, counted by callgrind, and what that depends on."""

from __future__ import annotations

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
from dataclasses import dataclass
from pathlib import Path

HITS = Path(__file__).resolve().parent / 'hits.py'

LENGTHS = (500, 1000)
"""How often it is done, in one stretch and the next; what both have besides cancels out in their difference."""

KEPT = ('HOME', 'LD_LIBRARY_PATH', 'PATH', 'PYTHONPATH', 'VALGRIND_LIB')
"""Variables that the counted process inherits. Others could change what it does."""

GIVEN = {'GCP_CLOCK': 'kernel', 'PYTHONHASHSEED': '0'}
"""Variables that make it do the same each time. The processor's counter, which the core's clock is taken from, is none
that valgrind keeps in step with the kernel's: how often that is asked would be another number on each run."""


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
        interpreter=', '.join(
            [platform.python_version(), platform.python_compiler(), ' '.join(platform.libc_ver()), *optimized]
        ),
    )


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
    """valgrind failed."""


class ValgrindMissingError(ValgrindError):
    """valgrind is not installed."""


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
                valgrind,
                '--tool=callgrind',
                '--dump-before=getppid',
                '--combine-dumps=yes',
                '--dump-line=no',
                '--compress-strings=no',
                '--compress-pos=no',
                f'--callgrind-out-file={account}',
                f'--log-file={log}',
                sys.executable,
                str(HITS),
                *map(str, LENGTHS),
            ],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=directory,
            env={**GIVEN, **{name: os.environ[name] for name in KEPT if name in os.environ}},
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
    if not parts[-2].core:
        raise ValgrindError(f'callgrind saw nothing of {core}')
    stretches = zip(parts[1::3], parts[2::3], strict=True)
    return Seen(build_of(Path(core)), {name: difference(*both) for name, both in zip(names, stretches, strict=True)})


def read(lines: Iterator[str], core: str) -> Iterator[Cost]:
    """Read the output of callgrind, part by part.

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
            name = re.split(r"['@]", line[4:-1])[0]  # without a version, or the depth of a recursion
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
    calls = {
        name: round((times_called - shorter.calls.get(name, 0)) / times, 1)
        for name, times_called in sorted(longer.calls.items())
    }
    return Cost(
        core=round((longer.core - shorter.core) / times, 1),
        total=round((longer.total - shorter.total) / times, 1),
        calls={name: number for name, number in calls.items() if number},
    )
