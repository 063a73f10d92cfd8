"""`check_manager`: check that a connection manager follows the rules that a pool relies on, in any test framework.

Every rule of `gcp.testing.rules` is checked, even if others are broken. After each rule, the open descriptors and the
running threads are compared with those before it."""

from __future__ import annotations

import contextlib
import gc
import inspect
import math
import time
from collections.abc import Callable, Coroutine
from typing import Any, overload

from gcp._core import check_timeout, describe
from gcp.managers import AsyncConnectionManager, ConnectionT, EndpointT, SyncConnectionManager
from gcp.testing.frontends import frontend_of
from gcp.testing.harness import POLL_INTERVAL, UNSET, Harness, Kill, RuleBroken, RuleSkipped, Use
from gcp.testing.leak_check import OpenResources
from gcp.testing.report import BrokenRule, ManagerCheckError, ManagerReport, PassedRule, SkippedRule
from gcp.testing.rules import RULES, Rule

__all__ = ['check_manager']


@overload
def check_manager(
    manager: SyncConnectionManager[EndpointT, ConnectionT],
    endpoint: EndpointT,
    *,
    kill: Kill | None = None,
    use: Use | None = None,
    silent: EndpointT = ...,
    refused: EndpointT = ...,
    timeout: float = 5.0,
    count: int = 3,
    fork: bool = False,
) -> ManagerReport: ...


@overload
def check_manager(
    manager: AsyncConnectionManager[EndpointT, ConnectionT],
    endpoint: EndpointT,
    *,
    kill: Kill | None = None,
    use: Use | None = None,
    silent: EndpointT = ...,
    refused: EndpointT = ...,
    timeout: float = 5.0,
    count: int = 3,
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
    """Check that a manager follows the rules that a pool relies on, against a real server.

    Await it for an asyncio manager: it runs in the event loop of its caller. No other code in the process may open
    descriptors or start threads meanwhile, except a server that accepts connections.

    :param manager: the manager; an instance
    :param endpoint: an endpoint that it can connect to
    :param kill: ends the server's side of a connection, plain or async: ``kill(endpoint, conn)``, ``kill(conn)`` or
        ``kill()``, which ends all; without it, the rules about dead connections are skipped
    :param use: sends a request over a connection and raises if the answer is wrong, plain or async, called as `kill` is
    :param silent: an endpoint that never answers, whether or not it accepts connections
    :param refused: an endpoint that refuses connections (a port without a listener)
    :param timeout: how long one hook call may take, seconds
    :param count: how many connections to open at the same time
    :param fork: check what a forked child does to its parent's connections; not for asyncio
    :return: the rules that were checked
    :raises ManagerCheckError: when rules are broken: which ones, what was observed, and how to fix it
    :raises TypeError: when `manager` is not a manager, or `kill` or `use` cannot be called
    :raises ValueError: when `timeout` or `count` is not positive
    """
    frontend = frontend_of(manager)
    seconds = check_timeout(timeout)
    if not 0 < seconds < math.inf:
        raise ValueError(f'timeout must be a positive number of seconds, not {timeout!r}')
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f'count must be a whole number, not {type(count).__name__}: {count!r}')
    if count < 1:
        raise ValueError(f'count must be at least 1, not {count}')
    harness = Harness(
        frontend,
        endpoint,
        _two_arguments(kill, 'kill'),
        _two_arguments(use, 'use'),
        silent,
        refused,
        seconds,
        count,
        fork,
    )
    return frontend.run(RuleChecker(harness).report())  # type: ignore[no-any-return]


class RuleChecker:
    """Checks all rules one after another, and what each check leaves open."""

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._passed: list[PassedRule] = []
        self._skipped: list[SkippedRule] = []
        self._broken: list[BrokenRule] = []
        self._leak_patience = harness.timeout

    async def report(self) -> ManagerReport:
        """Check all rules.

        :raises ManagerCheckError: when at least one is broken
        """
        started = time.monotonic()
        gc.collect()  # a descriptor that garbage of an earlier test closes during a rule would hide a leak of the rule
        await self._warm_up()
        for rule in RULES:
            if rule.frontend in (None, self._harness.frontend.name):
                await self._check(rule)
        self._finish_leak_rules(started)
        report = ManagerReport(
            type(self._harness.frontend.manager).__name__,
            describe(self._harness.endpoint),
            tuple(self._passed),
            tuple(self._skipped),
            time.monotonic() - started,
        )
        if self._broken:
            raise ManagerCheckError(self._broken, report)
        return report

    async def _warm_up(self) -> None:
        """Use one connection first: what the first connection of a process opens for all others (a thread, the
        resolver's socket) is not a leak."""
        harness = self._harness
        with contextlib.suppress(RuleBroken, RuleSkipped):
            async with harness.connection() as conn:
                for name in ('on_acquire', 'on_release', 'check_aliveness'):
                    if harness.frontend.overrides(name):
                        await harness.attempt(name, conn)

    async def _check(self, rule: Rule) -> None:
        before, started = OpenResources.now(), time.monotonic()
        broken_before = {broken.name for broken in self._broken}.intersection(rule.requires)
        try:
            if broken_before:
                raise RuleSkipped(f'requires rules that are broken: {", ".join(sorted(broken_before))}')
            await rule.check(self._harness)
        except RuleBroken as broken:
            self._broken.append(BrokenRule(rule.name, rule.text, broken.observed, broken.fix))
        except RuleSkipped as reason:
            self._skipped.append(SkippedRule(rule.name, str(reason)))
        else:
            self._passed.append(PassedRule(rule.name, rule.text, time.monotonic() - started))
        await self._check_leaks(before, rule)

    async def _check_leaks(self, before: OpenResources, rule: Rule) -> None:
        """Wait until no more is open than before. After the first leak, later ones are waited for 0.1 s only."""
        deadline = time.monotonic() + self._leak_patience
        while True:
            now = OpenResources.now()
            descriptors, threads = before.new_descriptors(now), before.new_threads(now)
            if not descriptors and not threads:
                return
            if time.monotonic() > deadline:
                break
            await self._harness.frontend.pause(POLL_INTERVAL)
        self._leak_patience = 0.1
        for leak_rule, left, fix in (
            (DESCRIPTORS, descriptors, 'close what is open on every exit, also after an error or a cancellation'),
            (THREADS, threads, 'end in dispose what create has started (and in a server of this process, too)'),
        ):
            if left:
                observed = f'{len(left)} more after rule {rule.name!r}: {", ".join(left)}'
                self._broken.append(BrokenRule(leak_rule.name, leak_rule.text, observed, fix))

    def _finish_leak_rules(self, started: float) -> None:
        """Report each of the two leak rules once, though they are checked after every other rule."""
        broken = {broken.name for broken in self._broken}
        for rule in (DESCRIPTORS, THREADS):
            if rule is DESCRIPTORS and OpenResources.now().descriptors is None:
                self._skipped.append(SkippedRule(rule.name, 'this platform does not list open descriptors'))
            elif rule.name not in broken:
                self._passed.append(PassedRule(rule.name, rule.text, time.monotonic() - started))
        first = {broken.name: broken for broken in reversed(self._broken)}
        self._broken = [broken for broken in self._broken if first[broken.name] is broken]


async def _checked_elsewhere(harness: Harness) -> None:
    pass


DESCRIPTORS = Rule('descriptors', 'no descriptor is left open', _checked_elsewhere, (), None)
THREADS = Rule('threads', 'no thread is left running', _checked_elsewhere, (), None)


def _two_arguments(function: Any, name: str) -> Callable[[Any, Any], object] | None:
    """Wrap a test's function so that it can be called with endpoint and connection, whichever of them it takes."""
    if function is None:
        return None
    if not callable(function):
        raise TypeError(f'{name} must be a function, not {type(function).__name__}: {function!r}')
    wanted = _required_arguments(function)
    if wanted > 2:
        raise TypeError(f'{name} must be a function of (endpoint, conn), of (conn) or of no argument, not of {wanted}')
    return lambda endpoint, conn: function(*(endpoint, conn)[2 - wanted :])


def _required_arguments(function: Callable[..., object]) -> int:
    """Return how many positional arguments a function requires; 2 if it takes any number."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a C function without a signature
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in positional and parameter.default is parameter.empty for parameter in parameters)
