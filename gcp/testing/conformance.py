"""Whether a manager keeps the promises that a pool builds on: `check_manager`, for any manager, in any test suite.

All promises (`gcp.testing.promises`) are looked at, whatever becomes of the others, and after each of them descriptors
and threads are counted."""

from __future__ import annotations

import contextlib
import inspect
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, overload

from gcp._core import check_timeout, describe
from gcp.managers import AsyncConnectionManager, ConnectionT, EndpointT, SyncConnectionManager
from gcp.testing.case import PAUSE, UNSET, Broken, Case, Kill, NotLookedAt, Use
from gcp.testing.census import Census
from gcp.testing.colours import colour_of
from gcp.testing.promises import PROMISES, Promise
from gcp.testing.report import Breach, Check, ManagerCheckError, ManagerReport, Skipped

__all__ = ['check_manager']


@overload
def check_manager(
        manager: SyncConnectionManager[EndpointT, ConnectionT], endpoint: EndpointT, *, kill: Kill | None = None,
        use: Use | None = None, silent: EndpointT = ..., refused: EndpointT = ..., timeout: float = 5.0, count: int = 3,
        fork: bool = False,
) -> ManagerReport: ...


@overload
def check_manager(
        manager: AsyncConnectionManager[EndpointT, ConnectionT], endpoint: EndpointT, *, kill: Kill | None = None,
        use: Use | None = None, silent: EndpointT = ..., refused: EndpointT = ..., timeout: float = 5.0, count: int = 3,
        fork: bool = False,
) -> Coroutine[Any, Any, ManagerReport]: ...


def check_manager(
        manager: Any,
        endpoint: Any,
        *,
        kill: Kill | None = None,
        use: Use | None = None,
        silent: Any = UNSET,
        refused: Any = UNSET,
        timeout: float = 5.0,
        count: int = 3,
        fork: bool = False,
) -> ManagerReport | Coroutine[Any, Any, ManagerReport]:
    """Look at whether a manager keeps the promises that a pool builds on, against a real server.

    For an asyncio manager, await it; it runs in the event loop of its caller. Nobody else in the process may open
    descriptors or start threads meanwhile, but for a server that accepts.

    :param manager: the manager; an instance
    :param endpoint: one that it can connect to
    :param kill: ends the server's side of a connection, plain or async: ``kill(endpoint, conn)``, ``kill(conn)`` or
        ``kill()``, which ends all; without it, nobody sees how the manager takes a death
    :param use: asks the server something over a connection and raises when the answer is wrong, plain or async, called
        as `kill` is
    :param silent: an endpoint that lets a caller connect, or not even that, and never answers
    :param refused: an endpoint that refuses (a port where nobody listens)
    :param timeout: how long any step may take, seconds
    :param count: how many connections to open at the same time
    :param fork: look at what a forked child does to its parent's connections; not for asyncio
    :return: what was looked at
    :raises ManagerCheckError: when promises are broken: which, what was seen, and how to mend it
    :raises TypeError: when `manager` is none, or `kill` or `use` cannot be called
    :raises ValueError: when `timeout` or `count` is not positive
    """
    colour = colour_of(manager)
    seconds = check_timeout(timeout)
    if not 0 < seconds < math.inf:
        raise ValueError(f'timeout must be a positive number of seconds, not {timeout!r}')
    if count < 1:
        raise ValueError(f'count must be at least 1, not {count!r}')
    case = Case(
        colour, endpoint, _called_with(kill, 'kill'), _called_with(use, 'use'), silent, refused, seconds, count, fork)
    return colour.run(Inspection(case).report())  # type: ignore[no-any-return]


class Inspection:
    """Looks at all promises, one by one, and counts what each of them leaves behind."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._checks: list[Check] = []
        self._skipped: list[Skipped] = []
        self._breaches: list[Breach] = []
        self._settling = case.timeout

    async def report(self) -> ManagerReport:
        started = time.monotonic()
        await self._warm_up()
        for entry in PROMISES:
            if entry.colour in (None, self._case.colour.name):
                await self._look_at(entry)
        self._sum_up(started)
        report = ManagerReport(
            type(self._case.colour.manager).__name__, describe(self._case.endpoint), tuple(self._checks),
            tuple(self._skipped), time.monotonic() - started)
        if self._breaches:
            raise ManagerCheckError(self._breaches, report)
        return report

    async def _warm_up(self) -> None:
        """What comes with the first connection of a process, and serves all others too (a thread, a resolver's socket),
        is no leak."""
        case = self._case
        with contextlib.suppress(Broken, NotLookedAt):
            async with case.connection() as conn:
                for name in ('on_acquire', 'on_release', 'check_aliveness'):
                    if case.colour.overrides(name):
                        await case.attempt(name, conn)

    async def _look_at(self, entry: Promise) -> None:
        before, started = Census.take(), time.monotonic()
        broken_before = {breach.name for breach in self._breaches}.intersection(entry.after)
        try:
            if broken_before:
                raise NotLookedAt(f'stands on what is broken: {", ".join(sorted(broken_before))}')
            await entry.look(self._case)
        except Broken as broken:
            self._breaches.append(Breach(entry.name, entry.words, broken.observed, broken.mend))
        except NotLookedAt as reason:
            self._skipped.append(Skipped(entry.name, str(reason)))
        else:
            self._checks.append(Check(entry.name, entry.words, time.monotonic() - started))
        await self._count(before, entry)

    async def _count(self, before: Census, entry: Promise) -> None:
        """Wait until all is as before. The second leak is not waited for that long."""
        deadline = time.monotonic() + self._settling
        while True:
            now = Census.take()
            descriptors, threads = before.new_descriptors(now), before.new_threads(now)
            if not descriptors and not threads:
                return
            if time.monotonic() > deadline:
                break
            await self._case.colour.pause(PAUSE)
        self._settling = 0.1
        for kind, left, mend in (
            (DESCRIPTORS, descriptors, 'close what is open on every way out, errors and cancellation included'),
            (THREADS, threads, 'end in dispose what create has started (and in a server of this process, too)'),
        ):
            if left:
                observed = f'{len(left)} more after the look at {entry.name!r}: {", ".join(left)}'
                self._breaches.append(Breach(kind.name, kind.words, observed, mend))

    def _sum_up(self, started: float) -> None:
        """What was counted after each look counts once."""
        broken = {breach.name for breach in self._breaches}
        for kind in (DESCRIPTORS, THREADS):
            if kind is DESCRIPTORS and Census.take().descriptors is None:
                self._skipped.append(Skipped(kind.name, 'they cannot be counted here'))
            elif kind.name not in broken:
                self._checks.append(Check(kind.name, kind.words, time.monotonic() - started))
        once = {breach.name: breach for breach in reversed(self._breaches)}
        self._breaches = [breach for breach in self._breaches if once[breach.name] is breach]


async def _nothing(case: Case) -> None:
    pass


DESCRIPTORS = Promise('descriptors', 'no descriptor is left open', _nothing, (), None)
THREADS = Promise('threads', 'no thread is left behind', _nothing, (), None)


def _called_with(function: Any, name: str) -> Callable[[Any, Any], object] | None:
    """Make a user's function one of an endpoint and a connection, whichever of them it takes."""
    if function is None:
        return None
    if not callable(function):
        raise TypeError(f'{name}: a function was expected, not {type(function).__name__}')
    wanted = _wanted_by(function)
    if wanted > 2:
        raise TypeError(f'{name}: a function of (endpoint, conn), of (conn) or of nothing was expected')
    return lambda endpoint, conn: function(*(endpoint, conn)[2 - wanted:])


def _wanted_by(function: Callable[..., object]) -> int:
    """How many positional arguments a function must be given, of the two that there are."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a C function, that does not tell
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)
