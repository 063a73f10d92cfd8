"""Which processes are left."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def processes_in(directory: Path) -> dict[int, str]:
    """The processes that work in or below a directory, as do all of a PostgreSQL server's: their command lines."""
    found = {}
    for process in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):
            if os.readlink(process / 'cwd').startswith(str(directory)):
                found[int(process.name)] = (process / 'cmdline').read_text().replace('\0', ' ')
    return found
