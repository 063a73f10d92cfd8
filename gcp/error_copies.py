"""Copies of errors, for interpreters without the GIL.

Several acquires may fail for one reason: the driver's error of the connect that they all waited for. With the GIL, each
of them raises that very object. Without it, two threads must not raise one object: each adds to its traceback as the
error leaves their functions, and neither CPython 3.13 nor what Cython generates does so under a lock. So the traceback
may be released twice, and the interpreter crashes later, anywhere.

So there the pool keeps a copy, which nobody raises, and each that has to raise it gets one of its own.
"""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any

from gcp.exceptions import EndpointUnavailableError, describe_error

__all__ = ['copy_error']


def copy_error(error: BaseException) -> BaseException:
    """Return an error that another thread may raise in place of this one: of the same type, with the same arguments,
    attributes, notes, traceback, cause and context.

    It is made as `copy.copy` makes it, or without calling ``__init__`` where that fails, as it does for a class whose
    ``__init__`` takes other arguments than it passes on. For an error that cannot be copied at all, an
    `EndpointUnavailableError` that describes it is returned.

    :param error: an error that no other thread can raise yet, or none raises any more
    """
    made = _copied(error) or _rebuilt(error)
    if made is None:
        return EndpointUnavailableError(f'create failed with an error that cannot be copied: {describe_error(error)}')
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made.with_traceback(_copy_traceback(error.__traceback__))


def _copied(error: BaseException) -> BaseException | None:
    try:
        return _alike(copy.copy(error), error)
    except Exception:
        return None


def _rebuilt(error: BaseException) -> BaseException | None:
    """Make one from its arguments and attributes. What is built in is initialized, as `OSError` needs it."""
    cls = type(error)
    built_in: Any = next(base for base in cls.__mro__ if base.__module__ == 'builtins')
    try:
        made = cls.__new__(cls, *error.args)
        built_in.__init__(made, *error.args)
        vars(made).update(vars(error))
        return _alike(made, error)
    except Exception:
        return None


def _alike(made: BaseException, error: BaseException) -> BaseException | None:
    """Complete a copy, if it is one. An ``__init__`` that puts its arguments into a message has done so twice."""
    if made is error or type(made) is not type(error):
        return None
    made.args = error.args
    notes = vars(error).get('__notes__')
    if isinstance(notes, list):
        vars(made)['__notes__'] = notes.copy()
    return made


def _copy_traceback(traceback: TracebackType | None) -> TracebackType | None:
    """Copy each entry: the pool removes entries from the tracebacks of errors that leave it."""
    entries = []
    while traceback is not None:
        entries.append(traceback)
        traceback = traceback.tb_next
    made = None
    for entry in reversed(entries):
        made = TracebackType(made, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return made
