"""What a pool can be told about one endpoint, and about connecting again: `EndpointLimits` and `Retry`."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, Optional, TypeVar, Union

from gcp._core import describe
from gcp.checks import contradict, count, expiry, fraction, no_place_left, positive

__all__ = ['EndpointLimits', 'Retry']


EndpointT = TypeVar('EndpointT', bound=Hashable)


# Not in the class form: for annotations that are strings, that one imports `annotationlib` and `ast` on Python 3.15.
_Limits = NamedTuple(  # noqa: UP014
    '_Limits',
    [
        ('max_size', int | None),
        ('min_idle', int | None),
        ('idle_timeout', float | None),
        ('max_lifetime', float | None),
        ('max_waiting', int | None),
        ('weight', float | None),
        ('floor', int | None),
        ('reserve', int | None),
    ],
)


class EndpointLimits(_Limits):
    """The limits of one endpoint. What is ``None`` is the pool's. They are checked where the pool looks them up.

    :ivar max_size: connections, at most
    :ivar min_idle: idle connections that are kept for their whole life
    :ivar idle_timeout: seconds after which an idle connection beyond `min_idle` is disposed of; ``inf``: never
    :ivar max_lifetime: seconds after which any connection is disposed of; ``inf``: never
    :ivar max_waiting: acquires that may wait at a time; one more gets `TooManyWaitersError`
    :ivar weight: the endpoint's share of the places under the total cap, relative to that of the others
    :ivar floor: places under the total cap that the others leave to this endpoint while it has use for them
    :ivar reserve: places that are only for acquires with a priority above 0
    """

    __slots__ = ()

    def __new__(
        cls,
        max_size: int | None = None,
        min_idle: int | None = None,
        idle_timeout: float | None = None,
        max_lifetime: float | None = None,
        max_waiting: int | None = None,
        weight: float | None = None,
        floor: int | None = None,
        reserve: int | None = None,
    ) -> EndpointLimits:
        return super().__new__(cls, max_size, min_idle, idle_timeout, max_lifetime, max_waiting, weight, floor, reserve)


#: what the argument `limits` of a pool may be
Limits = Union[Mapping[EndpointT, EndpointLimits], Callable[[EndpointT], Optional[EndpointLimits]]]  # noqa: UP007, UP045


class Retry(NamedTuple('Retry', [('initial', float), ('maximum', float), ('factor', float), ('jitter', float)])):
    """How long to wait before a failed connect to an endpoint is tried again.

    :param initial: the first delay, seconds
    :param maximum: the longest delay, seconds
    :param factor: each delay is so many times the one before
    :param jitter: the largest part of a delay that is taken off at random, 0 to 1
    :raises TypeError: for an argument that is not a number
    :raises ValueError: for one that is out of range, or if `initial` is greater than `maximum`
    """

    __slots__ = ()

    def __new__(cls, initial: float = 0.1, maximum: float = 5.0, factor: float = 2.0, jitter: float = 0.2) -> Retry:
        first = positive('Retry.initial', initial)
        longest = positive('Retry.maximum', maximum)
        growth = positive('Retry.factor', factor, 'a number')
        if growth < 1:
            raise ValueError(f'Retry.factor must be at least 1, not {factor!r}')
        if first > longest:
            contradict('Retry.initial', first, 'Retry.maximum', longest)
        return super().__new__(cls, first, longest, growth, fraction('Retry.jitter', jitter))


# --- the limits of endpoints as the core asks for them ---

#: the limits of an endpoint in the order of `EndpointLimits`; negative: the pool's
Own = tuple[int, int, float, float, int, float, int, int]


class LimitsOf:
    """Returns the limits that an endpoint is given. The core calls it when an endpoint is registered.

    :param limits: the pool's argument. The entries of a mapping are checked and copied now
    :param given: the limits that the pool was given explicitly, by name
    :raises TypeError: for an argument or an entry of a wrong type
    :raises ValueError: for an entry that is out of range, or contradicts itself or the pool's limits
    """

    def __init__(self, limits: Any, given: Mapping[str, Any]) -> None:
        self._given = given
        self._function = None if isinstance(limits, Mapping) else limits
        if self._function is None:
            self._own = {
                endpoint: self._check(f'limits[{describe(endpoint)}]', entry) for endpoint, entry in limits.items()
            }
        elif not callable(limits):
            raise TypeError(
                f'limits must be a mapping from endpoints to gcp.EndpointLimits, a function of an endpoint, or None, '
                f'not {type(limits).__name__}: {limits!r}'
            )

    def __call__(self, endpoint: Any) -> Own | None:
        if self._function is None:
            return self._own.get(endpoint)
        return self._check(f'limits({describe(endpoint)})', self._function(endpoint))

    @property
    def largest(self) -> int:
        """The most connections that an entry of a mapping asks for; 0 where a function is asked."""
        return 0 if self._function else max((max(own[:2]) for own in self._own.values() if own), default=0)

    def _check(self, where: str, entry: Any) -> Own | None:
        """Check an entry, and return it as the core keeps it.

        :param where: where it is from, for the error
        """
        if entry is None:
            return None
        if not isinstance(entry, EndpointLimits):
            if hasattr(entry, 'cr_frame'):
                entry.close()  # a coroutine: it would warn that it was never awaited
            raise TypeError(f'{where} must be a gcp.EndpointLimits or None, not {type(entry).__name__}: {entry!r}')
        own = (
            own_count(f'{where}.max_size', entry.max_size, 1),
            own_count(f'{where}.min_idle', entry.min_idle, 0),
            own_expiry(f'{where}.idle_timeout', entry.idle_timeout),
            own_expiry(f'{where}.max_lifetime', entry.max_lifetime),
            own_count(f'{where}.max_waiting', entry.max_waiting, 0),
            -1.0 if entry.weight is None else positive(f'{where}.weight', entry.weight, 'a number'),
            own_count(f'{where}.floor', entry.floor, 0),
            own_count(f'{where}.reserve', entry.reserve, 0),
        )
        self._compare(where, own)
        return own

    def _compare(self, where: str, own: Own) -> None:
        """Compare limits with each other, and with those that the pool was given: what is not an endpoint's own and was
        not given adapts."""
        max_size, min_idle, idle_timeout, max_lifetime, _, _, floor, reserve = own
        bounds = {name: value for name, value in self._given.items() if value is not None}
        if max_size >= 0:
            bounds[f'{where}.max_size'] = max_size
            bounds.pop('max_size', None)
        if max_lifetime >= 0:
            bounds[f'{where}.max_lifetime'] = max_lifetime
            bounds.pop('max_lifetime', None)
        for name, value, upper in (
            ('max_size', max_size, ('total_max_size',)),
            ('min_idle', min_idle, (f'{where}.max_size', 'max_size', 'total_max_size')),
            ('floor', floor, (f'{where}.max_size', 'max_size', 'total_max_size')),
            (
                'idle_timeout',
                -1.0 if math.isinf(idle_timeout) else idle_timeout,
                (f'{where}.max_lifetime', 'max_lifetime'),
            ),
        ):
            for other in upper:
                if value > bounds.get(other, math.inf):
                    contradict(f'{where}.{name}', value, other, bounds[other])
        for other in (f'{where}.max_size', 'max_size', 'total_max_size'):
            if reserve > 0 and reserve >= bounds.get(other, math.inf):
                no_place_left(f'{where}.reserve', reserve, other, bounds[other])


def own_count(name: str, value: Any, least: int) -> int:
    """Check a number of an endpoint's own; -1: it is the pool's."""
    number = count(name, value, least)
    return -1 if number is None else number


def own_expiry(name: str, value: Any) -> float:
    """Check an expiry of an endpoint's own; -1: it is the pool's."""
    return -1.0 if value is None else expiry(name, value)
