"""Says why the compiled core cannot be imported, and what to do. Imported only then."""

from __future__ import annotations

import os
import platform
import re
from importlib.machinery import EXTENSION_SUFFIXES

__all__ = ['explained']

#: what CPython says where a module refuses interpreters of their own GIL, and Cython where a second one imports it
SUBINTERPRETER = ('does not support loading in subinterpreters', 'Interpreter change detected')

TAG = re.compile(r'cpython-(\d)(\d+)([a-z]*)(?:-(.*))?')


def explained(error: ImportError) -> ImportError:
    """Return the error to raise instead of the interpreter's own, or that one where it says enough.

    :param error: what the import of `gcp._core` raised
    """
    if any(words in str(error) for words in SUBINTERPRETER):
        return ImportError(
            'gcp cannot be imported in a subinterpreter, or in two interpreters of one process: its compiled core has '
            'one state for the whole process. Import it in the main interpreter only. For mod_wsgi: '
            'WSGIApplicationGroup %{GLOBAL}; for uWSGI: single-interpreter = true; instead of '
            'InterpreterPoolExecutor: ThreadPoolExecutor',
            name='gcp._core',
        )
    if error.name == 'gcp._core' and isinstance(error, ModuleNotFoundError):
        return ModuleNotFoundError(_missing(os.path.dirname(__file__)), name='gcp._core')
    return error


def _missing(folder: str) -> str:
    this = f'{platform.python_implementation()} {platform.python_version()}'
    wanted = f'this is {this}, which needs _core{EXTENSION_SUFFIXES[0]}'
    others = sorted(name for name in os.listdir(folder) if name.startswith('_core.') and name.endswith(('.so', '.pyd')))
    if not others:
        return (
            f'the compiled core of gcp is missing in {folder}: {wanted}. Install gcpool with this Python: '
            'pip install --force-reinstall gcpool; in a clone, build it: make dev'
        )
    built = ', '.join(f'{name} (for {_described(name)})' for name in others)
    return (
        f'the compiled core of gcp in {folder} was built for another Python: {built}; {wanted}. Install gcpool with '
        'this Python: pip install --force-reinstall gcpool; in a clone, build it: make dev PYTHON=... VENV=...'
    )


def _described(name: str) -> str:
    """Return the Python that an extension was built for, from its file's name."""
    tag = name.split('.')[1]
    match = TAG.fullmatch(tag)
    if match is None:
        return tag
    major, minor, flags, platform_tag = match.groups()
    kinds = {'t': ', free-threaded', 'd': ', debug'}
    words = f'CPython {major}.{minor}' + ''.join(kinds.get(flag, f', {flag}') for flag in flags)
    return f'{words}, {platform_tag}' if platform_tag else words
