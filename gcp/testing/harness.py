"""Call the hooks of a manager under test, and turn unexpected outcomes into broken rules. Knows no particular rule."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from gcp.testing.frontends import BlockingCall, Frontend, Outcome, SignatureMismatch

__all__ = ['POLL_INTERVAL', 'UNSET', 'Harness', 'Kill', 'RuleBroken', 'RuleSkipped', 'Use']

#: How long to pause between two polls of a condition, seconds.
POLL_INTERVAL = 0.002

#: How long to wait before `kill` when there is no `use` to confirm that the server has accepted, seconds.
ACCEPT_DELAY = 0.05

UNSET: Any = type('Unset', (), {'__repr__': lambda self: '...'})()

#: Ends the server's side of a connection. Takes the endpoint and the connection, or the connection, or nothing.
Kill = Callable[..., object]

#: Sends a request over a connection, and raises if the answer is wrong. Takes the same arguments.
Use = Callable[..., object]


class RuleBroken(Exception):
    """The manager breaks a rule.

    :param observed: what happened
    :param fix: what to change in the manager
    """

    def __init__(self, observed: str, fix: str) -> None:
        super().__init__(observed)
        self.observed = observed
        self.fix = fix


class RuleSkipped(Exception):
    """A rule cannot be checked. The message gives the reason."""


@dataclass(eq=False)
class Harness:
    """A manager under test with the arguments of `check_manager`; `kill` and `use` take endpoint and connection."""

    frontend: Frontend
    endpoint: Any
    kill: Kill | None
    use: Use | None
    silent: Any
    refused: Any
    timeout: float
    count: int
    fork: bool

    async def attempt(self, name: str, *conn: Any, endpoint: Any = UNSET, **options: Any) -> Outcome:
        """Call a hook and return its outcome, success or not.

        :param name: the hook's name
        :param conn: the connection, except for `create`
        :param endpoint: another endpoint than the harness's
        :param options: `timeout`, `limit` and `cancel_at` of `Frontend.hook`
        :raises RuleSkipped: when the hook cannot be called because of a rule that is reported separately
        """
        if name == 'create' and 'dispose' in {**self.frontend.mismatches, **self.frontend.blocking}:
            raise RuleSkipped("dispose cannot be called, see 'signatures' and 'event_loop'")
        outcome = await self._call(name, *conn, endpoint=endpoint, **options)
        if isinstance(outcome.error, SignatureMismatch):
            raise RuleSkipped(f"{name} cannot be called, see 'signatures'")
        if isinstance(outcome.error, BlockingCall):
            raise RuleSkipped(f"{name} blocks the event loop, see 'event_loop'")
        return outcome

    async def _call(self, name: str, *conn: Any, endpoint: Any = UNSET, **options: Any) -> Outcome:
        options = {'timeout': self.timeout, 'limit': 2 * self.timeout, **options}
        return await self.frontend.hook(name, self.endpoint if endpoint is UNSET else endpoint, *conn, **options)

    async def hook(self, name: str, *conn: Any, fix: str) -> Any:
        """Call a hook that has to succeed, and return its result.

        :param name: the hook's name
        :param conn: the connection, except for `create`
        :param fix: what to change in the manager if the call fails
        :raises RuleBroken: when the call fails
        """
        return self.expect(name, await self.attempt(name, *conn), fix)

    def expect(self, what: str, outcome: Outcome, fix: str) -> Any:
        """Return the result of a successful call.

        :raises RuleBroken: when the call raised or did not return
        """
        if outcome.hung:
            raise RuleBroken(f'{what} had not returned after {outcome.seconds:.1f} s', fix)
        if outcome.error is not None:
            raise RuleBroken(f'{what} raised {outcome.error!r} at {outcome.location}', fix)
        return outcome.value

    async def create(self) -> Any:
        """Create a connection."""
        return await self.hook('create', fix='connect to the endpoint, and return the connection')

    async def discard(self, conn: Any, endpoint: Any = UNSET) -> None:
        """Dispose of a connection and ignore errors, which the rules 'dispose' and 'dispose_dead' report."""
        await self._call('dispose', conn, endpoint=endpoint)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any, None]:
        """Create a connection, and dispose of it on exit."""
        conn = await self.create()
        try:
            yield conn
        finally:
            await self.discard(conn)

    async def is_alive(self, conn: Any) -> Any:
        """Return the result of `check_aliveness`; `True` if the manager does not override it."""
        if not self.frontend.overrides('check_aliveness'):
            return True
        return await self.hook(
            'check_aliveness', conn, fix='return True or False for any connection, in whatever state, without delay'
        )

    async def exchange(self, conn: Any, when: str, fix: str) -> None:
        """Call `use`, if it was given, to see that a connection works."""
        if self.use is not None:
            outcome = await self.frontend.call(self.use, self.endpoint, conn, limit=self.timeout)
            self.expect(f'use(), {when},', outcome, fix)

    async def kill_peer(self, conn: Any) -> None:
        """Call `kill` to end the server's side of a connection.

        :raises RuleSkipped: when `kill` was not given
        """
        if self.kill is None:
            raise RuleSkipped('kill= was not given')
        await self._wait_until_accepted(conn)
        outcome = await self.frontend.call(self.kill, self.endpoint, conn, limit=self.timeout)
        self.expect('kill()', outcome, "kill is your own function: it has to end the server's side of the connection")

    async def _wait_until_accepted(self, conn: Any) -> None:
        """Wait until the server has accepted a connection: until it answers, or for `ACCEPT_DELAY` without `use`."""
        if self.use is None:
            await self.frontend.pause(ACCEPT_DELAY)
        await self.exchange(conn, 'before kill()', 'return a connection that is ready for use')

    async def becomes_dead(self, conn: Any) -> bool:
        """Check a connection until it is found dead, for `timeout` seconds at most; tell whether it was."""
        deadline = time.monotonic() + self.timeout
        if not self.frontend.overrides('check_aliveness'):
            return False
        while (alive := await self.is_alive(conn)) and time.monotonic() < deadline:
            await self.frontend.pause(POLL_INTERVAL)
        return not alive
