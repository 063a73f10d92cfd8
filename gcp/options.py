"""The options of a pool: their defaults, their checks, and how defaults adapt to the options that were given.

Only options that were given explicitly can contradict each other. A default adapts: with ``max_size=200`` alone, the
total cap is 200, too."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import Any, Final, NoReturn, TypeVar

from gcp.checks import (
    DEFAULT,
    contradict,
    count,
    expiry,
    flag,
    fraction,
    function,
    having,
    interval,
    limit,
    no_place_left,
    one_of,
    text,
    whole,
)
from gcp.limits import EndpointLimits, LimitsOf, Retry

__all__ = ['DEFAULT', 'NAMES', 'Options', 'check_manager', 'declared', 'hooks', 'resolve']

InitT = TypeVar('InitT', bound=Callable[..., None])


class DefaultInt(int):
    """A default. It is compared by identity, so an equal number that the caller gives counts as given."""


class DefaultFloat(float):
    """A default. It is compared by identity, so an equal number that the caller gives counts as given."""


class DefaultFlag(int):
    """A default that reads as a bool. It is compared by identity, too."""

    def __repr__(self) -> str:
        return repr(bool(self))


BACKGROUND_COLLECTOR: Final[Any] = DefaultFlag(False)
MIN_IDLE = DefaultInt(1)
MAX_SIZE = DefaultInt(10)
TOTAL_MAX_SIZE = DefaultInt(100)
IDLE_TIMEOUT = DefaultFloat(60.0)
MAX_LIFETIME = DefaultFloat(3600.0)
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType(
    {
        'background_collector': BACKGROUND_COLLECTOR,
        'min_idle': MIN_IDLE,
        'max_size': MAX_SIZE,
        'total_max_size': TOTAL_MAX_SIZE,
        'idle_timeout': IDLE_TIMEOUT,
        'max_lifetime': MAX_LIFETIME,
    }
)
ADMISSION = ('deadline',)
TRACING = ('off', 'lifecycle', 'all')

NAMES = (
    'acquire_timeout',
    'background_collector',
    'dispose_batch_size',
    'dispose_timeout',
    'min_idle',
    'max_size',
    'idle_timeout',
    'max_lifetime',
    'total_max_size',
    'lifetime_jitter',
    'name',
    'leak_threshold',
    'registry',
    'meter_provider',
    'tracer_provider',
    'tracing',
    'endpoint_labels',
    'endpoint_label',
    'max_uses',
    'keepalive_interval',
    'check_interval',
    'limits',
    'refill',
    'connect_workers',
    'connect_timeout',
    'max_connecting',
    'max_connecting_total',
    'connect_retry',
    'breaker_threshold',
    'max_waiting',
    'admission',
    'track_holders',
    'warn_after',
    'reclaim_abandoned',
    'reserve',
    'reserve_timeout',
)

#: what a pool keeps for its whole life
FIXED = (
    'background_collector',
    'name',
    'registry',
    'meter_provider',
    'tracer_provider',
    'tracing',
    'endpoint_labels',
    'endpoint_label',
    'track_holders',
    'warn_after',
    'reclaim_abandoned',
)


class Options:
    """Checked and resolved options. Times are in seconds: ``inf`` for never, ``None`` for no limit.

    An ordinary class, since `typing.NamedTuple` imports `annotationlib` and `ast` on Python 3.14 and newer.

    :ivar given: the options as they were given, or their defaults
    :ivar limits_of: returns the limits that an endpoint is given; ``None``: no endpoint has its own
    """

    acquire_timeout: float | None
    background_collector: bool
    dispose_batch_size: int
    dispose_timeout: float | None
    min_idle: int
    max_size: int
    idle_timeout: float
    max_lifetime: float
    total_max_size: int
    lifetime_jitter: float
    name: str | None
    leak_threshold: float
    registry: Any
    meter_provider: Any
    tracer_provider: Any
    tracing: str
    endpoint_labels: int
    endpoint_label: Callable[[Any], str] | None
    max_uses: int | None
    keepalive_interval: float
    check_interval: float
    limits: Mapping[Any, EndpointLimits] | Callable[[Any], EndpointLimits | None] | None
    refill: bool
    connect_workers: int
    connect_timeout: float | None
    max_connecting: int | None
    max_connecting_total: int | None
    connect_retry: Retry | None
    breaker_threshold: int | None
    max_waiting: int | None
    admission: str | None
    track_holders: bool
    warn_after: float
    reclaim_abandoned: bool
    reserve: int
    reserve_timeout: float
    given: Mapping[str, Any]
    limits_of: LimitsOf | None

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """Check options that are to be changed, together with those that stay.

        :raises TypeError: for an unknown argument, one that cannot change, or one of a wrong type
        :raises ValueError: for a value that is out of range, or two that contradict each other
        """
        for name in changes:
            if name in FIXED:
                raise TypeError(
                    f'{name} cannot be changed: a pool keeps the {name} that it was built with; what can be changed is '
                    f'{", ".join(known for known in NAMES if known not in FIXED)}'
                )
            if name not in NAMES:
                reject(name, 'reconfigure')
        return resolve({**self.given, **changes})


def declared(init: InitT) -> InitT:
    """Have the ``__init__`` of a pool get its defaults as objects that tell whether they were given, and an unknown
    argument answered with the nearest name. Its signature, which editors and `help` show, has the plain defaults."""

    @wraps(init)
    def checked(self: Any, connection_manager: Any, **given: Any) -> None:
        for name in given:
            if name not in NAMES:
                reject(name)
        init(self, connection_manager, **{**DEFAULTS, **given})

    return checked  # type: ignore[return-value]


def resolve(given: Mapping[str, Any]) -> Options:
    """Check the arguments of a pool's constructor.

    :param given: the options by name, given or default
    :raises TypeError: for one of a wrong type
    :raises ValueError: for a value that is out of range, or two that contradict each other
    """
    min_idle, max_size, total_max_size = resolve_sizes(given['min_idle'], given['max_size'], given['total_max_size'])
    reserve, max_size, total_max_size = resolve_reserve(given, max_size, total_max_size)
    idle_timeout, max_lifetime = resolve_times(given['idle_timeout'], given['max_lifetime'])
    max_connecting, max_connecting_total = resolve_connecting(given['max_connecting'], given['max_connecting_total'])
    limits_of = resolve_limits(given)
    if limits_of is not None and given['total_max_size'] is TOTAL_MAX_SIZE:
        total_max_size = max(total_max_size, limits_of.largest)
    return Options(
        acquire_timeout=limit('acquire_timeout', given['acquire_timeout']),
        background_collector=resolve_collector(given),
        dispose_batch_size=whole('dispose_batch_size', given['dispose_batch_size'], least=0),
        dispose_timeout=limit('dispose_timeout', given['dispose_timeout']),
        min_idle=min_idle,
        max_size=max_size,
        idle_timeout=idle_timeout,
        max_lifetime=max_lifetime,
        total_max_size=total_max_size,
        lifetime_jitter=fraction('lifetime_jitter', given['lifetime_jitter']),
        name=text('name', given['name']),
        leak_threshold=expiry('leak_threshold', given['leak_threshold']),
        registry=having('registry', given['registry'], 'register', 'a Prometheus registry'),
        meter_provider=having('meter_provider', given['meter_provider'], 'get_meter', 'a meter provider'),
        tracer_provider=having('tracer_provider', given['tracer_provider'], 'get_tracer', 'a tracer provider'),
        tracing=one_of('tracing', given['tracing'], TRACING),
        endpoint_labels=whole('endpoint_labels', given['endpoint_labels'], least=0),
        endpoint_label=function('endpoint_label', given['endpoint_label']),
        max_uses=count('max_uses', given['max_uses']),
        keepalive_interval=interval('keepalive_interval', given['keepalive_interval']),
        check_interval=0.0 if given['check_interval'] is None else expiry('check_interval', given['check_interval']),
        limits=given['limits'],
        refill=flag('refill', given['refill']),
        connect_workers=whole('connect_workers', given['connect_workers'], least=0),
        connect_timeout=resolve_connect_timeout(given['connect_timeout']),
        max_connecting=max_connecting,
        max_connecting_total=max_connecting_total,
        connect_retry=resolve_retry(given['connect_retry']),
        breaker_threshold=count('breaker_threshold', given['breaker_threshold']),
        max_waiting=count('max_waiting', given['max_waiting'], least=0),
        admission=None if given['admission'] is None else one_of('admission', given['admission'], ADMISSION),
        track_holders=flag('track_holders', given['track_holders']),
        warn_after=interval('warn_after', given['warn_after']),
        reclaim_abandoned=flag('reclaim_abandoned', given['reclaim_abandoned']),
        reserve=reserve,
        reserve_timeout=expiry('reserve_timeout', given['reserve_timeout']),
        given=MappingProxyType({name: given[name] for name in NAMES}),
        limits_of=limits_of,
    )


def resolve_collector(given: Mapping[str, Any]) -> bool:
    """Whether the pool has a collector. Features that work in the background bring one."""
    wanted = given['background_collector']
    if wanted is not BACKGROUND_COLLECTOR:
        flag('background_collector', wanted)
    needed = [name for name in ('refill', 'keepalive_interval') if given[name]]
    if wanted is False and needed:
        raise ValueError(
            f'background_collector=False contradicts {needed[0]}={given[needed[0]]!r}, which needs it: leave it out'
        )
    return bool(wanted) or bool(needed)


def resolve_connecting(one: int | None, total: int | None) -> tuple[int | None, int | None]:
    """Check the limits of connects in progress."""
    one, total = count('max_connecting', one), count('max_connecting_total', total)
    if one is not None and total is not None and one > total:
        contradict('max_connecting', one, 'max_connecting_total', total)
    return one, total


def resolve_connect_timeout(value: Any) -> float | None:
    """Check the time limit of one connect; ``None`` or ``inf``: the acquire's is the only one."""
    seconds = interval('connect_timeout', value)
    return None if math.isinf(seconds) else seconds


def resolve_retry(value: Any) -> Retry | None:
    """Check how connects are retried; ``None``: they are not."""
    if value is None or isinstance(value, Retry):
        return value
    raise TypeError(f'connect_retry must be a gcp.Retry or None, not {type(value).__name__}: {value!r}')


def resolve_limits(given: Mapping[str, Any]) -> LimitsOf | None:
    """Check the limits of single endpoints against those of the pool that were given; ``None``: there are none."""
    if given['limits'] is None:
        return None
    defaults = {'max_size': MAX_SIZE, 'total_max_size': TOTAL_MAX_SIZE, 'max_lifetime': MAX_LIFETIME}
    return LimitsOf(
        given['limits'], {name: given[name] for name, default in defaults.items() if given[name] is not default}
    )


def resolve_sizes(min_idle: int, max_size: int, total_max_size: int) -> tuple[int, int, int]:
    """Check `min_idle` and the caps, and adapt those that were not given."""
    given_min, given_max = min_idle is not MIN_IDLE, max_size is not MAX_SIZE
    given_total = total_max_size is not TOTAL_MAX_SIZE
    min_idle = whole('min_idle', min_idle, least=0)
    max_size = whole('max_size', max_size, least=1)
    total_max_size = whole('total_max_size', total_max_size, least=1)
    if given_min and given_max and min_idle > max_size:
        contradict('min_idle', min_idle, 'max_size', max_size)
    if given_max and given_total and max_size > total_max_size:
        contradict('max_size', max_size, 'total_max_size', total_max_size)
    if given_min and given_total and min_idle > total_max_size:
        contradict('min_idle', min_idle, 'total_max_size', total_max_size)
    if not given_max:
        max_size = max(max_size, min_idle) if given_min else max_size
        max_size = min(max_size, total_max_size) if given_total else max_size
    if not given_min:
        min_idle = min(min_idle, max_size)
    if not given_total:
        total_max_size = max(total_max_size, max_size)
    return min_idle, max_size, total_max_size


def resolve_reserve(given: Mapping[str, Any], max_size: int, total_max_size: int) -> tuple[int, int, int]:
    """Check the places for acquires with a priority against the caps, and adapt caps that were not given: one place at
    least is for all acquires.

    :return: the reserve, `max_size`, `total_max_size`
    """
    reserve = whole('reserve', given['reserve'], least=0)
    if reserve and reserve >= max_size and given['max_size'] is not MAX_SIZE:
        no_place_left('reserve', reserve, 'max_size', max_size)
    if reserve and reserve >= total_max_size and given['total_max_size'] is not TOTAL_MAX_SIZE:
        no_place_left('reserve', reserve, 'total_max_size', total_max_size)
    max_size = max(max_size, reserve + 1)
    return reserve, max_size, max(total_max_size, max_size)


def resolve_times(idle_timeout: float | None, max_lifetime: float | None) -> tuple[float, float]:
    """Check the expiries, and adapt the one that was not given."""
    given_idle, given_life = idle_timeout is not IDLE_TIMEOUT, max_lifetime is not MAX_LIFETIME
    idle = expiry('idle_timeout', idle_timeout)
    life = expiry('max_lifetime', max_lifetime)
    if given_idle and given_life and math.isfinite(idle) and idle > life:
        contradict('idle_timeout', idle, 'max_lifetime', life)
    if not given_idle:
        idle = min(idle, life)
    if not given_life and math.isfinite(idle):
        life = max(life, idle)
    return idle, life


def reject(name: str, where: str = 'ConnectionPool') -> NoReturn:
    """Raise the error for an unknown argument, with what to use instead. The value may be a password: it is not shown.

    :raises TypeError: always
    """
    import difflib

    from gcp.hints import hint, snake_case

    if snake_case(name) in NAMES:
        advice = f'; did you mean {snake_case(name)!r}?'
    elif known := hint(name):
        advice = f': {known}'
    elif close := difflib.get_close_matches(name, NAMES, n=1):
        advice = f'; did you mean {close[0]!r}?'
    else:
        advice = f'; valid ones are {", ".join(NAMES)}'
    raise TypeError(f'{where} got an unexpected argument {name!r}{advice}')


# --- managers ---

#: plain functions on both fronts
PLAIN = ('clean_after_error', 'classify')
REQUIRED = ('create', 'dispose')
OPTIONAL = (
    'check_aliveness',
    'on_acquire',
    'on_release',
    'on_connection_dead',
    'clean_after_error',
    'classify',
    'keepalive',
)


def check_manager(manager: Any, *, base: type, other: type, wrong: str, right: str) -> None:
    """Check that an object is a connection manager for the pool's frontend.

    :param base: the base class of the frontend's managers
    :param other: the base class of the other frontend's managers
    :param wrong: the name of the other frontend
    :param right: the name of the pool's frontend
    :raises TypeError: when it is not
    """
    import inspect  # takes as long to import as the rest of the library, and is not needed before the first pool

    if isinstance(manager, type):
        raise TypeError(f'connection_manager must be an instance, not the class {manager.__name__}: call it')
    missing = [name for name in REQUIRED if not callable(getattr(manager, name, None))]
    if missing:
        raise TypeError(
            f'connection_manager must have the hooks {" and ".join(REQUIRED)}; '
            f'{type(manager).__name__} has no {" and no ".join(missing)}'
        )
    hooks = {name: getattr(manager, name, None) for name in (*REQUIRED, *OPTIONAL)}
    is_async = [
        name for name, hook in hooks.items() if inspect.iscoroutinefunction(hook) or inspect.isasyncgenfunction(hook)
    ]
    if isinstance(manager, other) and not isinstance(manager, base) or ('create' in is_async and right == 'threading'):
        raise TypeError(
            f'connection_manager is for the {wrong} pool: {type(manager).__name__} cannot serve the {right} pool; '
            f'use gcp.{wrong}.ConnectionPool'
        )
    for name in is_async:
        if right == 'threading' or name in PLAIN:
            raise TypeError(
                f'connection_manager has the hook {type(manager).__name__}.{name}, which is async def: the '
                f'{right} pool calls a plain function'
            )


def hooks(manager: Any, base: type) -> dict[str, Any]:
    """Return the optional hooks that a manager overrides, by name. Those of the base class do nothing."""
    found = {name: getattr(manager, name, None) for name in OPTIONAL}
    return {
        name: hook
        for name, hook in found.items()
        if hook is not None and getattr(hook, '__func__', None) is not getattr(base, name)
    }
