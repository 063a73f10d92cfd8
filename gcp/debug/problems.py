"""What needs attention, in words: the first thing that an engineer reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gcp.explanation import span

__all__ = ['by', 'problems', 'site']

MOST = 12
SHORT = 0.05  # waits that end so soon are no problem, seconds

Facts = Mapping[str, Any]


def problems(pools: Sequence[Facts], others: Facts) -> list[dict[str, Any]]:
    """Return what needs attention, the worst first.

    :param pools: the pools that are shown
    :param others: the counts of the others
    """
    found = [one for pool in pools for one in problems_of(pool)]
    found.sort(key=lambda one: one['level'] != 'bad')
    if others['waiting']:
        found.append(problem('warn', None, None, f'{others["waiting"]:,} acquires wait in pools that are not shown'))
    if len(found) > MOST:
        more = len(found) - MOST + 1
        found[MOST - 1 :] = [problem('warn', None, None, f'{more:,} more endpoints: see the tables')]
    return found


def problem(level: str, pool: str | None, endpoint: str | None, what: str) -> dict[str, Any]:
    return {'level': level, 'pool': pool, 'endpoint': endpoint, 'text': what}


def problems_of(pool: Facts) -> Iterator[dict[str, Any]]:
    """Yield what needs attention of one pool."""
    name = pool['name']
    for one in pool['endpoints']:
        said = trouble(one, pool)
        if said:
            yield problem(said[0], name, one['endpoint'], said[1])
    if pool['other_endpoints']['waiting']:
        waiting = pool['other_endpoints']['waiting']
        yield problem('warn', name, None, f'{waiting:,} acquires wait at endpoints that are not shown')
    gone = [holder for holder in pool['holders'] if not holder['alive']]
    if gone:
        what = f'{len(gone):,} connection{"s are" if len(gone) > 1 else " is"} held by a thread or task that has ended'
        yield problem('bad', name, gone[0]['endpoint'], f'{what}; acquired at {site(gone[0])}')
    limit = pool['limits']['leak_threshold']
    if limit is not None and pool['oldest_checkout'] > limit:
        held = f'a connection has been held for {span(pool["oldest_checkout"])}, longer than leak_threshold={limit:g}'
        yield problem('warn', name, None, held)


def trouble(one: Facts, pool: Facts) -> tuple[str, str] | None:
    """Say what is wrong with an endpoint."""
    if one['breaker'] != 'closed':
        return 'bad', f'unavailable: {one["reason"] or one["breaker"]}'
    if one['waiting'] and one['oldest_waiter'] >= SHORT:
        said = 'acquires wait, the oldest for' if one['waiting'] > 1 else 'acquire has waited for'
        since = span(one['oldest_waiter'])
        return 'bad', f'{one["waiting"]:,} {said} {since}: {one["reason"]}{longest(one, pool)}'
    if one['failures']:
        return 'warn', one['reason'] or f'connects fail: {one["last_error"]}'
    if one['suspended'] or one['retiring']:
        return 'warn', 'suspended' if one['suspended'] else 'is being retired'
    return None


def longest(one: Facts, pool: Facts) -> str:
    """Say who has held what an endpoint's waiters wait for the longest."""
    own = [holder for holder in pool['holders'] if holder['id'] == one['id']] or (
        pool['holders'] if (one['cap'] or '').startswith('total') else []
    )
    if own:
        return f'. The longest holder: {by(own[0])} at {site(own[0])}, for {span(own[0]["age"])}'
    return f'. One has been held for {span(one["oldest_checkout"])}' if one['used'] else ''


def by(holder: Facts) -> str:
    """Say who holds a connection."""
    if holder['task_name'] is not None:
        return f'task {holder["task_name"]}'
    if holder['thread_name'] is not None:
        return f'thread {holder["thread_name"]}'
    return 'unknown' if holder['thread_ident'] is None else f'thread {holder["thread_ident"]}'


def site(holder: Facts) -> str:
    """Say where a connection was acquired."""
    if holder['file'] is None:
        return 'an unknown place'
    short = '/'.join(str(holder['file']).replace('\\', '/').split('/')[-2:])
    return f'{short}:{holder["line"]}' + (f' in {holder["function"]}' if holder['function'] else '')
