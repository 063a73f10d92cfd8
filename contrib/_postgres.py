"""What the PostgreSQL managers share: endpoint names and their connect parameters. Knows no driver.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ['NEWS', 'Births', 'DbEndpoint', 'Directory', 'Parameters', 'UnknownEndpointError', 'asks_server']

DbEndpoint = str
Parameters = Mapping[str, Any]
ConnectionT = TypeVar('ConnectionT')
FoundT = TypeVar('FoundT')

NAMES_SHOWN = 50

#: What a server may say to a connection that asked nothing, by its first byte: NoticeResponse, NotificationResponse,
#: ParameterStatus. See "Message Formats" in the PostgreSQL documentation.
NEWS = frozenset([b'N', b'A', b'S'])


class UnknownEndpointError(KeyError):
    """No connect parameters are known for an endpoint.

    :ivar endpoint: what was asked for
    :ivar known: the names that are known
    """

    def __init__(self, endpoint: object, known: Iterable[DbEndpoint]) -> None:
        self.endpoint = endpoint
        self.known = tuple(known)
        super().__init__(endpoint, self.known)

    def __str__(self) -> str:
        shown = ', '.join(map(repr, self.known[:NAMES_SHOWN])) or 'none'
        more = len(self.known) - NAMES_SHOWN
        return f'unknown endpoint {self.endpoint!r}; known: {shown}' + (f' and {more} more' if more > 0 else '')


class Directory(Generic[FoundT]):
    """The user's connect parameters by endpoint: a mapping, or a function that is asked anew for each connection.

    :param dsn_params: the one or the other
    :raises TypeError: when it is neither
    """

    def __init__(self, dsn_params: Mapping[DbEndpoint, Parameters] | Callable[[DbEndpoint], FoundT]) -> None:
        if not isinstance(dsn_params, Mapping) and not callable(dsn_params):
            raise TypeError(
                'dsn_params: a mapping of endpoint names to connect parameters, or a function from a name to its '
                f'parameters was expected, not an instance of {type(dsn_params).__name__}',
            )
        self._dsn_params = dsn_params
        if isinstance(dsn_params, Mapping):
            for endpoint, parameters in dsn_params.items():
                self.check(endpoint, parameters)

    def __str__(self) -> str:
        return ', '.join(map(str, self._dsn_params)) if isinstance(self._dsn_params, Mapping) else 'named by a function'

    def find(self, endpoint: DbEndpoint) -> Parameters | FoundT:
        """Return what the user has for an endpoint, as it is.

        :param endpoint: the endpoint
        :raises UnknownEndpointError: when the mapping has nothing
        """
        if not isinstance(self._dsn_params, Mapping):
            return self._dsn_params(endpoint)
        try:
            return self._dsn_params[endpoint]
        except KeyError:
            raise UnknownEndpointError(endpoint, self._dsn_params) from None

    @staticmethod
    def check(endpoint: DbEndpoint, parameters: object) -> Parameters:
        """Return an endpoint's parameters after a check that they are a mapping.

        :param endpoint: the endpoint
        :param parameters: what the user has for it
        :raises TypeError: when they are something else; tells their type, never their value
        """
        if not isinstance(parameters, Mapping):
            raise TypeError(
                f'dsn_params of endpoint {endpoint!r}: a mapping of connect parameters was expected, '
                f'not an instance of {type(parameters).__name__}',
            )
        return parameters


class Births(Generic[ConnectionT]):
    """In which process each connection was created.

    One that came through a fork is the parent's: a word said to it in the child, be it the goodbye, lands in the middle
    of the parent's conversation."""

    def __init__(self) -> None:
        self._births: weakref.WeakKeyDictionary[ConnectionT, int] = weakref.WeakKeyDictionary()

    def record(self, conn: ConnectionT) -> None:
        self._births[conn] = os.getpid()

    def was_here(self, conn: ConnectionT) -> bool:
        """Tell whether a connection was created in this process; one that is not known is taken to be."""
        here = os.getpid()
        return self._births.get(conn, here) == here


def asks_server(aliveness: object) -> bool:
    """Tell whether a check of aliveness is to cost a round trip.

    :param aliveness: ``'socket'``: no, look at the socket; ``'query'``: yes
    :raises ValueError: when it is neither
    """
    if aliveness not in ('socket', 'query'):
        raise ValueError(f"aliveness: 'socket' or 'query' was expected, not {aliveness!r}")
    return aliveness == 'query'
