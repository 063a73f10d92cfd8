"""Checks of single arguments. Each returns the value in the form in which the pool keeps it, or raises an error that
names the argument, its value and what is accepted."""

from __future__ import annotations

import math
import operator
from typing import Any, Final, NoReturn


class Default:
    """Stands for the global registry, meter provider or tracer provider of the process."""

    def __repr__(self) -> str:
        return 'DEFAULT'


DEFAULT: Final[Any] = Default()


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


def count(name: str, value: Any, least: int = 1) -> int | None:
    """Check a whole number that has a lower bound; ``None``: there is no limit."""
    return None if value is None else whole(name, value, least)


def interval(name: str, value: Any) -> float:
    """Check a number of seconds that is more than 0; ``None`` or ``inf``: never."""
    return math.inf if value is None or value == math.inf else positive(name, value, 'a number of seconds or None')


def positive(name: str, value: Any, expected: str = 'a number of seconds') -> float:
    """Check a finite number of seconds that is more than 0."""
    number = seconds(name, value, expected)
    if number == 0 or math.isinf(number):
        raise ValueError(f'{name} must be {expected}, finite and more than 0, not {value!r}')
    return number


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


def no_place_left(name: str, reserve: int, other: str, bound: float) -> NoReturn:
    """Raise the error for a reserve that leaves no place to acquires without a priority.

    :raises ValueError: always
    """
    raise ValueError(
        f'{name}={reserve} contradicts {other}={bound:g}: {name} must be less than {other}, so that acquires without a '
        f'priority have a place; write {name}={bound - 1:g}, or a greater {other}'
    )


def contradict(name: str, value: float, other: str, bound: float) -> NoReturn:
    """Raise the error for two options that contradict each other.

    :raises ValueError: always
    """
    raise ValueError(f'{name}={value:g} contradicts {other}={bound:g}: {name} must not be greater than {other}')
