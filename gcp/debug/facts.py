"""What there is to be seen of all pools of this process, as plain data: the JSON, and what the page is made of."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gcp._core import (
    AGE_BOUNDS,
    USE_BOUNDS,
    WAIT_BOUNDS,
    AsyncPool,
    BaseConnectionPool,
    find_holders,
    inspect_pool,
    list_waiters,
)
from gcp.debug.events import Events
from gcp.debug.pace import Pace
from gcp.debug.plain import endpoint_id, finite, shown, shown_error, text
from gcp.debug.problems import problems
from gcp.explanation import explanation
from gcp.observe.telemetry import living, version
from gcp.stats import Histogram

__all__ = ['Facts', 'collect', 'shares']

Facts = dict[str, Any]

FRAMES = 1500  # characters of a stack that are shown, its end
STATES = ('idle', 'used', 'creating', 'disposing', 'waiting')
STEERING = ('expire', 'suspend', 'resume', 'retire')


def collect(top: int, secret: bytes, events: Events, only: str | None = None, *, actions: bool = False) -> Facts:
    """Look at all pools.

    :param top: how many pools, endpoints, holders and waiters to show, at most; the others are counted
    :param secret: what ids of endpoints are made with
    :param events: what has happened before; changes since the last look are added
    :param only: the name of the pools to show; ``None``: all
    :param actions: whether to say what can be done with each pool
    """
    pace = Pace()
    began = time.perf_counter()
    looks = [Look(pool) for pool in pace.over(living()) if isinstance(pool, BaseConnectionPool)]
    for look in pace.over(looks):
        events.compare(look.number, look.name, look.total)
    chosen = [look for look in looks if only is None or look.name == only]
    chosen.sort(key=Look.rank)
    shown_looks = chosen[:top]
    for what, room in ('endpoints', 'room'), ('holders', 'places'), ('queue', 'seats'):
        for look, share in zip(shown_looks, shares([look.count(what) for look in shown_looks], top), strict=True):
            setattr(look, room, share)
    pools = [look.facts(pace, secret, events, actions) for look in pace.over(shown_looks)]
    facts: Facts = {
        'process': process(len(looks)),
        'only': only,
        'pools': pools,
        'other_pools': rest(chosen[top:]),
        'events': events.latest(top),
    }
    facts['problems'] = problems(pools, facts['other_pools'])
    facts['took'] = time.perf_counter() - began
    return facts


def process(pools: int) -> Facts:
    """Say which process this is."""
    return {
        'pid': os.getpid(),
        'host': text(socket.gethostname()),
        'program': text(os.path.basename(sys.argv[0] or sys.executable or '')),
        'python': platform.python_version(),
        'gcp': version(),
        'threads': threading.active_count(),
        'pools': pools,
        'time': time.time(),
    }


def shares(counts: Sequence[int], room: int) -> list[int]:
    """Divide the rows of a table among pools, the most troubled first: each gets an equal part, as far as it can use
    it, and what is left goes to the first that can.

    :param counts: how many rows each could use
    :param room: how many rows there are
    """
    each = room // len(counts) if counts else 0
    given = [min(count, each) for count in counts]
    left = room - sum(given)
    for i, count in enumerate(counts):
        more = min(left, count - given[i])
        given[i] += more
        left -= more
    return given


def rest(looks: Iterable[Look]) -> Facts:
    """Count the pools that are not shown."""
    totals = [look.total for look in looks]
    return {'count': len(totals), **{state: sum(total[state] for total in totals) for state in STATES}}


class Look:
    """A look at one pool.

    :ivar room: how many endpoints to show
    :ivar places: how many holders
    :ivar seats: how many waiters
    """

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.number = id(pool)
        self.name = text(pool.name)
        self.total, _, self.known = inspect_pool(pool._core, 0)
        self.room = self.places = self.seats = 0

    def rank(self) -> tuple[Any, ...]:
        """Order pools: first those with waiters, then those that fail, then the fullest, closed ones last."""
        total, core = self.total, self.pool._core
        return (
            core.closed,
            -total['waiting'],
            -total['failing'],
            -total['used'] / max(1, core.limits[0]),
            -total['used'],
            self.name,
        )

    def count(self, what: str) -> int:
        """Return how many rows of a table there are."""
        return int({'endpoints': self.known, 'holders': self.total['used'], 'queue': self.total['waiting']}[what])

    def facts(self, pace: Pace, secret: bytes, events: Events, actions: bool) -> Facts:
        """Return all that is shown of the pool."""
        total, found, known = inspect_pool(self.pool._core, self.room)
        pace.step()
        endpoints = [endpoint_facts(one, secret) for one in pace.over(found)]
        for one in endpoints:
            events.compare_endpoint(self.number, self.name, one)
        holders = find_holders(self.pool, None, self.places) if self.places else []
        pace.step()
        holders = [holder_facts(holder, secret) for holder in pace.over(holders)]
        queue = [waiter_facts(one, secret) for one in list_waiters(self.pool._core, None, self.seats)]
        pace.step()
        return {
            'name': self.name,
            'frontend': 'asyncio' if isinstance(self.pool, AsyncPool) else 'threading',
            'manager': text(type(self.pool._manager).__name__),
            'is_closed': self.pool._core.closed,
            'actions': [name for name in STEERING if hasattr(self.pool, name)] if actions else [],
            'limits': limits_of(self.pool),
            **counts_of(total),
            'failing': total['failing'],
            'times': times_of(total),
            'endpoints': endpoints,
            'other_endpoints': others(total, endpoints, known),
            'holders': holders,
            'other_holders': max(0, total['used'] - len(holders)),
            'tracks_holders': self.pool._options.track_holders,
            'queue': queue,
            'other_waiters': max(0, total['waiting'] - len(queue)),
        }


def counts_of(total: Mapping[str, Any]) -> Facts:
    """Return the counts of a pool or an endpoint, without what is 0 among those by kind."""
    return {
        **{state: total[state] for state in STATES},
        'created': total['created'],
        'leaks': total['leaks'],
        'oldest_waiter': total['oldest_waiter'],
        'oldest_checkout': total['oldest_checkout'],
        **{kind: nonzero(total[kind]) for kind in ('acquires', 'releases', 'closed', 'connect_failures')},
    }


def nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def limits_of(pool: Any) -> Facts:
    """Return the limits of a pool."""
    options = pool._options
    names = ('max_size', 'total_max_size', 'min_idle', 'idle_timeout', 'max_lifetime', 'acquire_timeout', 'max_waiting')
    more = ('leak_threshold', 'max_connecting', 'max_connecting_total', 'connect_workers', 'breaker_threshold')
    shared = ('reserve', 'reserve_timeout')
    return {name: finite(getattr(options, name)) for name in names + more + shared}


def times_of(total: Mapping[str, Any]) -> Facts:
    """Return what was timed, as histograms."""
    create = [sum(counts) for counts in zip(*(part[0] for part in total['hook_time']['create'].values()), strict=True)]
    summed = sum(part[1] for part in total['hook_time']['create'].values())
    return {
        'wait': histogram_facts(WAIT_BOUNDS, *total['wait']),
        'use': histogram_facts(USE_BOUNDS, *total['use']),
        'create': histogram_facts(WAIT_BOUNDS, tuple(create), summed),
        'age': histogram_facts(AGE_BOUNDS, *total['age']),
    }


def histogram_facts(bounds: tuple[float, ...], counts: tuple[int, ...], total: float) -> Facts:
    """Return a histogram of durations, seconds. The last bucket has no bound."""
    made = Histogram(bounds, counts, total)
    count = made.count
    return {
        'count': count,
        'mean': total / count if count else None,
        'p50': finite(made.quantile(0.5)),
        'p99': finite(made.quantile(0.99)),
        'bounds': list(bounds),
        'counts': list(counts),
    }


def endpoint_facts(found: dict[str, Any], secret: bytes) -> Facts:
    """Return what is shown of an endpoint."""
    why = explanation(found['endpoint'], found)
    max_size, min_idle, idle_timeout, max_lifetime, max_waiting, weight, floor, reserve = found['limits']
    return {
        'endpoint': shown(found['endpoint'], secret),
        'id': endpoint_id(found['endpoint'], secret),
        **counts_of(found),
        'limits': {
            'max_size': max_size,
            'min_idle': min_idle,
            'idle_timeout': finite(idle_timeout),
            'max_lifetime': finite(max_lifetime),
            'max_waiting': max_waiting,
            'weight': weight,
            'floor': floor,
            'reserve': reserve,
        },
        'blocked_by': why.blocked_by,
        'cap': why.cap,
        'reason': text(why.reason(), 400),
        'expected_wait': why.expected_wait,
        'breaker': why.breaker,
        'failures': why.failures,
        'retry_delay': why.retry_delay,
        'last_error': shown_error(why.last_error),
        'suspended': why.suspended,
        'retiring': why.retiring,
        'missing': found['missing'],
    }


def others(total: Mapping[str, Any], endpoints: Sequence[Facts], known: int) -> Facts:
    """Count the endpoints that are not shown."""
    counted = {state: max(0, total[state] - sum(one[state] for one in endpoints)) for state in STATES}
    return {'count': max(0, known - len(endpoints)), **counted}


def waiter_facts(found: tuple[Any, ...], secret: bytes) -> Facts:
    """Return what is shown of an acquire that waits."""
    endpoint, position, age, remaining, blocked_by, cap = found
    return {
        'endpoint': shown(endpoint, secret),
        'id': endpoint_id(endpoint, secret),
        'position': position,
        'age': age,
        'remaining': remaining,
        'blocked_by': blocked_by,
        'cap': cap,
    }


def holder_facts(holder: Any, secret: bytes) -> Facts:
    """Return what is shown of a holder of a connection, with its present stack."""
    return {
        'endpoint': shown(holder.endpoint, secret),
        'id': endpoint_id(holder.endpoint, secret),
        'age': float(holder.age),
        **{
            name: None if getattr(holder, name, None) is None else text(getattr(holder, name))
            for name in ('thread_name', 'task_name', 'function', 'trace_id', 'tag')
        },
        'file': None if getattr(holder, 'file', None) is None else text(holder.file, 300),
        **{name: getattr(holder, name, None) for name in ('thread_ident', 'line')},
        'alive': bool(getattr(holder, 'alive', True)),
        'stack': stack_of(holder),
    }


def stack_of(holder: Any) -> str:
    """Return the end of the present stack of a holder, or what is said in its place."""
    try:
        lines = str(holder.stack()).rstrip().splitlines()
    except Exception as error:
        return f'not known: {shown_error(error)}'
    whole = '\n'.join(text(line, 300) for line in lines)
    return whole if len(whole) <= FRAMES else f'…\n{whole[-FRAMES:].partition(chr(10))[2]}'
