"""How long `import gcp` takes, without the standard library's part. It must not import a telemetry package."""

from __future__ import annotations

from statistics import median

from . import effort, interpreter, tracks

TIMES = effort.choose(1, 7, 25)

# the processor's time, as in `effort.Timed`
PROGRAM = """
import sys, time
import {stdlib}, logging
start = time.process_time()
import {module}
took = time.process_time() - start
assert not any(name.split('.')[0] in ('opentelemetry', 'prometheus_client') for name in sys.modules)
print(1000 * took)
"""

STDLIB = {'gcp.threading': 'threading', 'gcp.asyncio': 'asyncio'}


class Import:
    params = [list(STDLIB)]
    param_names = ['module']

    @tracks.less('ms')
    def track_import_milliseconds_over_stdlib(self, module: str) -> float:
        program = PROGRAM.format(stdlib=STDLIB[module], module=module)
        return median(interpreter.run(program) for _ in range(TIMES))
