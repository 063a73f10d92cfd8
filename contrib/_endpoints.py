"""The user's connect parameters by endpoint name, for the managers of PostgreSQL and Redis. Does no I/O.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

__all__ = ['Directory', 'Parameters', 'UnknownEndpointError']

Parameters = Mapping[str, Any]
ParametersT = TypeVar('ParametersT')

#: How many known names the error about an unknown one lists.
NAMES_SHOWN = 50


class UnknownEndpointError(KeyError):
    """There are no connect parameters for an endpoint.

    :ivar endpoint: the endpoint
    :ivar known: the names for which there are parameters
    """

    def __init__(self, endpoint: object, known: Iterable[str]) -> None:
        self.endpoint = endpoint
        self.known = tuple(known)
        super().__init__(endpoint, self.known)

    def __str__(self) -> str:
        shown = ', '.join(map(repr, self.known[:NAMES_SHOWN])) or 'none'
        more = len(self.known) - NAMES_SHOWN
        return f'unknown endpoint {self.endpoint!r}; known: {shown}' + (f' and {more} more' if more > 0 else '')


class Directory(Generic[ParametersT]):
    """Connect parameters by endpoint name: a mapping, or a function that is called for each new connection.

    :param source: the mapping or the function
    :param argument: what the manager calls it, for errors
    :raises TypeError: when it is neither
    """

    def __init__(self, source: Mapping[str, Any] | Callable[[str], ParametersT], argument: str) -> None:
        if not isinstance(source, Mapping) and not callable(source):
            raise TypeError(
                f'{argument}: a mapping of endpoint names to connect parameters, or a function from a name to its '
                f'parameters was expected, not an instance of {type(source).__name__}',
            )
        self._source = source

    def __str__(self) -> str:
        return ', '.join(map(str, self._source)) if isinstance(self._source, Mapping) else 'named by a function'

    def find(self, endpoint: str) -> Parameters | ParametersT:
        """Return the parameters of an endpoint as the user gave them.

        :param endpoint: its name
        :raises UnknownEndpointError: when the mapping does not have it
        :raises TypeError: when it is not a string
        """
        if not isinstance(endpoint, str):
            raise TypeError(
                f'endpoint: the name of a database was expected, not an instance of {type(endpoint).__name__}'
            )
        if not isinstance(self._source, Mapping):
            return self._source(endpoint)
        try:
            parameters: Parameters = self._source[endpoint]
        except KeyError:
            raise UnknownEndpointError(endpoint, self._source) from None
        return parameters
