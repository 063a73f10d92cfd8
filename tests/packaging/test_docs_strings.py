"""What an editor shows of the pools, from the stub of the core and the sources of the fronts, is what `help` shows."""

from __future__ import annotations

import ast
import inspect
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gcp
import gcp.asyncio
import gcp.threading
from gcp import _core, options

STUB = Path(gcp.__file__).with_name('_core.pyi')
TREE = ast.parse(STUB.read_text(encoding='utf-8'))
POOLS = [gcp.threading.ConnectionPool, gcp.asyncio.ConnectionPool]

each_pool = pytest.mark.parametrize('pool', POOLS, ids=['threading', 'asyncio'])

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions() -> Iterator[tuple[str, Definition, Any]]:
    """Yield each public name of the stub, where it is defined, and what it is in the compiled module."""
    for node in TREE.body:
        if not isinstance(node, Definition) or node.name.startswith('_'):
            continue
        found = getattr(_core, node.name)
        yield node.name, node, found
        for member in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and not member.name.startswith('_'):
                yield f'{node.name}.{member.name}', member, inspect.getattr_static(found, member.name)


def documentation(found: Any) -> str:
    """Return a docstring without the signature that Cython puts before it."""
    text = inspect.cleandoc(getattr(found, '__doc__', None) or '')
    return re.sub(r'\A\w+(\.\w+)*\([^\n]*\)( -> [^\n]*)?\n*', '', text)


def test_each_public_name_of_the_stub_has_a_docstring() -> None:
    assert [name for name, node, _ in definitions() if not ast.get_docstring(node)] == []


def test_the_docstrings_of_the_stub_are_those_of_the_core() -> None:
    compared = 0
    for name, node, found in definitions():
        expected = documentation(found)
        if expected:  # an attribute of a compiled class has none
            compared += 1
            assert ast.get_docstring(node) == expected, name
    assert compared > 150


def test_the_signatures_of_the_stub_are_those_of_the_core() -> None:
    compared = 0
    for name, node, found in definitions():
        if isinstance(node, ast.ClassDef) or type(found).__name__ != 'cython_function_or_method':
            continue
        compared += 1
        arguments = node.args
        parameters = inspect.signature(found).parameters
        stub = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        named = [one.name for one in parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
        if not node.decorator_list:  # each of several overloads has a part of it
            assert stub == named, name
            defaults = [one for one in (*arguments.defaults, *arguments.kw_defaults) if one is not None]
            given = [one.default for one in parameters.values() if one.default is not one.empty]
            assert len(defaults) == len(given), name
            for default, value in zip(defaults, given, strict=True):
                if isinstance(default, ast.Constant):
                    assert default.value == value, name
    assert compared > 80


def test_the_stub_leaves_no_default_out() -> None:
    for name, node, _ in definitions():
        if not isinstance(node, ast.ClassDef):
            defaults = [*node.args.defaults, *node.args.kw_defaults]
            assert not [one for one in defaults if isinstance(one, ast.Constant) and one.value is Ellipsis], name


@each_pool
def test_the_signature_of_a_pool_has_plain_defaults_and_names_all_arguments(pool: type[Any]) -> None:
    parameters = dict(inspect.signature(pool).parameters)
    assert tuple(parameters) == ('connection_manager', *options.NAMES)
    assert {one.kind for one in list(parameters.values())[1:]} == {inspect.Parameter.KEYWORD_ONLY}
    for name, default in options.DEFAULTS.items():
        assert parameters[name].default == default and parameters[name].default is not default, name
        assert type(parameters[name].default) in (bool, int, float)
    shown = pydoc.render_doc(pool, renderer=pydoc.plaintext)
    assert re.search("max_size: '?int'? = 10", shown) and 'NoReturn' not in shown


@each_pool
def test_the_source_of_a_pool_says_the_same(pool: type[Any]) -> None:
    """An editor reads it, and shows a name for a default that is a name."""
    source = ast.parse(Path(inspect.getfile(pool)).read_text(encoding='utf-8'))
    (init,) = [
        one
        for one in ast.walk(source)
        if isinstance(one, ast.FunctionDef) and one.name == '__init__' and one.args.kwonlyargs
    ]
    parameters = inspect.signature(pool).parameters
    assert init.args.vararg is init.args.kwarg is None
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert argument.annotation is not None
        kind = ast.unparse(argument.annotation)
        assert 'NoReturn' not in kind and 'Any' not in kind, argument.arg
        if argument.arg in ('registry', 'meter_provider', 'tracer_provider'):
            assert default is not None and ast.unparse(default) == 'options.DEFAULT'
        else:
            assert default is not None and ast.literal_eval(default) == parameters[argument.arg].default


@each_pool
def test_all_public_methods_of_a_pool_have_docstrings_that_name_their_arguments(pool: type[Any]) -> None:
    for name, method in inspect.getmembers(pool):
        if name.startswith('_') or name in ('open_acquire', 'open_release'):
            continue
        assert inspect.getdoc(method) or name == 'name', name  # an attribute of a compiled class has none
        if callable(method):
            parameters = [one for one in inspect.signature(method).parameters if one != 'self']
            assert [one for one in parameters if f':param {one}:' not in (inspect.getdoc(method) or '')] == [], name


def test_what_can_be_changed_in_use_is_typed() -> None:
    (changes,) = [one for one in TREE.body if isinstance(one, ast.ClassDef) and one.name == '_Changes']
    named = [
        one.target.id for one in changes.body if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
    ]
    assert sorted(named) == sorted({*options.NAMES} - {*options.FIXED})


def test_leases_are_public() -> None:
    assert gcp.threading.Lease is gcp.Lease is _core.Lease
    assert gcp.asyncio.Lease is gcp.AsyncLease is _core.AsyncLease
    for front in (gcp.threading, gcp.asyncio):
        assert 'Lease' in front.__all__
        assert front.Lease[int].__args__ == (int,)  # for an annotation that is evaluated
