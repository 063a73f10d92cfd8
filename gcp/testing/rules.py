"""The rules that a pool relies on its manager to follow. Each rule is one function that serves both frontends: it
checks one thing, and raises `RuleBroken` with what it observed and how to fix it."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gcp.testing.harness import POLL_INTERVAL, UNSET, Harness, RuleBroken, RuleSkipped

__all__ = ['RULES', 'Rule']

#: How many times a healthy connection is checked.
CHECKS = 100

#: How many times `create` is called with an endpoint that refuses.
REFUSALS = 20

#: The time-out of `create` with an endpoint that never answers, seconds.
SILENT_TIMEOUT = 0.2

#: `create` may take twice `SILENT_TIMEOUT` and this much longer, seconds: the machine may be busy.
MARGIN = 1.0

#: How much longer than its time-out a disposal in a forked child may take, seconds: a copy of a large process starts
#: slowly on a busy machine.
CHILD_MARGIN = 10.0

#: The highest number of awaits at which a hook is cancelled.
CANCELLATIONS = 25

CheckFunction = Callable[[Harness], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule.

    :ivar name: its name
    :ivar text: what it requires
    :ivar check: checks it
    :ivar requires: the rules that it builds on: if one of them is broken, this one is skipped
    :ivar frontend: the only frontend that it applies to; ``None``: both
    """

    name: str
    text: str
    check: CheckFunction
    requires: tuple[str, ...]
    frontend: str | None


RULES: list[Rule] = []


def rule(
    text: str,
    *,
    requires: tuple[str, ...] = (),
    frontend: str | None = None,
) -> Callable[[CheckFunction], CheckFunction]:
    """Register a function as the check of the rule that has the function's name."""

    def register(check: CheckFunction) -> CheckFunction:
        RULES.append(Rule(check.__name__, text, check, requires, frontend))
        return check

    return register


# --- the rules, in the order in which they are checked ---


@rule('create returns a new connection each time')
async def create(harness: Harness) -> None:
    conns: list[Any] = []
    try:
        for _ in range(harness.count):
            conn = await harness.create()
            if conn is None:
                raise RuleBroken('create returned None', 'return the connection')
            if any(conn is other for other in conns):
                raise RuleBroken('create returned the same connection twice', 'make a new connection each time')
            conns.append(conn)
            await harness.exchange(conn, 'on a new connection', 'return a connection that is ready for use')
    finally:
        for conn in conns:
            await harness.discard(conn)


@rule(
    'check_aliveness finds a healthy connection alive every time, and does not disturb it',
    requires=('create',),
)
async def check_healthy(harness: Harness) -> None:
    if not harness.frontend.overrides('check_aliveness'):
        raise RuleSkipped('the manager has no check_aliveness')
    async with harness.connection() as conn:
        await _stays_alive(harness, conn, 'new')
        await harness.exchange(conn, 'after the checks', 'do not read data, and do not change the mode of the socket')
        await _stays_alive(harness, conn, 'used')


async def _stays_alive(harness: Harness, conn: Any, kind: str) -> None:
    for number in range(1, CHECKS + 1):
        if not (answer := await harness.is_alive(conn)):
            raise RuleBroken(
                f'check number {number} of a {kind} connection returned {answer!r}',
                'return True for it; a function without a return statement returns None',
            )


@rule(
    'on_acquire and on_release succeed on a healthy connection, and leave it healthy',
    requires=('create', 'check_healthy'),
)
async def hooks(harness: Harness) -> None:
    names = [name for name in ('on_acquire', 'on_release') if harness.frontend.overrides(name)]
    if not names:
        raise RuleSkipped('the manager has no on_acquire and no on_release')
    async with harness.connection() as conn:
        for _ in range(3):  # as a pool calls them: a check before each reuse
            for name in names:
                await harness.hook(
                    name, conn, fix='succeed on a healthy connection: the pool disposes of it after an error'
                )
                if name == 'on_acquire':
                    await harness.exchange(conn, 'after on_acquire', 'leave the connection usable in on_acquire')
            if not await harness.is_alive(conn):
                raise RuleBroken(f'the connection is dead after {" and ".join(names)}', 'leave the connection usable')


@rule('dispose closes a healthy connection', requires=('create',))
async def dispose(harness: Harness) -> None:
    conn = await harness.create()
    await harness.hook('dispose', conn, fix='close the connection within the time-out')


@rule('a pool can reuse connections, and is empty after close()', requires=('create', 'check_healthy', 'hooks'))
async def pool(harness: Harness) -> None:
    async with _open_pool(harness) as call:
        first = await call('acquire', harness.endpoint)
        await harness.exchange(first, 'on an acquired connection', 'have create and on_acquire leave it ready for use')
        await call('release', first, harness.endpoint)
        again = await call('acquire', harness.endpoint)
        if again is not first:
            raise RuleBroken('a released connection was not reused', 'look at what check_aliveness returns for it')
        await harness.exchange(again, 'on a reused connection', 'have on_release leave it ready for use')
        other = await call('acquire', harness.endpoint)
        if other is again:
            raise RuleBroken('two callers got the same connection', 'make a new connection each time')
        await call('release', again, harness.endpoint)
        await call('release', other, harness.endpoint)


@rule(
    'check_aliveness finds a connection dead after its peer has gone, and does not raise',
    requires=('create', 'check_healthy'),
)
async def check_dead(harness: Harness) -> None:
    async with harness.connection() as conn:
        await harness.kill_peer(conn)
        if not harness.frontend.overrides('check_aliveness'):
            raise RuleBroken(
                'the manager has no check_aliveness, so the pool hands out connections whose peer has gone',
                'look for EOF, errors and unsolicited data, as SocketAlivenessCheckingMixin of gcp.contrib.socket does',
            )
        if not await harness.becomes_dead(conn):
            raise RuleBroken(
                f'check_aliveness still returned True {harness.timeout:g} s after kill()',
                'look at the state of the socket (EOF and errors make it readable), or send a request to the server',
            )
        if await harness.is_alive(conn):
            raise RuleBroken('check_aliveness returned False, and then True', 'once dead, a connection stays dead')
        if harness.frontend.overrides('on_connection_dead'):
            await harness.hook('on_connection_dead', conn, fix='do not raise: the error is only logged')


@rule('dispose closes a connection whose peer has gone, without an error', requires=('create',))
async def dispose_dead(harness: Harness) -> None:
    fix = 'suppress errors of messages that the peer cannot receive, and close the connection within the time-out'
    for checked in (False, True):
        conn = await harness.create()
        try:
            await harness.kill_peer(conn)
            if checked:
                with contextlib.suppress(RuleBroken):  # reported as 'check_dead'
                    await harness.becomes_dead(conn)
        except BaseException:
            await harness.discard(conn)
            raise
        await harness.hook('dispose', conn, fix=fix)


@rule(
    'a pool replaces a connection whose peer has gone',
    requires=('create', 'check_healthy', 'hooks', 'check_dead', 'dispose_dead'),
)
async def replacement(harness: Harness) -> None:
    async with _open_pool(harness) as call:
        first = await call('acquire', harness.endpoint)
        await call('release', first, harness.endpoint)
        await harness.kill_peer(first)
        if not await harness.becomes_dead(first):
            raise RuleSkipped('the connection is not found dead')
        other = await call('acquire', harness.endpoint)
        if other is first:
            raise RuleBroken('the pool handed out a dead connection', 'once dead, a connection stays dead')
        await harness.exchange(other, 'on what replaced a dead connection', 'make a new connection each time')
        await call('release', other, harness.endpoint)


@contextlib.asynccontextmanager
async def _open_pool(harness: Harness) -> AsyncGenerator[Callable[..., Awaitable[Any]], None]:
    """Make a pool of the manager and close it on exit. Its methods are called by name."""
    frontend = harness.frontend
    if frontend.mismatches or frontend.blocking:
        raise RuleSkipped("some hooks cannot be called, see 'signatures' and 'event_loop'")
    try:
        opened = frontend.pool(
            max_size=2, acquire_timeout=harness.timeout, dispose_timeout=harness.timeout, name='check_manager'
        )
    except TypeError as error:
        base = f'gcp.{frontend.name}.BaseConnectionManager'
        raise RuleBroken(f'the pool refused the manager: {error}', f'derive from {base}') from None

    async def call(method: str, *arguments: Any) -> Any:
        outcome = await frontend.call(getattr(opened, method), *arguments, limit=2 * harness.timeout)
        return harness.expect(f"the pool's {method}", outcome, 'look at the hooks that it calls')

    try:
        yield call
    finally:
        await frontend.call(opened.close, harness.timeout, limit=2 * harness.timeout)
    if opened.get_size():
        raise RuleBroken(f'{opened.get_size()} connections are left after close()', 'end each hook within its time')


@rule('create raises when it is refused, and leaves nothing open')
async def refusal(harness: Harness) -> None:
    if harness.refused is UNSET:
        raise RuleSkipped('refused= was not given')
    for _ in range(REFUSALS):
        outcome = await harness.attempt('create', endpoint=harness.refused)
        if outcome.hung or outcome.error is None:
            fix = 'raise the error of the operating system, without delay'
            harness.expect('create', outcome, fix)
            await harness.discard(outcome.value, harness.refused)
            raise RuleBroken('create returned a connection from an endpoint that refuses', fix)


@rule('create ends within its time-out when the server does not answer', requires=('create',))
async def timeout(harness: Harness) -> None:
    if harness.silent is UNSET:
        raise RuleSkipped('silent= was not given')
    limit = 2 * SILENT_TIMEOUT + MARGIN
    outcome = await harness.attempt('create', endpoint=harness.silent, timeout=SILENT_TIMEOUT, limit=limit)
    if outcome.error is None and not outcome.hung:
        await harness.discard(outcome.value, harness.silent)
        raise RuleSkipped('create succeeds: it needs no answer from silent=')
    if harness.frontend.name == 'asyncio':
        if outcome.hung or outcome.seconds > limit:
            raise RuleBroken(
                f'create was cancelled after {SILENT_TIMEOUT} s and had not ended '
                f'{outcome.seconds - SILENT_TIMEOUT:.1f} s later',
                'do not catch CancelledError, and do not await anything slow while it propagates',
            )
    elif outcome.hung:
        raise RuleBroken(
            f'create was given {SILENT_TIMEOUT} s and had not returned after {limit:g} s',
            'limit each phase, also the handshake and the authentication, to what is left of timeout',
        )
    elif not isinstance(outcome.error, TimeoutError):
        raise RuleBroken(f'create raised {outcome.error!r} when its time was over', 'raise the builtin TimeoutError')


@rule('a cancelled create or dispose leaves nothing open', requires=('create',), frontend='asyncio')
async def cancellation(harness: Harness) -> None:
    fix = 'do not catch CancelledError, and close what is open while it propagates'
    for number in range(1, CANCELLATIONS + 1):
        outcome = await harness.attempt('create', timeout=None, cancel_at=number)
        if outcome.hung:
            raise RuleBroken(f'create was cancelled at await number {number} and did not end', fix)
        if outcome.error is None:
            await harness.discard(outcome.value)
            break
    for number in range(1, CANCELLATIONS + 1):
        conn = await harness.create()
        outcome = await harness.attempt('dispose', conn, timeout=None, cancel_at=number)
        if outcome.hung:
            raise RuleBroken(f'dispose was cancelled at await number {number} and did not end', fix)
        if outcome.error is None:
            break


@rule('no hook blocks the event loop', frontend='asyncio')
async def event_loop(harness: Harness) -> None:
    if harness.frontend.blocking:
        raise RuleBroken('; '.join(harness.frontend.blocking.values()), 'await it, or use asyncio.to_thread(...)')


@rule(
    "a forked child can dispose of its parent's connection without sending anything to the server",
    requires=('create', 'check_healthy', 'dispose'),
    frontend='threading',
)
async def fork(harness: Harness) -> None:
    if not harness.fork or not hasattr(os, 'fork'):
        raise RuleSkipped('fork=True was not given' if hasattr(os, 'fork') else 'the platform has no fork()')
    async with harness.connection() as conn:
        status = _in_child(
            lambda: harness.frontend.manager.dispose(harness.endpoint, conn, harness.timeout),
            harness.timeout + CHILD_MARGIN,
        )
        if status != 0:
            raise RuleBroken(f'dispose failed in the child (status {status})', 'only close the descriptor there')
        fix = 'store os.getpid() in create; in another process only close the descriptor, without a closing message'
        if not await harness.is_alive(conn):
            raise RuleBroken("the parent's connection is dead after its disposal in the child", fix)
        await harness.exchange(conn, 'after its disposal in a child', fix)


@rule('the hooks fit their frontend, and accept the arguments that the pool passes')
async def signatures(harness: Harness) -> None:
    if harness.frontend.mismatches:
        kind = 'def' if harness.frontend.name == 'threading' else 'async def'
        raise RuleBroken(
            '; '.join(harness.frontend.mismatches.values()),
            f'copy the signatures from gcp.{harness.frontend.name}.BaseConnectionManager: {kind}',
        )


def _in_child(work: Callable[[], object], seconds: float) -> int | str:
    """Run a function in a forked child, and return the child's exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # 3.12 warns of fork() in a process with threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_INTERVAL)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 'it did not end'
