"""Copies of errors, as waiters raise them where there is no GIL. Nothing of it needs an interpreter without one."""

from __future__ import annotations

import asyncio
import sys
import traceback
from typing import Any, ClassVar

import pytest

from gcp import HookTimeoutError
from gcp.error_copies import copy_error
from gcp.exceptions import EndpointUnavailableError


class Plain(Exception):
    pass


class Attributed(Exception):
    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class Formatting(Exception):
    def __init__(self, host: str) -> None:
        super().__init__(f'no route to {host}')
        self.host = host


class Numbered(OSError):
    """As those of aiohttp: of other arguments than those of OSError."""

    def __init__(self, host: str, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.host = host


class Reduced(Exception):
    """One that says how it is copied."""

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state

    def __reduce__(self) -> Any:
        return Reduced, (self.args[0], self.state)


class Misleading(Exception):
    def __copy__(self) -> Exception:
        return self


class Only(Exception):
    """One that cannot be copied."""

    made: ClassVar[list[BaseException]] = []

    def __new__(cls, *args: object) -> Only:
        if cls.made:
            raise TypeError('there is one only')
        cls.made.append(super().__new__(cls, *args))
        return cls.made[0]  # type: ignore[return-value]


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    'error',
    [
        Plain('one', 2),
        Plain(),
        Attributed('wrong', code=7),
        Formatting('db.example'),
        Numbered('db', OSError(111, 'refused')),
        Reduced('half', 'done'),
        Misleading('it is another'),
        ConnectionRefusedError(111, 'Connection refused'),
        FileNotFoundError(2, 'No such file', '/run/db.sock'),
        UnicodeDecodeError('utf-8', b'\xff', 0, 1, 'invalid start byte'),
        HookTimeoutError('create took longer than connect_timeout=1 s'),
        asyncio.CancelledError('given up'),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_copy_is_like_the_error(error: Any) -> None:
    made: Any = copy_error(raised(error, Plain('the cause')))
    assert made is not error and type(made) is type(error)
    assert (made.args, str(made), repr(made)) == (error.args, str(error), repr(error))
    assert vars(made) == vars(error)
    for name in ('errno', 'strerror', 'filename', 'code', 'pgcode', 'start', 'reason'):
        assert getattr(made, name, None) == getattr(error, name, None), name
    assert made.__cause__ is error.__cause__ and made.__suppress_context__
    assert traceback.format_exception(made) == traceback.format_exception(error)


def test_the_error_of_a_driver() -> None:
    psycopg2 = pytest.importorskip('psycopg2')
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(host='127.0.0.1', port=1, connect_timeout=2)
    made: Any = copy_error(caught.value)
    assert type(made) is psycopg2.OperationalError and str(made) == str(caught.value)
    assert (made.pgcode, made.pgerror) == (caught.value.pgcode, caught.value.pgerror)


def test_what_is_done_to_a_copy_leaves_the_error_alone() -> None:
    error: Any = Plain('down')
    if sys.version_info >= (3, 11):
        error.add_note('by the hook')
    raised(error)
    made: Any = copy_error(error)
    entries = traceback.extract_tb(error.__traceback__)
    raised(made)
    assert len(traceback.extract_tb(made.__traceback__)) == len(entries) + 1
    made.__traceback__.tb_next = None
    made.__context__ = Plain('another')
    assert traceback.extract_tb(error.__traceback__) == entries and error.__context__ is None
    if sys.version_info >= (3, 11):
        made.add_note('by a waiter')
        assert error.__notes__ == ['by the hook']


@pytest.mark.skipif(sys.version_info < (3, 11), reason='groups of exceptions are of Python 3.11')
def test_a_group_is_copied() -> None:
    error = ExceptionGroup('both hosts', [Plain('a'), Plain('b')])  # type: ignore[name-defined] # noqa: F821
    made: Any = copy_error(error)
    assert made is not error and made.exceptions == error.exceptions and str(made) == str(error)


def test_what_cannot_be_copied_is_told_by_another_error() -> None:
    made = copy_error(raised(Only('first')))
    assert type(made) is EndpointUnavailableError
    assert 'create failed with an error that cannot be copied: Only: first' in str(made)
