"""One endpoint, and a hundred thousand: what finding one costs. Processor time of the one thread."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from benchmarks import managers
from benchmarks.turns import Contender, clock, take_turns

import gcp.threading

from .contest import repetitions
from .rows import Row, at_most, inform

NUMBER = 100_000


def walk(known: Sequence[str], route: Sequence[str]) -> Contender:
    """Follow a route in stretches, again and again.

    :param known: the endpoints that have an idle connection
    """
    pool = gcp.threading.ConnectionPool(managers.blocking(gcp.threading), total_max_size=NUMBER)
    for name in known:
        pool.release(pool.acquire(name), name)
    position = 0

    def run(times: int) -> float:
        nonlocal position
        position = position if position + times <= len(route) else 0
        stretch = route[position : position + times]
        position += times
        start = clock()
        for name in stretch:
            conn = pool.acquire(name)
            pool.release(conn, name)
        return clock() - start

    return run


def case_endpoints(effort: float) -> Iterator[Row]:
    """acquire+release over 100,000 endpoints, in turn, against one; processor time"""
    names = [f'endpoint {number}' for number in range(NUMBER)]
    ns = take_turns(
        {
            'one': walk(names[:1], names[:1] * NUMBER),
            'in turn': walk(names, names * 20),
            'at random': walk(names, random.Random(1).choices(names, k=3 * NUMBER)),
        },
        repetitions(effort, 100),
    )
    medians = {f'{name}, ns': value for name, value in ns.items()}
    yield at_most('acquire+release: 100,000 endpoints in turn / one', 2, ns['in turn'] / ns['one'], ' x', **medians)
    yield inform('acquire+release: 100,000 endpoints at random / one', ns['at random'] / ns['one'], ' x')
