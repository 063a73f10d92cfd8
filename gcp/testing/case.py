"""A manager on trial: its hooks called one by one, and judged. Knows no promise."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from gcp.testing.colours import Blocked, Colour, Misfit, Outcome

__all__ = ['PAUSE', 'UNSET', 'Broken', 'Case', 'Kill', 'NotLookedAt', 'Use']

#: How long a pause is between two looks, seconds.
PAUSE = 0.002

#: How long a server in a thread may take to accept, seconds.
MOMENT = 0.05

UNSET: Any = type('Unset', (), {'__repr__': lambda self: '...'})()

#: Ends the server's side of a connection. Takes the endpoint and the connection, or the connection, or nothing.
Kill = Callable[..., object]

#: Asks the server something over a connection, and raises when the answer is wrong. Takes the same.
Use = Callable[..., object]


class Broken(Exception):
    """A promise is not kept."""

    def __init__(self, observed: str, mend: str) -> None:
        super().__init__(observed)
        self.observed = observed
        self.mend = mend


class NotLookedAt(Exception):
    """A promise cannot be looked at; the message says why."""


@dataclass(eq=False)
class Case:
    """A manager on trial, and what `check_manager` was given; the user's functions take endpoint and connection."""

    colour: Colour
    endpoint: Any
    kill: Kill | None
    use: Use | None
    silent: Any
    refused: Any
    timeout: float
    count: int
    fork: bool

    async def attempt(self, name: str, *conn: Any, endpoint: Any = UNSET, **how: Any) -> Outcome:
        """Call a hook, however it ends.

        :param endpoint: another endpoint
        :param how: as `Colour.hook` takes it
        :raises NotLookedAt: when it cannot be judged for what else is told of it
        """
        if name == 'create' and 'dispose' in {**self.colour.misfits, **self.colour.blocks}:
            raise NotLookedAt("dispose cannot be called, see 'signatures' and 'loop'")
        outcome = await self._call(name, *conn, endpoint=endpoint, **how)
        if isinstance(outcome.error, Misfit):
            raise NotLookedAt(f"{name} cannot be called, see 'signatures'")
        if isinstance(outcome.error, Blocked):
            raise NotLookedAt(f"{name} blocks the event loop, see 'loop'")
        return outcome

    async def _call(self, name: str, *conn: Any, endpoint: Any = UNSET, **how: Any) -> Outcome:
        how = {'timeout': self.timeout, 'limit': 2 * self.timeout, **how}
        return await self.colour.hook(name, self.endpoint if endpoint is UNSET else endpoint, *conn, **how)

    async def hook(self, name: str, *conn: Any, mend: str) -> Any:
        """Call a hook that is to succeed.

        :param mend: what to do about it when it does not
        """
        return self.expect(name, await self.attempt(name, *conn), mend)

    def expect(self, what: str, outcome: Outcome, mend: str) -> Any:
        """Return a call's result.

        :raises Broken: when it has none
        """
        if outcome.hung:
            raise Broken(f'{what} had not returned after {outcome.seconds:.1f} s', mend)
        if outcome.error is not None:
            raise Broken(f'{what} raised {outcome.error!r} at {outcome.place}', mend)
        return outcome.value

    async def create(self) -> Any:
        """Create a connection."""
        return await self.hook('create', mend='connect to the endpoint, and return the connection')

    async def discard(self, conn: Any, endpoint: Any = UNSET) -> None:
        """Dispose of a connection, if that is possible: whether it is, is a promise of its own."""
        await self._call('dispose', conn, endpoint=endpoint)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Any, None]:
        """A connection that is disposed of in the end, whatever comes of it."""
        conn = await self.create()
        try:
            yield conn
        finally:
            await self.discard(conn)

    async def is_alive(self, conn: Any) -> Any:
        if not self.colour.overrides('check_aliveness'):
            return True
        return await self.hook(
            'check_aliveness', conn, mend='return True or False for any connection, whatever became of it, and at once')

    async def exchange(self, conn: Any, when: str, mend: str) -> None:
        """Have the user's `use` see that a connection works, where there is one."""
        if self.use is not None:
            outcome = await self.colour.call(self.use, self.endpoint, conn, limit=self.timeout)
            self.expect(f'use(), {when},', outcome, mend)

    async def end(self, conn: Any) -> None:
        """Have the user's `kill` end the server's side of a connection."""
        if self.kill is None:
            raise NotLookedAt('there is no kill=')
        await self._be_known(conn)
        outcome = await self.colour.call(self.kill, self.endpoint, conn, limit=self.timeout)
        self.expect('kill()', outcome, "this is your own function: it must end the server's side of the connection")

    async def _be_known(self, conn: Any) -> None:
        """Wait until the server has accepted a connection: has answered, or, if nothing can be asked, had a moment."""
        if self.use is None:
            await self.colour.pause(MOMENT)
        await self.exchange(conn, 'before kill()', 'return a connection that is ready for use')

    async def sees_death(self, conn: Any) -> bool:
        """Check until a connection is found dead, or for as long as a step may take."""
        deadline = time.monotonic() + self.timeout
        if not self.colour.overrides('check_aliveness'):
            return False
        while (alive := await self.is_alive(conn)) and time.monotonic() < deadline:
            await self.colour.pause(PAUSE)
        return not alive
