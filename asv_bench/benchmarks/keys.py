"""The idle hit by kind of endpoint: the object that the pool knows, or one that is equal. Times are for a thousand."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from . import bodies


class Address:
    """A key with `__eq__` and `__hash__` in Python: each look-up calls them."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def __hash__(self) -> int:
        return hash((self.host, self.port))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Address) and (self.host, self.port) == (other.host, other.port)


# each call makes another object, equal to the others
MAKE: dict[str, Callable[[], Hashable]] = {
    'str': lambda: ':'.join(('db-1.internal', '5432')),
    'tuple': lambda: ('db-1.internal', int('5432')),
    'int': lambda: int('167772161'),
    'custom': lambda: Address('db-1.internal', 5432),
}


def thousand(kind: str, objects: str) -> list[Hashable]:
    """Make keys that are all equal: the same object, or different ones."""
    return [MAKE[kind]()] * bodies.TIMES if objects == 'same' else [MAKE[kind]() for _ in range(bodies.TIMES)]


class Threads(bodies.OnThreads):
    params = [list(MAKE), ['same', 'equal']]
    param_names = ['key', 'object']

    def setup(self, kind: str, objects: str) -> None:
        self.open(thousand(kind, objects))

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()


class Tasks(bodies.OnTasks):
    params = [list(MAKE), ['same', 'equal']]
    param_names = ['key', 'object']

    def setup(self, kind: str, objects: str) -> None:
        self.open(thousand(kind, objects))

    def time_acquire_release(self, *params: Any) -> None:
        self.acquire_release()
