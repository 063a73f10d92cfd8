"""Where a thread or a task is now: the frames that it executes, or that it will go on with."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterable, Iterator
from itertools import dropwhile
from threading import get_ident
from types import AsyncGeneratorType, FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

__all__ = ['are_out_of_reach', 'format_frames', 'frames_of_task', 'frames_of_thread', 'innermost']

MOST_AWAITS = 1000
"""How deep a chain of awaits is followed: one that awaits itself has no end."""


def are_out_of_reach(ident: int) -> bool:
    """Whether the frames of a thread, and the context variables of its tasks, cannot be looked at. Without the GIL only
    the thread itself can do that: those of one that runs meanwhile would crash the interpreter (seen on 3.13 with both;
    of frames, Python's documentation says so, too).

    :param ident: of the thread
    """
    return ident != get_ident() and hasattr(sys, '_is_gil_enabled') and not sys._is_gil_enabled()


def frames_of_thread(ident: int) -> list[FrameType]:
    """Return the frames of a thread, the outermost first; empty where it executes no Python code."""
    frames = []
    frame = sys._current_frames().get(ident)
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return without_ours(frames[::-1])


def frames_of_task(task: asyncio.Task[Any], ident: int) -> list[FrameType]:
    """Return the frames of a task, the outermost first.

    :param ident: of the thread in which its event loop runs: where the task runs now, its frames are on that stack
    """
    suspended = list(suspended_frames(task.get_coro()))
    running = list(dropwhile(lambda frame: frame not in suspended[:1], frames_of_thread(ident)))
    return running or suspended


def suspended_frames(awaited: Any) -> Iterator[FrameType]:
    """Follow what a coroutine awaits. `asyncio.Task.get_stack` stops at the first frame."""
    for _ in range(MOST_AWAITS):
        if awaited is None:
            return
        frame = first_of(awaited, ('cr_frame', 'gi_frame', 'ag_frame'))
        if frame is not None:
            yield frame
        following = first_of(awaited, ('cr_await', 'gi_yieldfrom', 'ag_await'))
        awaited = following if following is not None or frame is not None else generator_of(awaited)


def first_of(awaited: object, names: Iterable[str]) -> Any:
    """Return the first of these attributes that there is and is not None."""
    return next((found for name in names if (found := getattr(awaited, name, None)) is not None), None)


def generator_of(awaited: object) -> Any:
    """Return the asynchronous generator whose next item is awaited: that object has no attribute for it."""
    if type(awaited).__name__ not in ('async_generator_asend', 'async_generator_athrow', 'anext_awaitable'):
        return None
    for one in gc.get_referents(awaited):
        if isinstance(one, AsyncGeneratorType):
            return one
        if type(one).__name__ == 'async_generator_asend':
            return one
    return None


def without_ours(frames: list[FrameType]) -> list[FrameType]:
    """Leave out the frames of gcp that a stack ends with: they are those of the call that asks."""
    while frames and is_ours(frames[-1]):
        frames.pop()
    return frames


def is_ours(frame: FrameType) -> bool:
    """Whether a frame is one of gcp."""
    return str(frame.f_globals.get('__name__')).split('.')[0] == 'gcp'


def innermost(frames: list[FrameType]) -> str:
    """Return where the innermost frame is: ``file:line in function``."""
    if not frames:
        return 'outside of Python code'
    code = frames[-1].f_code
    return f'{code.co_filename}:{frames[-1].f_lineno} in {getattr(code, "co_qualname", code.co_name)}'


def format_frames(frames: list[FrameType]) -> str:
    """Return frames as a traceback shows them."""
    summary = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
    return ''.join(summary.format())
