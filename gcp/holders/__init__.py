"""Who holds the connections of a pool: where each was acquired, by which thread or task, and where that is now.

The core notes the site of each acquire (`gcp._core`, chapter uses). What takes time is done here, on
request: looking up line numbers, names, stacks and traces."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from contextvars import Context
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from gcp._core import describe, line_of, thread_context
from gcp.holders.stacks import are_out_of_reach, format_frames, frames_of_task, frames_of_thread, innermost

if TYPE_CHECKING:
    import asyncio

__all__ = ['HolderInfo', 'describe_holders']

active_threads: dict[int, threading.Thread] = getattr(threading, '_active', {})

Use = tuple[Any, float, 'tuple[CodeType, int] | None', 'int | None', int, 'Callable[[], Any] | None', 'str | None']


class HolderInfo:
    """Who holds a connection. All but `stack` is as it was when this was made.

    A pool with ``track_holders=False`` knows only the endpoint and the age, unless the acquire had a tag. With gevent
    or eventlet the thread is that of all greenlets.

    :ivar endpoint: what the connection leads to
    :ivar age: for how long it has been held, seconds
    :ivar thread_name: the name of the thread in which it was acquired; ``None``: not known, or the thread has ended
    :ivar thread_ident: its `threading.get_ident()`; ``None``: not known
    :ivar task_name: the name of the asyncio task in which it was acquired; ``None``: there was none, or it is gone
    :ivar file: the file of the code that acquired it; ``None``: not known
    :ivar line: the line
    :ivar function: the function, with its class on Python 3.11 and newer
    :ivar trace_id: the OpenTelemetry trace in which the holder is now, if it is sampled, 32 hexadecimal digits; of
                    tasks on Python 3.12 and newer
    :ivar tag: what the acquire was given as ``tag``
    :ivar alive: whether the task is not done, or the thread has not ended; ``True`` where that is not known
    """

    __slots__ = (
        '_task',
        '_thread',
        'age',
        'alive',
        'endpoint',
        'file',
        'function',
        'line',
        'tag',
        'task_name',
        'thread_ident',
        'thread_name',
        'trace_id',
    )

    def __init__(self, use: Use, names: dict[int, str]) -> None:
        self.endpoint, self.age, site, self.thread_ident, self._thread, self._task, self.tag = use
        self.file: str | None = None
        self.line: int | None = None
        self.function: str | None = None
        self.task_name: str | None = None
        self.thread_name: str | None = None
        self.trace_id: str | None = None
        self.alive = True
        if site is not None:
            self.file, self.line, self.function = line_of(*site)
        if self.thread_ident is not None:
            self._look(self.thread_ident, names)

    def _look(self, ident: int, names: dict[int, str]) -> None:
        """Look up whether the holder is still there, its names and its trace."""
        context, runs = thread_context(self._thread)
        task = self._running_task()
        if runs is not False:
            self.thread_name = names.get(ident)
        if task is not None:
            self.task_name = task.get_name()
            context = task.get_context() if hasattr(task, 'get_context') and not are_out_of_reach(ident) else None
        self.alive = self._lives(task, runs)
        if self.alive:
            self.trace_id = trace_of(context)

    def _running_task(self) -> asyncio.Task[Any] | None:
        return None if self._task is None else self._task()

    def _lives(self, task: asyncio.Task[Any] | None, runs: bool | None) -> bool:
        """Whether the holder is there.

        :param runs: whether its thread is; ``None``: that cannot be told by its state
        """
        if self._task is not None:
            return task is not None and not task.done()
        return self.thread_ident in sys._current_frames() if runs is None else runs

    def _frames(self) -> list[FrameType] | str:
        """Return the frames in which the holder is now, or what is to be said where there are none."""
        if self.thread_ident is None:
            return 'its holder is not known: the pool was made with track_holders=False'
        task = self._running_task()
        if not self._lives(task, thread_context(self._thread)[1]):
            return 'the thread has ended' if self._task is None else 'the task is done'
        if are_out_of_reach(self.thread_ident):
            return 'not known: without the GIL, the frames of another thread cannot be looked at'
        return frames_of_thread(self.thread_ident) if task is None else frames_of_task(task, self.thread_ident)

    def stack(self) -> str:
        """Return where the holder is at this moment: its stack as in a traceback, or why there is none."""
        frames = self._frames()
        return frames if isinstance(frames, str) else format_frames(frames) or 'it executes no Python code'

    def where(self) -> str:
        """Return where the holder is at this moment, in a few words: the innermost frame, or why there is none."""
        frames = self._frames()
        return frames if isinstance(frames, str) else innermost(frames)

    @property
    def site(self) -> str:
        """Where it was acquired: ``file:line in function``."""
        return 'an unknown place' if self.file is None else f'{self.file}:{self.line} in {self.function}'

    @property
    def who(self) -> str:
        """The task or the thread that acquired it."""
        if self.thread_ident is None:
            return 'an unknown holder'
        if self._task is not None:
            return 'a task that is gone' if self.task_name is None else f'task {self.task_name!r}'
        return f'thread {self.thread_ident if self.thread_name is None else repr(self.thread_name)}'

    @property
    def kind(self) -> str:
        """What acquired it: ``task`` or ``thread``."""
        return 'thread' if self._task is None else 'task'

    def __str__(self) -> str:
        tag = '' if self.tag is None else f', tag {self.tag!r}'
        trace = '' if self.trace_id is None else f', trace {self.trace_id}'
        return f'held for {self.age:.3g} s by {self.who}, acquired at {self.site}{tag}{trace}; now: {self.where()}'

    def __repr__(self) -> str:
        return f'<{type(self).__name__} of {describe(self.endpoint)}: {self}>'


def describe_holders(uses: Iterable[Use]) -> list[HolderInfo]:
    """Look up all that can be known of the holders of connections."""
    # not `threading.enumerate()`: this may be called by a finalizer, or interrupted by a signal, and the lock of that
    # function stays locked if a signal comes just after it was taken and the handler raises (Python 3.14)
    names = {ident: thread.name for ident, thread in active_threads.copy().items()}
    return [HolderInfo(use, names) for use in uses]


def trace_of(context: Context | None) -> str | None:
    """Return the id of the trace that is current in a context, if it is sampled. Imports nothing."""
    if context is None or 'opentelemetry.trace' not in sys.modules:  # no `get`: see `gcp.observe.tracing.peek`
        return None
    try:
        api = sys.modules['opentelemetry.trace']
        span = context.copy().run(api.get_current_span).get_span_context()
        if not span.is_valid or not span.trace_flags.sampled:
            return None
        return str(api.format_trace_id(span.trace_id))
    except Exception:
        return None
