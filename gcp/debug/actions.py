"""What can be done with a pool from outside: expire, suspend, resume, retire. The methods of the pool do it."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

from gcp._core import AsyncPool, BaseConnectionPool, describe, known_endpoints
from gcp.debug.events import Events
from gcp.debug.pace import Pace
from gcp.debug.plain import endpoint_id, shown, shown_error, text
from gcp.debug.requests import Refusal
from gcp.observe.telemetry import living

__all__ = ['ACTIONS', 'perform']

ACTIONS = {
    'expire': 'expired',
    'suspend': 'suspended',
    'resume': 'resumed',
    'retire': 'retired',
}
WAIT = 2.0  # how long to wait for an action until it is said to go on, seconds
EVERY = object()  # the endpoint of an action on a whole pool


def perform(fields: Mapping[str, str], secret: bytes, events: Events) -> dict[str, Any]:
    """Do what a request asks for.

    :param fields: ``action``, ``pool``, and ``endpoint`` (as it is shown) or ``id``; ``timeout`` for `retire`, seconds
    :return: ``done`` (``True``, or ``False`` if it goes on or there was nothing to do) and ``message``
    :raises Refusal: if it is not known what is meant, or it has failed
    """
    action = fields.get('action', '')
    if action not in ACTIONS:
        raise Refusal(400, f'the action must be one of {", ".join(ACTIONS)}, not {text(action)!r}')
    name = fields.get('pool', '')
    pools = [pool for pool in living() if isinstance(pool, BaseConnectionPool) and text(pool.name) == text(name)]
    pools = [pool for pool in pools if not pool._core.closed] or pools
    if not pools:
        raise Refusal(404, f'this process has no pool {text(name)!r}{known_names()}')
    if action == 'retire' and not (fields.get('endpoint') or fields.get('id')):
        raise Refusal(400, 'retire needs an endpoint')
    told = [perform_on(pool, action, fields, secret, events) for pool in pools]
    done = [one for one in told if one['done'] is not None] or told[:1]
    return {
        'done': all(one['done'] for one in done),
        'action': action,
        'pool': text(name),
        'message': '; '.join(one['message'] for one in done),
    }


def known_names() -> str:
    """Name the pools that there are."""
    names = sorted({text(pool.name) for pool in living()})
    return f': it has {", ".join(names[:10])}{", …" if len(names) > 10 else ""}' if names else ''


def perform_on(pool: Any, action: str, fields: Mapping[str, str], secret: bytes, events: Events) -> dict[str, Any]:
    """Do it with one pool. ``done`` is None if the pool has no such endpoint."""
    name = text(pool.name)
    endpoint = find_endpoint(pool, fields, secret)
    if endpoint is None:
        wanted = text(fields.get('endpoint') or fields.get('id'))
        if action in ('suspend', 'retire'):
            raise Refusal(404, f'pool {name} has no endpoint {wanted}')
        return {'done': None, 'message': f'pool {name} has no endpoint {wanted}: nothing to do'}
    method = getattr(pool, action, None)
    if method is None:
        raise Refusal(501, f'pool {name} has no method {action}')
    arguments = () if endpoint is EVERY else (endpoint[0],)
    options = {'timeout': seconds(fields['timeout'])} if fields.get('timeout') and action == 'retire' else {}
    where = '' if endpoint is EVERY else f' endpoint {shown(endpoint[0], secret)}'
    try:
        ended = call(pool, lambda: method(*arguments, **options))
    except Refusal:
        raise
    except Exception as error:
        raise Refusal(409, f'{action} of pool {name}{where} has failed: {shown_error(error)}') from error
    what = ACTIONS[action] if ended else f'{action} goes on: connections are still held'
    events.record(name, f'{what} by request', None if endpoint is EVERY else shown(endpoint[0], secret))
    return {'done': ended, 'message': f'pool {name}{where}: {what}'}


def seconds(given: str) -> float:
    """Return a number of seconds.

    :raises Refusal: with 400, if it is none
    """
    try:
        found = float(given)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise Refusal(400, f'timeout must be a number of seconds, not {text(given)!r}')
    return found


def find_endpoint(pool: Any, fields: Mapping[str, str], secret: bytes) -> Any:
    """Find the endpoint that a request names: by its id, by its text, or by how it is shown.

    :return: a tuple of the endpoint; `EVERY`: none is named; ``None``: the pool has no such endpoint
    :raises Refusal: with 409, if several are named like this
    """
    wanted, key = fields.get('endpoint') or '', fields.get('id') or ''
    if not wanted and not key:
        return EVERY
    pace = Pace()
    found = [
        one
        for one in pace.over(known_endpoints(pool._core))
        if (endpoint_id(one, secret) == key if key else is_named(one, wanted, secret))
    ]
    if len(found) > 1:
        raise Refusal(409, f'pool {text(pool.name)} has {len(found)} endpoints {text(wanted)}: use an id of the JSON')
    return (found[0],) if found else None


def is_named(endpoint: object, wanted: str, secret: bytes) -> bool:
    """Whether a text names an endpoint."""
    try:
        if isinstance(endpoint, str):
            return endpoint == wanted or describe(endpoint) == wanted or shown(endpoint, secret) == wanted
        return wanted in (describe(endpoint), shown(endpoint, secret))
    except Exception:  # of a `__repr__` or an `__eq__`
        return False


# --- where it is done ---


def call(pool: Any, method: Callable[[], Any]) -> bool:
    """Call a method, in the pool's event loop if it has one, in a thread otherwise. Returns whether it has ended in
    time; if not, it goes on."""
    result: dict[str, BaseException | None] = {}
    ended = threading.Event()

    def finish(error: BaseException | None) -> None:
        result['error'] = error
        ended.set()

    if isinstance(pool, AsyncPool):
        call_in_loop(pool._loop, method, finish)
    else:
        threading.Thread(target=run, args=(method, finish), name='gcp-debug-action', daemon=True).start()
    if not ended.wait(WAIT):
        return False
    error = result['error']
    if error is not None:
        raise error
    return True


def run(method: Callable[[], Any], finish: Callable[[BaseException | None], None]) -> None:
    try:
        method()
    except BaseException as error:
        finish(error)
    else:
        finish(None)


def call_in_loop(loop: Any, method: Callable[[], Any], finish: Callable[[BaseException | None], None]) -> None:
    """Call a method, or await it, in an event loop that runs in another thread.

    :raises Refusal: with 409, if there is none
    """

    async def work() -> None:
        try:
            result = method()
            if inspect.isawaitable(result):
                await result
        except BaseException as error:
            finish(error)
            if not isinstance(error, Exception):
                raise
        else:
            finish(None)

    if loop is None or not loop.is_running():
        raise Refusal(409, 'the event loop of the pool does not run')
    asyncio.run_coroutine_threadsafe(work(), loop)
