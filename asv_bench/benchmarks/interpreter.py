"""A fresh interpreter, for measurements that this one's imports and allocations would distort."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def run(program: str) -> Any:
    """Run a program, which can import these chapters (`from benchmarks import`), and read what it prints as JSON."""
    command = [sys.executable, '-c', program]
    done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout)
