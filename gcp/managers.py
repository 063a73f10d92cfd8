"""Connection managers: how a pool creates, checks and disposes of one kind of connection, sync and async.

The pool calls a hook outside any lock, and never two hooks of one connection at a time. If a hook raises, is cancelled
or runs out of time, the pool disposes of the connection, once, and does not hand it out again. A hook that a manager
does not override is never called and costs nothing; the pool looks up which hooks are overridden once, when it is
built. Times are in seconds."""

from __future__ import annotations

import abc
from collections.abc import Hashable
from typing import Generic, TypeVar

from gcp.exceptions import ErrorClass

__all__ = ['AsyncConnectionManager', 'ConnectionT', 'EndpointT', 'SyncConnectionManager']

EndpointT = TypeVar('EndpointT', bound=Hashable)
ConnectionT = TypeVar('ConnectionT')
# a manager of tuple[str | IPv4Address, int] can serve a pool of tuple[str, int]: it accepts more endpoints
_EndpointT_contra = TypeVar('_EndpointT_contra', bound=Hashable, contravariant=True)


class SyncConnectionManager(abc.ABC, Generic[_EndpointT_contra, ConnectionT]):
    """Base class of managers for the threading pool; `gcp.threading` exports it as ``BaseConnectionManager``."""

    @abc.abstractmethod
    def create(self, endpoint: _EndpointT_contra, timeout: float | None = None) -> ConnectionT:
        """Create a connection.

        :param endpoint: the endpoint to connect to
        :param timeout: how long the call may take, seconds; ``None``: no limit
        :raises TimeoutError: when it takes longer
        """

    @abc.abstractmethod
    def dispose(self, endpoint: _EndpointT_contra, conn: ConnectionT, timeout: float | None = None) -> None:
        """Close a connection. An error is counted and logged, and the connection counts as closed nevertheless.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :param timeout: how long the call may take, seconds; ``None``: no limit
        """

    def check_aliveness(self, endpoint: _EndpointT_contra, conn: ConnectionT, timeout: float | None = None) -> bool:
        """Check whether an idle connection can still be used. The pool calls it before each reuse.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :param timeout: how long the call may take, seconds; ``None``: no limit
        :return: ``False`` if it is dead: the pool disposes of it and tries another one
        """
        return True

    def on_acquire(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Prepare a connection before the pool hands it to a caller, new or reused.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        """

    def on_release(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Clean up a connection when it is released, before another caller can get it.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        """

    def on_connection_dead(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Take note of a connection that a check found dead, before it is disposed of. An error is counted and logged.

        :param endpoint: the endpoint of the connection
        :param conn: the dead connection
        """

    def clean_after_error(self, endpoint: _EndpointT_contra, conn: ConnectionT, error: BaseException) -> bool:
        """Say whether a connection may be used again after an error in the block of its holder. It only looks: it must
        neither send nor receive. An error that it raises is logged, and the connection discarded.

        The pool asks when an error leaves the block of `connection()`, or is given to `release()`. A cancellation and
        the closing of a generator count as errors, too.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :param error: the error
        :return: ``True``: the connection is released as ever; ``False``: it is disposed of, and `on_release` not called
        """
        return True

    def keepalive(self, endpoint: _EndpointT_contra, conn: ConnectionT, timeout: float | None = None) -> bool:
        """Keep an idle connection alive: exchange something with its server. The pool calls it in the background after
        `keepalive_interval`; without it, `check_aliveness`.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :param timeout: how long the call may take, seconds; ``None``: no limit
        :return: ``False`` if it is dead: the pool disposes of it
        """
        return True

    def classify(self, endpoint: _EndpointT_contra, error: BaseException) -> ErrorClass:
        """Say what an error means: of a failed create, or one that leaves the block of a connection's holder. It only
        looks. An error that it raises is logged, and the other one counts as transient.

        :param endpoint: the endpoint
        :param error: the error
        :return: for a create, whether it is worth another try (``TRANSIENT``) or not (``PERMANENT``); for a block, what
                 becomes of the connection; ``TRANSIENT``: `clean_after_error` decides
        """
        return ErrorClass.TRANSIENT


class AsyncConnectionManager(abc.ABC, Generic[_EndpointT_contra, ConnectionT]):
    """Base class of managers for the asyncio pool; `gcp.asyncio` exports it as ``BaseConnectionManager``.

    Hooks take no time-out: the pool cancels a hook that runs out of time."""

    @abc.abstractmethod
    async def create(self, endpoint: _EndpointT_contra) -> ConnectionT:
        """Create a connection.

        :param endpoint: the endpoint to connect to
        """

    @abc.abstractmethod
    async def dispose(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Close a connection. An error is counted and logged, and the connection counts as closed nevertheless.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        """

    async def check_aliveness(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> bool:
        """Check whether an idle connection can still be used. The pool calls it before each reuse.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :return: ``False`` if it is dead: the pool disposes of it and tries another one
        """
        return True

    async def on_acquire(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Prepare a connection before the pool hands it to a caller, new or reused.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        """

    async def on_release(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Clean up a connection when it is released, before another caller can get it.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        """

    async def on_connection_dead(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> None:
        """Take note of a connection that a check found dead, before it is disposed of. An error is counted and logged.

        :param endpoint: the endpoint of the connection
        :param conn: the dead connection
        """

    def clean_after_error(self, endpoint: _EndpointT_contra, conn: ConnectionT, error: BaseException) -> bool:
        """Say whether a connection may be used again after an error in the block of its holder. It only looks: it must
        neither send nor receive. An error that it raises is logged, and the connection discarded.

        The pool asks when an error leaves the block of `connection()`, or is given to `release()`. A cancellation and
        the closing of a generator count as errors, too.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :param error: the error
        :return: ``True``: the connection is released as ever; ``False``: it is disposed of, and `on_release` not called
        """
        return True

    async def keepalive(self, endpoint: _EndpointT_contra, conn: ConnectionT) -> bool:
        """Keep an idle connection alive: exchange something with its server. The pool calls it in the background after
        `keepalive_interval`; without it, `check_aliveness`.

        :param endpoint: the endpoint of the connection
        :param conn: the connection
        :return: ``False`` if it is dead: the pool disposes of it
        """
        return True

    def classify(self, endpoint: _EndpointT_contra, error: BaseException) -> ErrorClass:
        """Say what an error means: of a failed create, or one that leaves the block of a connection's holder. It only
        looks. An error that it raises is logged, and the other one counts as transient.

        :param endpoint: the endpoint
        :param error: the error
        :return: for a create, whether it is worth another try (``TRANSIENT``) or not (``PERMANENT``); for a block, what
                 becomes of the connection; ``TRANSIENT``: `clean_after_error` decides
        """
        return ErrorClass.TRANSIENT
