"""How long `import gcp.threading` takes, and what it imports. Fresh processes take turns; processor time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks import imports, interpreter

from .contest import interleave, repetitions
from .rows import Row, at_most, inform

BROUGHT = """
import json, sys
import gcp.threading, gcp.asyncio
print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))
"""

TELEMETRY = {'opentelemetry', 'prometheus_client'}


def milliseconds(module: str) -> float:
    """Import it in a process of its own, after the modules of the standard library that it needs."""
    took: float = interpreter.run(imports.PROGRAM.format(stdlib=imports.STDLIB[module], module=module))
    return took


def case_imports(effort: float) -> Iterator[Row]:
    """import gcp.threading, beyond import threading, logging; no telemetry package comes along; processor time"""
    brought = TELEMETRY & set(interpreter.run(BROUGHT))
    yield at_most('telemetry packages in sys.modules after import gcp.threading, gcp.asyncio', 0, len(brought))
    run = {module: lambda module=module: milliseconds(module) for module in imports.STDLIB}
    ms = {module: statistics.median(seen) for module, seen in interleave(run, repetitions(effort, 21)).items()}
    yield at_most('import gcp.threading, after import threading, logging', 60, ms['gcp.threading'], ' ms')
    yield inform('import gcp.asyncio, after import asyncio, logging', ms['gcp.asyncio'], ' ms')
