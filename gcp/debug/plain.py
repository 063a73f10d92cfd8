"""Values that may be hostile, or may carry credentials, as plain text of a bounded length."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from gcp._core import describe

__all__ = ['endpoint_id', 'finite', 'shown', 'shown_error', 'text']

LONGEST = 120  # characters of a name
LONGEST_ERROR = 300


def text(value: object, longest: int = LONGEST) -> str:
    """Return a text in which each character can be seen: none that moves the cursor, or turns the direction of
    writing."""
    try:
        plain = value if type(value) is str else str(value)
    except Exception:
        plain = f'<{type(value).__name__}>'
    if not plain.isprintable():
        plain = ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in plain)
    return plain if len(plain) <= longest else plain[: longest - 1] + '…'


def shown(endpoint: object, secret: bytes) -> str:
    """Show an endpoint as the pool's messages do: nothing that may carry credentials. Those that look alike for this
    reason are told apart by a part of their id."""
    try:
        found = describe(endpoint)
    except Exception:  # of a `__repr__`
        found = f'<{type(endpoint).__name__}>'
    return text(f'{found} #{endpoint_id(endpoint, secret)[:4]}' if '<' in found else found)


def endpoint_id(endpoint: object, secret: bytes) -> str:
    """Return by what a request names an endpoint: the same as long as the process lives, and of no use elsewhere."""
    try:
        key = f'{type(endpoint).__name__} {hash(endpoint)}'
    except Exception:
        key = f'{type(endpoint).__name__} {id(endpoint)}'
    return hashlib.blake2b(key.encode('utf-8', 'replace'), key=secret, digest_size=8).hexdigest()


def shown_error(error: BaseException | None) -> str | None:
    """Show an error in a line."""
    if error is None:
        return None
    try:
        said = str(error).strip().partition('\n')[0]
    except Exception:
        said = ''
    return text(f'{type(error).__name__}: {said}' if said else type(error).__name__, LONGEST_ERROR)


def finite(value: Any) -> Any:
    """Return a number that JSON can write: ``None`` for infinity and for what is not a number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
