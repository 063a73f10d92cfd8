"""The user's connect parameters by endpoint name, for the managers of PostgreSQL and Redis. Does no I/O.

Parameters hold passwords, so nothing here puts them, or a part of them, into an error or a repr."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from gcp.contrib._wire import run_in_thread, time_left, within
from gcp.exceptions import UnknownEndpointError

__all__ = ['Directory', 'Parameters', 'UnknownEndpointError', 'call_user', 'call_user_async']

Parameters = Mapping[str, Any]
ResultT = TypeVar('ResultT')
ParametersT = TypeVar('ParametersT')


def call_user(function: Callable[..., ResultT], *args: object, deadline: float = math.inf, what: str) -> ResultT:
    """Call a function of the user's within a time limit: in a thread, which is left to itself after the limit.

    :param function: the function
    :param args: its arguments
    :param deadline: when to give up, on the monotonic clock; without one, it is called in this thread
    :param what: what it returns, for the error
    :raises TimeoutError: when it takes longer
    """
    if deadline == math.inf:
        return function(*args)
    return within(time_left(deadline, what), functools.partial(function, *args), what=what)


async def call_user_async(function: Callable[..., Any], *args: object) -> Any:
    """Call a function of the user's, which may be async, and which a cancellation ends.

    A function that is not async is called in a thread of its own: it may block, which would stop the event loop, and
    then no time-out would end it.

    :param function: the function
    :param args: its arguments
    """
    if _is_async(function):
        return await function(*args)
    found = await asyncio.wrap_future(run_in_thread(functools.partial(function, *args)))
    return await found if inspect.isawaitable(found) else found


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


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

    def find(self, endpoint: str, deadline: float = math.inf) -> Parameters | ParametersT:
        """Return the parameters of an endpoint as the user gave them.

        :param endpoint: its name
        :param deadline: when a function must have returned them, on the monotonic clock
        :raises UnknownEndpointError: when the mapping does not have it
        :raises TimeoutError: when the function takes longer
        :raises TypeError: when it is not a string
        """
        self._check(endpoint)
        if not isinstance(self._source, Mapping):
            return call_user(self._source, endpoint, deadline=deadline, what='connect parameters')
        return self._look_up(self._source, endpoint)

    async def find_async(self, endpoint: str) -> Any:
        """Return the parameters of an endpoint as the user gave them, by a function that may be async.

        :param endpoint: its name
        :raises UnknownEndpointError: when the mapping does not have it
        :raises TypeError: when it is not a string
        """
        self._check(endpoint)
        if not isinstance(self._source, Mapping):
            return await call_user_async(self._source, endpoint)
        return self._look_up(self._source, endpoint)

    def _check(self, endpoint: object) -> None:
        if not isinstance(endpoint, str):
            raise TypeError(
                f'endpoint: the name of a database was expected, not an instance of {type(endpoint).__name__}'
            )

    def _look_up(self, source: Mapping[str, Any], endpoint: str) -> Parameters:
        try:
            parameters: Parameters = source[endpoint]
        except KeyError:
            raise UnknownEndpointError(endpoint, source) from None
        return parameters
