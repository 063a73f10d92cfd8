"""Whether the interpreter has its GIL, the mark of tests of what cannot be had without, and what takes longer then."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import pytest

HAS_GIL = bool(getattr(sys, '_is_gil_enabled', lambda: True)())


def collect(*refs: Any) -> list[Any]:
    """Collect garbage, and return what weak references refer to still. Without the GIL that takes several rounds: a
    count of references that another thread has changed is settled between two of them. There is a pause after each:
    rounds in a row keep threads that wait to go on from doing so (python/cpython#151518).

    :param refs: weak references; without any, there are as many rounds as settle it nearly always
    """
    for _ in range(1 if HAS_GIL else 100 if refs else 5):
        gc.collect()
        if not HAS_GIL:
            time.sleep(0.001)
        if refs and all(ref() is None for ref in refs):
            break
    return [ref() for ref in refs]


def is_same(found: BaseException | None, error: BaseException) -> bool:
    """Whether an error that the pool gives is the one that a hook raised, or without the GIL, a copy of it: there, no
    two threads may raise one object."""
    if HAS_GIL:
        return found is error
    return found is not error and type(found) is type(error) and found.args == error.args


def needs_gil(reason: str) -> Any:
    """Skip a test where there is no GIL.

    :param reason: what the interpreter does otherwise there
    """
    return pytest.mark.skipif(not HAS_GIL, reason=f'without the GIL, {reason}')
