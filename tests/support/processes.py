"""Which processes are left."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TypeVar

from starvation import SOON

Found = TypeVar('Found', bound=Sized)


def processes_in(directory: Path) -> dict[int, str]:
    """The processes that work in or below a directory, as do all of a PostgreSQL server's: their command lines."""
    found = {}
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if os.readlink(process / 'cwd').startswith(str(directory)):
                found[int(process.name)] = (process / 'cmdline').read_text().replace('\0', ' ')
    return found


def left_in(directory: Path, find: Callable[[Path], Found] = processes_in) -> Found:
    """Those that do not end soon. One that was killed is there until it gets the processor once more."""
    deadline = time.monotonic() + SOON
    while (left := find(directory)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
