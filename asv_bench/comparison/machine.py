"""The machine, Python, and the versions of what was measured: without them a figure says nothing."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

from benchmarks.adapters import Peer

import gcp


def processor() -> str:
    """Return the model name of the processor."""
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            key, _, value = line.partition(':')
            if key.strip() == 'model name':
                return value.strip()
    except OSError:
        if platform.system() == 'Darwin':
            asked = ['sysctl', '-n', 'machdep.cpu.brand_string']
            return subprocess.run(asked, capture_output=True, text=True).stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def describe() -> str:
    """Describe the machine: processor, cores, system, Python, and the date."""
    cores = os.cpu_count() or 1
    return (
        f'{processor()}, {cores} core{"s" * (cores != 1)}, {platform.system()} {platform.machine()}; '
        f'{platform.python_implementation()} {platform.python_version()}; {datetime.date.today():%Y-%m-%d}'
    )


def versions(peers: Sequence[Peer]) -> str:
    """List the packages that were measured, each with its version."""
    found = {peer.packages[0]: peer.version for peer in peers if peer.version}
    return ', '.join([f'gcp {gcp.__version__}', *(f'{name} {version}' for name, version in found.items())])
