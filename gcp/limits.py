"""What a pool can be told about one endpoint, and about connecting again: `EndpointLimits` and `Retry`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, Optional, TypeVar, Union

from gcp.checks import contradict, fraction, positive

__all__ = ['EndpointLimits', 'Retry']


EndpointT = TypeVar('EndpointT', bound=Hashable)


class EndpointLimits(NamedTuple):
    """The limits of one endpoint. What is ``None`` is the pool's. They are checked where the pool looks them up.

    :ivar max_size: connections, at most
    :ivar min_idle: idle connections that are kept for their whole life
    :ivar idle_timeout: seconds after which an idle connection beyond `min_idle` is disposed of; ``inf``: never
    :ivar max_lifetime: seconds after which any connection is disposed of; ``inf``: never
    :ivar max_waiting: acquires that may wait at a time; one more gets `TooManyWaitersError`
    :ivar weight: the endpoint's share of the places under the total cap, relative to that of the others
    :ivar floor: places under the total cap that the others leave to this endpoint while it has use for them
    """

    max_size: int | None = None
    min_idle: int | None = None
    idle_timeout: float | None = None
    max_lifetime: float | None = None
    max_waiting: int | None = None
    weight: float | None = None
    floor: int | None = None


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
