"""The demo: two pools, one for threads and one for asyncio tasks, connect to three PostgreSQL databases, with far more
workers than connections. Some connections are ended on purpose during the run."""

from __future__ import annotations

import importlib.util
import sys

from gcp.demo import programs
from gcp.demo.stop import Stop

__all__ = ['main']

FAILED, UNUSABLE = 1, 2


def main(seconds: float, threads: int, tasks: int, dsn: str | None) -> int:
    """Run the demo.

    :param seconds: the duration of the load, seconds
    :param threads: the number of threads
    :param tasks: the number of asyncio tasks
    :param dsn: the server to use; ``None`` starts one
    :return: the exit status: 0: every acquire was served and every ended connection replaced; 1: otherwise, or there is
        no server; 2: a package is missing; 128 + signal number: stopped by SIGINT or SIGTERM
    """
    needed = ['psycopg2', 'asyncpg', *['rich'] * sys.stdout.isatty()]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        return _complain(f'needs {" and ".join(missing)}: pip install "gcpool[demo]"', UNUSABLE)
    if dsn is None and not programs.is_installed():
        return _complain(f'needs {programs.MISSING}', UNUSABLE)
    with Stop() as stop:
        from gcp.demo import runner

        try:
            status = 0 if runner.run(seconds, threads, tasks, dsn, stop) else FAILED
        except runner.NoServerError as error:
            status = FAILED if stop() else _complain(str(error), FAILED)
    return status if stop.signal is None else 128 + stop.signal


def _complain(what: str, status: int) -> int:
    print(f'gcp demo {what}', file=sys.stderr)
    return status
