"""Connection managers for drivers and sockets, one module each. Nothing is imported before its module is."""

from __future__ import annotations

if __name__ != 'gcp.contrib':
    raise ImportError(
        f'this directory is the package gcp.contrib; it cannot be imported as {__name__!r}: write `import gcp.contrib`',
        name=__name__,
    )
