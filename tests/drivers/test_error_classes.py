"""Guarantee 18 (docs/guarantees.md): rules for all managers: which of several errors counts, and that the tables in the
guides are those of the code."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
from error_cases import BROKEN, PERMANENT, TRANSIENT
from peers import driver

from gcp import ErrorClass
from gcp.contrib import socket as sockets
from gcp.exceptions import AcquireTimeoutError

# ---- errors within errors


def raised(error: BaseException, cause: BaseException | None = None, context: BaseException | None = None) -> Any:
    error.__context__ = context
    if cause is not None:
        error.__cause__ = cause
    return error


RESET, DENIED = ConnectionResetError(errno.ECONNRESET, 'reset'), PermissionError(errno.EACCES, 'denied')


def test_the_nearest_error_that_is_known_counts() -> None:
    manager = sockets.TcpSocketConnectionManager()

    def seen(error: BaseException) -> ErrorClass:
        return manager.classify(('localhost', 1), error)

    assert seen(raised(LookupError(), cause=RESET)) is BROKEN
    assert seen(raised(LookupError(), context=RESET)) is BROKEN
    assert seen(raised(LookupError(), cause=raised(KeyError(), context=DENIED))) is PERMANENT
    assert seen(raised(ConnectionRefusedError(errno.ECONNREFUSED, ''), cause=DENIED)) is TRANSIENT
    hidden = raised(LookupError(), context=RESET)
    hidden.__suppress_context__ = True
    assert seen(hidden) is TRANSIENT


def test_errors_that_cause_each_other_end() -> None:
    one, other = LookupError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert sockets.TcpSocketConnectionManager().classify(('localhost', 1), one) is TRANSIENT


def test_the_error_of_another_pool_says_nothing_of_this_endpoint() -> None:
    manager = sockets.TcpSocketConnectionManager()
    assert manager.classify(('localhost', 1), raised(AcquireTimeoutError(), cause=RESET)) is TRANSIENT


@pytest.mark.parametrize(
    'members, expected',
    [
        ((DENIED, RESET), BROKEN),
        ((DENIED, PermissionError(errno.EPERM, 'denied')), PERMANENT),
        ((DENIED, TimeoutError(errno.ETIMEDOUT, 'timed out')), TRANSIENT),
        ((DENIED, KeyError()), TRANSIENT),
        ((KeyError(), LookupError()), TRANSIENT),
        ((KeyError(), raised(LookupError(), cause=RESET)), BROKEN),
    ],
)
def test_a_group_of_errors(members: tuple[Exception, ...], expected: ErrorClass) -> None:
    class Group(Exception):  # as that of Python 3.11
        exceptions = members

    manager = sockets.TcpSocketConnectionManager()
    assert manager.classify(('localhost', 1), Group()) is expected
    assert manager.classify(('localhost', 1), raised(RuntimeError(), cause=Group())) is expected


# ---- the tables in the guides

DOCS = Path(__file__).parents[2] / 'docs'


def table(page: str, heading: str) -> list[list[str]]:
    section = (DOCS / page).read_text().partition(f'# {heading}\n')[2].partition('\n#')[0]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in section.splitlines() if line[:1] == '|']


@pytest.mark.skipif(not DOCS.exists(), reason='no docs beside the tests: this is not a checkout')
def test_the_tables_are_those_of_the_code() -> None:
    driver('redis')
    from gcp.contrib import _errors, _postgres_errors, _redis_errors

    rows = table('postgres.md', 'Classes of errors')
    shown = {cells[0].strip('`.'): cells[2].strip('`') for cells in rows if re.match(r'`\d', cells[0])}
    assert shown == {state: found.name for state, found in _postgres_errors.SQLSTATES.items()}

    rows = table('redis-http.md', 'Classes of errors')
    shown = {cells[0].strip('`'): cells[2].strip('`') for cells in rows if re.fullmatch('`[A-Z]+`', cells[0])}
    assert shown == {word: found.name for word, found in _redis_errors.ERRORS.items()}

    rows = table('redis-http.md', 'Errors of the operating system')
    shown = {name: cells[1].strip('`') for cells in rows for name in re.findall('`(E[A-Z_]+)`', cells[0])}
    assert shown == {name: found.name for name, found in {**_errors.ERRNOS, **_errors.LOOK_UPS}.items()}
