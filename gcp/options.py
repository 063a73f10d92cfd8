"""The options of a pool: their defaults, their checks, and how defaults adapt to the options that were given.

Only options that were given explicitly can contradict each other. A default adapts: with ``max_size=200`` alone, the
total cap is 200, too."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NoReturn


class Default:
    """Stands for the global registry, meter provider or tracer provider of the process."""

    def __repr__(self) -> str:
        return 'DEFAULT'


class DefaultInt(int):
    """A default. It is compared by identity, so an equal number that the caller gives counts as given."""


class DefaultFloat(float):
    """A default. It is compared by identity, so an equal number that the caller gives counts as given."""


MIN_IDLE = DefaultInt(1)
MAX_SIZE = DefaultInt(10)
TOTAL_MAX_SIZE = DefaultInt(100)
IDLE_TIMEOUT = DefaultFloat(60.0)
MAX_LIFETIME = DefaultFloat(3600.0)
LIFETIME_JITTER: Final = 0.05
DEFAULT: Final = Default()
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
)


class Options(NamedTuple):
    """Checked and resolved options. Times are in seconds: ``inf`` for never, ``None`` for no limit."""

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


def resolve(given: Mapping[str, Any], unknown: Mapping[str, Any]) -> Options:
    """Check the arguments of a pool's constructor.

    :param given: the options by name, given or default
    :param unknown: arguments that the constructor does not know
    :raises TypeError: for an unknown argument, or one of a wrong type
    :raises ValueError: for a value that is out of range, or two that contradict each other
    """
    if unknown:
        reject(next(iter(unknown)))
    min_idle, max_size, total_max_size = resolve_sizes(given['min_idle'], given['max_size'], given['total_max_size'])
    idle_timeout, max_lifetime = resolve_times(given['idle_timeout'], given['max_lifetime'])
    return Options(
        acquire_timeout=limit('acquire_timeout', given['acquire_timeout']),
        background_collector=flag('background_collector', given['background_collector']),
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


# --- single arguments ---


def whole(name: str, value: Any, least: int) -> int:
    """Check a whole number that has a lower bound."""
    if isinstance(value, bool):
        raise TypeError(f'{name} must be a whole number, not a bool: {value!r}')
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f'{name} must be a whole number, not {type(value).__name__}: {value!r}') from None
    if number < least:
        raise ValueError(f'{name} must be at least {least}, not {number}')
    return number


def seconds(name: str, value: Any, expected: str) -> float:
    """Check a number of seconds, 0 or more. What is expected is named in the error."""
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, '__float__'):
        raise TypeError(f'{name} must be {expected}, not {type(value).__name__}: {value!r}')
    number = float(value)
    if math.isnan(number) or number < 0:
        raise ValueError(f'{name} must be {expected}, 0 or more, not {value!r}')
    return number


def limit(name: str, value: Any) -> float | None:
    """Check a time limit in seconds; ``None`` or ``inf``: no limit."""
    if value is None:
        return None
    number = seconds(name, value, 'a number of seconds or None')
    return None if math.isinf(number) else number


def expiry(name: str, value: Any) -> float:
    """Check an expiry in seconds; ``None`` or ``inf``: never."""
    return math.inf if value is None else seconds(name, value, 'a number of seconds or None')


def fraction(name: str, value: Any) -> float:
    """Check a fraction from 0 to 1."""
    number = seconds(name, value, 'a fraction from 0 to 1')
    if number > 1:
        raise ValueError(f'{name} must be a fraction from 0 to 1, not {value!r}')
    return number


def flag(name: str, value: Any) -> bool:
    """Check a bool."""
    if not isinstance(value, bool):
        raise TypeError(f'{name} must be True or False, not {type(value).__name__}: {value!r}')
    return value


def text(name: str, value: Any) -> str | None:
    """Check a string that is not empty, or ``None``."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f'{name} must be a string or None, not {type(value).__name__}: {value!r}')
    if value == '':
        raise ValueError(f'{name} must be a string that is not empty or None, not {value!r}')
    return value


def having(name: str, value: Any, method: str, expected: str) -> Any:
    """Check that an object has a method. ``None`` turns the feature off, `DEFAULT` is resolved later."""
    if (
        value is not None
        and value is not DEFAULT
        and (isinstance(value, type) or not callable(getattr(value, method, None)))
    ):
        raise TypeError(
            f'{name} must be {expected} (with a method {method}) or None, not {type(value).__name__}: {value!r}'
        )
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Check that a value is one of several strings."""
    if value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f'{name} must be one of {", ".join(map(repr, choices))}, not {value!r}')
    return str(value)


def function(name: str, value: Any) -> Any:
    """Check a function, or ``None``."""
    if value is not None and not callable(value):
        raise TypeError(f'{name} must be a function of an endpoint or None, not {type(value).__name__}: {value!r}')
    return value


def contradict(name: str, value: float, other: str, bound: float) -> NoReturn:
    """Raise the error for two options that contradict each other.

    :raises ValueError: always
    """
    raise ValueError(f'{name}={value:g} contradicts {other}={bound:g}: {name} must not be greater than {other}')


def reject(name: str) -> NoReturn:
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
    raise TypeError(f'ConnectionPool got an unexpected argument {name!r}{advice}')


# --- managers ---

REQUIRED = ('create', 'dispose')
OPTIONAL = ('check_aliveness', 'on_acquire', 'on_release', 'on_connection_dead', 'clean_after_error')


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
        if right == 'threading' or name == 'clean_after_error':
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
