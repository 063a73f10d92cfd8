"""Guarantee 12 (docs/guarantees.md): misuse raises a clear error; its message, help and editors say what to write."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from fronts import Front

import gcp._core
import gcp.disposal.tasks
from gcp.exceptions import AcquireTimeoutError, BaseError, ConnectionNotAcquiredError


async def test_the_arguments_of_release_are_swapped(front: Front) -> None:
    pool = front.pool(front.manager())
    conn = await pool.acquire('db')
    with pytest.raises(ConnectionNotAcquiredError, match=r'swapped.* write release\(conn, endpoint\)'):
        await pool.release('db', conn)
    await pool.release(conn, 'db')


@pytest.mark.parametrize('cap', ['max_size', 'total_max_size'])
async def test_connections_that_were_closed_instead_of_released(front: Front, cap: str) -> None:
    """As by `with pool.acquire()` with a driver whose connections close themselves, or by SQLAlchemy's NullPool."""
    pool = front.pool(front.manager(), **{cap: 3})
    held = [await pool.acquire('db') for _ in range(3)]
    held[0].closed = held[1].closed = True
    with pytest.raises(AcquireTimeoutError, match=rf'{cap}=3 .*2 of whose connections are closed.*pool.connection'):
        await pool.acquire('db' if cap == 'max_size' else 'other', timeout=0)
    for conn in held:
        await pool.release(conn, 'db')


@pytest.mark.parametrize('name', ['acquire', 'release', 'connection', 'close'])
def test_help_shows_arguments_and_defaults(front: Front, name: str) -> None:
    method = getattr(front.pool_class, name)
    parameters = inspect.signature(method).parameters
    assert next(iter(parameters)) == 'self'
    assert [p.default for p in parameters.values() if p.name in ('timeout', 'error')] in ([None], [None, None])
    documented = inspect.getdoc(method) or ''
    assert all(f':param {p}:' in documented for p in list(parameters)[1:])


@pytest.mark.parametrize('name', ['acquire', 'release', 'connection'])
@pytest.mark.parametrize('pool', ['SyncPool', 'AsyncPool'])
def test_editors_show_the_same(pool: str, name: str) -> None:
    stub = ast.parse(Path(gcp.__file__).with_name('_core.pyi').read_text())
    method = next(
        node
        for owner in stub.body
        if isinstance(owner, ast.ClassDef) and owner.name == pool
        for node in owner.body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    shown = inspect.getdoc(getattr(getattr(gcp._core, pool), name)) or ''
    assert (ast.get_docstring(method) or '?') in shown
    signature = inspect.signature(getattr(getattr(gcp._core, pool), name))
    assert [argument.arg for argument in method.args.args] == list(signature.parameters)
    defaults = [p.default for p in signature.parameters.values() if p.default is not inspect.Parameter.empty]
    assert [ast.literal_eval(default) for default in method.args.defaults] == defaults


def test_errors_are_shown_by_their_public_module() -> None:
    assert {error.__module__ for error in BaseError.__subclasses__()} == {'gcp.exceptions'}
    assert gcp.AcquireTimeoutError.__module__ == gcp.disposal.tasks.TimedOut.__module__ == 'gcp.exceptions'
    assert importlib.import_module('gcp.contrib._endpoints').UnknownEndpointError.__module__ == 'gcp.exceptions'
