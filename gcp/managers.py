"""Connection managers: what the pool asks of a kind of connection. The sync and the async one, side by side.

The pool calls a hook outside any lock, never two hooks of one connection at a time. A hook that raises (or is
cancelled, or runs out of time) costs its connection: the pool disposes of it, once, and does not hand it out again.
Hooks that a manager does not override are never called and cost nothing; which ones it overrides is looked up once,
when a pool is built. Times are in seconds."""

from __future__ import annotations

import abc
from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ['AsyncConnectionManager', 'ConnectionT', 'EndpointT', 'SyncConnectionManager']

EndpointT = TypeVar('EndpointT', bound=Hashable)
ConnectionT = TypeVar('ConnectionT')


class SyncConnectionManager(abc.ABC, Generic[EndpointT, ConnectionT]):
    """How the threading pool creates, disposes of and checks connections (there: ``BaseConnectionManager``)."""

    @abc.abstractmethod
    def create(self, endpoint: EndpointT, timeout: float | None = None) -> ConnectionT:
        """Create a connection.

        :param endpoint: what to connect to
        :param timeout: how long it may take; ``None``: no limit
        :raises TimeoutError: when it took longer
        """

    @abc.abstractmethod
    def dispose(self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None) -> None:
        """Close a connection for good. An error is counted and logged; the connection is gone all the same.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long it may take; ``None``: no limit
        """

    def check_aliveness(self, endpoint: EndpointT, conn: ConnectionT, timeout: float | None = None) -> bool:
        """Tell whether an idle connection can still be used. Called before each reuse.

        :param endpoint: what it is connected to
        :param conn: the connection
        :param timeout: how long it may take; ``None``: no limit
        :return: ``False`` when it is dead: the pool disposes of it and goes on to the next
        """
        return True

    def on_acquire(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called before a connection is handed to its caller, new or reused.

        :param endpoint: what it is connected to
        :param conn: the connection
        """

    def on_release(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called when a connection comes back, before anybody else can get it.

        :param endpoint: what it is connected to
        :param conn: the connection
        """

    def on_connection_dead(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Told that a check found a connection dead, before it is disposed of. An error is counted and logged.

        :param endpoint: what it was connected to
        :param conn: the dead connection
        """


class AsyncConnectionManager(abc.ABC, Generic[EndpointT, ConnectionT]):
    """How the asyncio pool creates, disposes of and checks connections (there: ``BaseConnectionManager``).

    No hook takes a time-out: the pool cancels one that runs out of time."""

    @abc.abstractmethod
    async def create(self, endpoint: EndpointT) -> ConnectionT:
        """Create a connection.

        :param endpoint: what to connect to
        """

    @abc.abstractmethod
    async def dispose(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Close a connection for good. An error is counted and logged; the connection is gone all the same.

        :param endpoint: what it is connected to
        :param conn: the connection
        """

    async def check_aliveness(self, endpoint: EndpointT, conn: ConnectionT) -> bool:
        """Tell whether an idle connection can still be used. Called before each reuse.

        :param endpoint: what it is connected to
        :param conn: the connection
        :return: ``False`` when it is dead: the pool disposes of it and goes on to the next
        """
        return True

    async def on_acquire(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called before a connection is handed to its caller, new or reused.

        :param endpoint: what it is connected to
        :param conn: the connection
        """

    async def on_release(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Called when a connection comes back, before anybody else can get it.

        :param endpoint: what it is connected to
        :param conn: the connection
        """

    async def on_connection_dead(self, endpoint: EndpointT, conn: ConnectionT) -> None:
        """Told that a check found a connection dead, before it is disposed of. An error is counted and logged.

        :param endpoint: what it was connected to
        :param conn: the dead connection
        """
