"""Whether the interpreter has its GIL, and the mark of tests of what cannot be had without."""

from __future__ import annotations

import sys
from typing import Any

import pytest

HAS_GIL = bool(getattr(sys, '_is_gil_enabled', lambda: True)())


def needs_gil(reason: str) -> Any:
    """Skip a test where there is no GIL.

    :param reason: what the interpreter does otherwise there
    """
    return pytest.mark.skipif(not HAS_GIL, reason=f'without the GIL, {reason}')
