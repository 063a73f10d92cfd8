"""The memory that the pool itself needs for an idle connection and for an endpoint, C structures included.

It is the growth of the process for very many of them. Connections and keys exist beforehand and do not count. Each
measurement runs in an interpreter of its own, because memory that was freed before would be used again and not count.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gcp.threading

from . import effort, interpreter, tracks

MANY = effort.choose(2000, 50_000, 200_000)
STATM = Path('/proc/self/statm')


def resident() -> int:
    """Return how much memory the process has, bytes."""
    gc.collect()
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def manager_of(library: ModuleType, connections: list[object]) -> Any:
    """Make a manager that hands out connections that exist."""

    class Manager(library.BaseConnectionManager[Any, Any]):  # type: ignore[misc, name-defined]
        def create(self, endpoint: object, timeout: float | None = None) -> object:
            return connections.pop()

        def dispose(self, endpoint: object, conn: object, timeout: float | None = None) -> None:
            pass

    return Manager()


def growth(fill: Callable[[Any, list[str], list[object]], None], number: int) -> float:
    """Return by how many bytes the process grows for each of many.

    :param fill: makes idle connections, given a pool, names of endpoints, and a list of the same length to hold them in
    """
    connections: list[object] = [object() for _ in range(number)]
    kept = list(connections)  # the connections' own memory is neither allocated nor freed meanwhile
    names = [f'endpoint {place}' for place in range(number)]
    held = list(connections)
    pool = gcp.threading.ConnectionPool(manager_of(gcp.threading, connections), max_size=number, total_max_size=number)
    before = resident()
    fill(pool, names, held)
    after = resident()
    assert pool.stats().idle == len(kept)
    return (after - before) / number


def of_idle_connection(pool: Any, names: list[str], held: list[object]) -> None:
    """Fill one endpoint."""
    for place in range(len(held)):
        held[place] = pool.acquire('db')
    for conn in held:
        pool.release(conn, 'db')


def of_endpoint(pool: Any, names: list[str], held: list[object]) -> None:
    """Make endpoints with an idle connection each."""
    for name in names:
        pool.release(pool.acquire(name), name)


def of_endpoint_at_once(pool: Any, names: list[str], held: list[object]) -> None:
    """Make endpoints with a connection each, all of which are in use at the same time."""
    for place, name in enumerate(names):
        held[place] = pool.acquire(name)
    for conn, name in zip(held, names, strict=True):
        pool.release(conn, name)


class Growth:
    """Bytes each. An endpoint's include those of its one idle connection."""

    params = [['idle_connection', 'endpoint', 'endpoint_at_once']]
    param_names = ['of an']

    def setup(self, kind: str) -> None:
        if not STATM.exists():
            raise NotImplementedError('reads the size of the process as Linux tells it')

    @tracks.less('bytes')
    def track_bytes(self, kind: str) -> float:
        program = f'from benchmarks import memory; print(memory.growth(memory.of_{kind}, {MANY}))'
        size: float = interpreter.run(program)
        return size
