"""What a pool builds on. Each promise is one function, the same for both colours; it looks at one thing, and says what
it saw when that is not as promised."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gcp.testing.case import PAUSE, UNSET, Broken, Case, NotLookedAt

__all__ = ['PROMISES', 'Promise']

#: How often a healthy connection is checked.
CHECKS = 100

#: How often a connection is refused.
REFUSALS = 20

#: The time-out against an endpoint that never answers, seconds, and how late the error may be, beyond twice that.
PATIENCE = 0.2
MARGIN = 1.0

#: At how many awaits a hook is cancelled, at most.
CANCELLATIONS = 25

Look = Callable[[Case], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Promise:
    """A promise.

    :ivar name: its name
    :ivar words: what it says
    :ivar look: sees whether it is kept
    :ivar after: what it stands on: when one of those is broken, there is nothing to see
    :ivar colour: the only colour that it concerns, if so
    """

    name: str
    words: str
    look: Look
    after: tuple[str, ...]
    colour: str | None


PROMISES: list[Promise] = []


def promise(words: str, *, after: tuple[str, ...] = (), colour: str | None = None) -> Callable[[Look], Look]:
    """Enter a function as the promise of its own name."""

    def enter(look: Look) -> Look:
        PROMISES.append(Promise(look.__name__, words, look, after, colour))
        return look

    return enter


# --- the promises, in the order in which they are looked at ---


@promise('create makes connections, each its own')
async def create(case: Case) -> None:
    conns: list[Any] = []
    try:
        for _ in range(case.count):
            conn = await case.create()
            if conn is None:
                raise Broken('create returned None', 'return the connection')
            if any(conn is other for other in conns):
                raise Broken('create returned the same connection twice', 'make a new connection each time')
            conns.append(conn)
            await case.exchange(conn, 'on a new connection', 'return a connection that is ready for use')
    finally:
        for conn in conns:
            await case.discard(conn)


@promise(
    'check_aliveness finds a healthy connection alive, as often as it is asked, and does not disturb it',
    after=('create',),
)
async def alive(case: Case) -> None:
    if not case.colour.overrides('check_aliveness'):
        raise NotLookedAt('the manager has no check_aliveness')
    async with case.connection() as conn:
        await _stays_alive(case, conn, 'fresh')
        await case.exchange(conn, 'after the checks', 'leave what waits to be read, and the mode of a socket, as it is')
        await _stays_alive(case, conn, 'used')


async def _stays_alive(case: Case, conn: Any, kind: str) -> None:
    for number in range(1, CHECKS + 1):
        if not (answer := await case.is_alive(conn)):
            raise Broken(
                f'check number {number} of a {kind} connection returned {answer!r}',
                'return True for it; a function without a return statement returns None')


@promise('on_acquire and on_release succeed on a healthy connection, and leave it so', after=('create', 'alive'))
async def hooks(case: Case) -> None:
    names = [name for name in ('on_acquire', 'on_release') if case.colour.overrides(name)]
    if not names:
        raise NotLookedAt('the manager has no on_acquire and no on_release')
    async with case.connection() as conn:
        for _ in range(3):  # as a pool calls them: a check before each reuse
            for name in names:
                await case.hook(name, conn, mend='succeed on a healthy connection: an error costs it')
                if name == 'on_acquire':
                    await case.exchange(conn, 'after on_acquire', 'leave the connection usable in on_acquire')
            if not await case.is_alive(conn):
                raise Broken(f'the connection is dead after {" and ".join(names)}', 'leave the connection usable')


@promise('dispose closes a healthy connection', after=('create',))
async def dispose(case: Case) -> None:
    conn = await case.create()
    await case.hook('dispose', conn, mend='close the connection, within its time')


@promise('a pool can reuse its connections, and is empty once it is closed', after=('create', 'alive', 'hooks'))
async def pool(case: Case) -> None:
    async with _a_pool(case) as ask:
        first = await ask('acquire', case.endpoint)
        await case.exchange(first, 'on an acquired connection', 'have create and on_acquire leave it ready for use')
        await ask('release', first, case.endpoint)
        again = await ask('acquire', case.endpoint)
        if again is not first:
            raise Broken('a connection that came back was not used again', 'see what check_aliveness says of it')
        await case.exchange(again, 'on a reused connection', 'have on_release leave it ready for use')
        other = await ask('acquire', case.endpoint)
        if other is again:
            raise Broken('two callers got the same connection', 'make a new connection each time')
        await ask('release', again, case.endpoint)
        await ask('release', other, case.endpoint)


@promise('check_aliveness finds a connection dead whose peer has gone, and does not raise', after=('create', 'alive'))
async def death(case: Case) -> None:
    async with case.connection() as conn:
        await case.end(conn)
        if not case.colour.overrides('check_aliveness'):
            raise Broken(
                'the manager has no check_aliveness, so the pool hands out connections whose peer has gone',
                'look for EOF, errors and data nobody asked for, as SocketAlivenessCheckingMixin of gcp.contrib.socket')
        if not await case.sees_death(conn):
            raise Broken(
                f'check_aliveness still said that it is alive {case.timeout:g} s after kill()',
                'look at what the socket has to say: EOF and errors can be read; or ask the server')
        if await case.is_alive(conn):
            raise Broken('check_aliveness said dead, and then alive', 'once dead, a connection stays dead')
        if case.colour.overrides('on_connection_dead'):
            await case.hook('on_connection_dead', conn, mend='only take notice: its errors are logged')


@promise('dispose closes a connection whose peer has gone, without an error', after=('create',))
async def farewell(case: Case) -> None:
    mend = 'suppress the errors of a goodbye that nobody hears, and close the connection all the same, within its time'
    for checked in (False, True):
        conn = await case.create()
        try:
            await case.end(conn)
            if checked:
                with contextlib.suppress(Broken):  # told as 'death'
                    await case.sees_death(conn)
        except BaseException:
            await case.discard(conn)
            raise
        await case.hook('dispose', conn, mend=mend)


@promise('a pool replaces a connection whose peer has gone', after=('create', 'alive', 'hooks', 'death', 'farewell'))
async def replacement(case: Case) -> None:
    async with _a_pool(case) as ask:
        first = await ask('acquire', case.endpoint)
        await ask('release', first, case.endpoint)
        await case.end(first)
        if not await case.sees_death(first):
            raise NotLookedAt('its death is not seen')
        other = await ask('acquire', case.endpoint)
        if other is first:
            raise Broken('the pool handed out a dead connection', 'once dead, a connection stays dead')
        await case.exchange(other, 'on what replaced a dead connection', 'make a new connection each time')
        await ask('release', other, case.endpoint)


@contextlib.asynccontextmanager
async def _a_pool(case: Case) -> AsyncGenerator[Callable[..., Awaitable[Any]], None]:
    """A pool of the manager's, which is closed in the end; its methods are called by name."""
    colour = case.colour
    if colour.misfits or colour.blocks:
        raise NotLookedAt("not every hook can be called, see 'signatures' and 'loop'")
    try:
        made = colour.pool(max_size=2, acquire_timeout=case.timeout, dispose_timeout=case.timeout, name='check_manager')
    except TypeError as error:
        raise Broken(f'the pool refused it: {error}', f'derive from gcp.{colour.name}.BaseConnectionManager') from None

    async def ask(method: str, *arguments: Any) -> Any:
        outcome = await colour.call(getattr(made, method), *arguments, limit=2 * case.timeout)
        return case.expect(f"the pool's {method}", outcome, 'look at the hooks that it calls')

    try:
        yield ask
    finally:
        await colour.call(made.close, case.timeout, limit=2 * case.timeout)
    if made.get_size():
        raise Broken(f'{made.get_size()} connections are there after close()', 'end each hook within its time')


@promise('create raises when it is refused, and leaves nothing behind')
async def refusal(case: Case) -> None:
    if case.refused is UNSET:
        raise NotLookedAt('there is no refused=')
    for _ in range(REFUSALS):
        outcome = await case.attempt('create', endpoint=case.refused)
        if outcome.hung or outcome.error is None:
            case.expect('create', outcome, 'raise what the system answered, at once')
            await case.discard(outcome.value, case.refused)
            raise Broken('create returned a connection from an endpoint that refuses', 'raise what the system answered')


@promise('create ends in its time where nobody answers', after=('create',))
async def timeout(case: Case) -> None:
    if case.silent is UNSET:
        raise NotLookedAt('there is no silent=')
    limit = 2 * PATIENCE + MARGIN
    outcome = await case.attempt('create', endpoint=case.silent, timeout=PATIENCE, limit=limit)
    if outcome.error is None and not outcome.hung:
        await case.discard(outcome.value, case.silent)
        raise NotLookedAt('create succeeds: it needs no answer from silent=')
    if case.colour.name == 'asyncio':
        if outcome.hung or outcome.seconds > limit:
            raise Broken(
                f'create was cancelled after {PATIENCE} s and had not ended {outcome.seconds - PATIENCE:.1f} s later',
                'let CancelledError through, and await nothing on its way that may take long')
    elif outcome.hung:
        raise Broken(
            f'create was given {PATIENCE} s and had not returned after {limit:g} s',
            'bound each step, also the handshake and the authentication, by what is left of timeout')
    elif not isinstance(outcome.error, TimeoutError):
        raise Broken(f'create raised {outcome.error!r} when its time was over', 'raise TimeoutError, the builtin one')


@promise('a cancelled create or dispose leaves nothing behind', after=('create',), colour='asyncio')
async def cancellation(case: Case) -> None:
    mend = 'let CancelledError through, and close what is open on its way'
    for step in range(1, CANCELLATIONS + 1):
        outcome = await case.attempt('create', timeout=None, cancel_at=step)
        if outcome.hung:
            raise Broken(f'create was cancelled at await number {step} and did not end', mend)
        if outcome.error is None:
            await case.discard(outcome.value)
            break
    for step in range(1, CANCELLATIONS + 1):
        conn = await case.create()
        outcome = await case.attempt('dispose', conn, timeout=None, cancel_at=step)
        if outcome.hung:
            raise Broken(f'dispose was cancelled at await number {step} and did not end', mend)
        if outcome.error is None:
            break


@promise('no hook blocks the event loop', colour='asyncio')
async def loop(case: Case) -> None:
    if case.colour.blocks:
        raise Broken('; '.join(case.colour.blocks.values()), 'await it, or asyncio.to_thread(...)')


@promise(
    "a forked child can dispose of its parent's connection without a word to the server",
    after=('create', 'alive', 'dispose'), colour='threading',
)
async def fork(case: Case) -> None:
    if not case.fork or not hasattr(os, 'fork'):
        raise NotLookedAt('not asked for, with fork=True' if hasattr(os, 'fork') else 'there is no fork() here')
    async with case.connection() as conn:
        status = _in_a_child(lambda: case.colour.manager.dispose(case.endpoint, conn, case.timeout), case.timeout)
        if status != 0:
            raise Broken(f'dispose failed in the child (status {status})', 'only close the descriptor there')
        mend = 'remember os.getpid() in create; elsewhere only close the descriptor: no goodbye, no shutdown()'
        if not await case.is_alive(conn):
            raise Broken("the parent's connection is dead after its disposal in the child", mend)
        await case.exchange(conn, 'after its disposal in a child', mend)


@promise('its hooks are of its colour, and take what the pool gives them')
async def signatures(case: Case) -> None:
    if case.colour.misfits:
        kind = 'def' if case.colour.name == 'threading' else 'async def'
        raise Broken(
            '; '.join(case.colour.misfits.values()),
            f'copy the signatures from gcp.{case.colour.name}.BaseConnectionManager: {kind}')


def _in_a_child(work: Callable[[], object], seconds: float) -> int | str:
    """Do something in a forked child; tell its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # 3.12: there may be other threads
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
        time.sleep(PAUSE)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return 'it did not end'
