"""A PostgreSQL backend for Django whose connections come from one gcp pool of the process, for all database aliases.

::

    DATABASES = {
        'default': {
            'ENGINE': 'gcp.contrib.django',
            'NAME': 'shop',
            'OPTIONS': {'pool': {'max_size': 20, 'acquire_timeout': 5}},
        },
    }

It is Django's own backend, but for the pool. It needs Django 5.1 and psycopg 3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gcp.threading import ConnectionPool

__all__ = ['process_pool']


def process_pool() -> ConnectionPool[str, Any] | None:
    """Return the pool of this process: for `stats`, `holders` and the rest. ``None``: no connection was made yet.

    Its endpoints are called after their aliases. Where the parameters of an alias have changed, as in tests, the name
    has a number."""
    from gcp.contrib.django.shared import shared

    return shared.pool
