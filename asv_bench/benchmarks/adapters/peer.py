"""One of the pools: how it is opened, what its user writes, and loops made of exactly that code.

The loops are made from text, as timeit makes them: an adapter with methods would add a call to each step, and that
call would add most to the fastest."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .. import turns

PAIR = """
{a}def run(pool, number):
    start = clock()
    for _ in range(number):
        conn = {take}
        {give}
    return clock() - start
"""

CONTEXT = """
{a}def run(pool, number):
    start = clock()
    for _ in range(number):
        {a}with {context}:
            pass
    return clock() - start
"""

WORKER = """
def worker(pool):
    {a}def take():
        return {take}

    {a}def give(conn):
        {give}

    return take, give
"""


@dataclass(frozen=True)
class Peer:
    """A pool, or something used as one.

    :ivar name: what the table calls it
    :ivar open: context manager that opens a pool of a given size; for asyncio an asynchronous one
    :ivar take: what a user writes to acquire a connection of `pool`
    :ivar give: what a user writes to release `conn`
    :ivar context: what a user writes after ``with``; empty where there is no such thing
    :ivar packages: the distributions that it needs
    :ivar note: how it was set up, where that is not by default
    """

    name: str
    open: Callable[[int], Any]
    take: str
    give: str
    context: str = ''
    packages: tuple[str, ...] = ()
    note: str = ''

    @property
    def is_async(self) -> bool:
        return 'await ' in self.take

    @property
    def version(self) -> str:
        """The version of its distribution, as shown in the table; empty for the standard library."""
        return importlib.metadata.version(self.packages[0]) if self.packages and not self.missing else ''

    @property
    def missing(self) -> str:
        """Why it cannot be measured here; empty where it can."""
        absent = [package for package in self.packages if not is_installed(package)]
        return f'not installed: {", ".join(absent)}' if absent else ''

    def pair(self, pool: Any) -> Callable[[int], Any]:
        """Make a loop that acquires and releases: a `turns.Contender`, or for asyncio a `turns.AsyncContender`."""
        return functools.partial(self._compile(PAIR)['run'], pool)

    def with_(self, pool: Any) -> Callable[[int], Any]:
        """Make a loop of `with`, as `pair`."""
        if not self.context:
            raise ValueError(f'{self.name} has no context manager')
        return functools.partial(self._compile(CONTEXT)['run'], pool)

    def worker(self, pool: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        """Make the functions that acquire and release, for `loads`."""
        take, give = self._compile(WORKER)['worker'](pool)
        return take, give

    def _compile(self, template: str) -> dict[str, Any]:
        source = template.format(
            a='async ' if self.is_async else '', take=self.take, give=self.give, context=self.context
        )
        names: dict[str, Any] = {'clock': turns.clock}
        exec(compile(source, f'<{self.name}>', 'exec'), names)
        return names


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
