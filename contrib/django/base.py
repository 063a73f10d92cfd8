"""Django's PostgreSQL backend with connections from the pool of the process. Django imports it by name."""

from __future__ import annotations

from typing import Any

try:
    import django
    from django.core.exceptions import ImproperlyConfigured
    from django.db.backends.base.base import NO_DB_ALIAS
    from django.db.backends.postgresql import base
except ImportError as error:
    raise ImportError('gcp.contrib.django needs Django: pip install gcpool[django]', name='django') from error

if django.VERSION < (5, 1):
    raise ImproperlyConfigured('gcp.contrib.django needs Django 5.1 or newer: pip install gcpool[django]')
if not base.is_psycopg3:
    raise ImproperlyConfigured('gcp.contrib.django needs psycopg 3: pip install gcpool[django]')

from gcp.contrib.django.shared import AliasPool, check_options, shared
from gcp.exceptions import ConnectionNotAcquiredError

__all__ = ['DatabaseWrapper']


class DatabaseWrapper(base.DatabaseWrapper):  # type: ignore[misc]
    """A database alias in a thread. Its connection is acquired when it is needed, and released by `close`, which Django
    calls at the end of each request (`close_old_connections`).

    :ivar endpoint: where its connection was acquired; ``None``: there is none, or it is not of a pool
    """

    connection: Any
    endpoint: str | None = None
    _checked: tuple[Any, AliasPool] | None = None

    @property
    def pool(self) -> AliasPool | None:
        """The part of the process's pool that belongs to this alias; ``None``: it has no pool."""
        options = self.settings_dict['OPTIONS'].get('pool')
        if self.alias == NO_DB_ALIAS or not options:
            return None
        checked = self._checked
        if checked is None or checked[0] is not options:  # once for a setting, as Django's own backend does
            named = check_options(self.alias, options, self.settings_dict.get('CONN_MAX_AGE', 0))
            self._checked = checked = options, AliasPool(self, named)
        return checked[1]

    def close_pool(self) -> None:
        """Close this alias's connections: idle ones now, others when they are released."""
        if self.alias != NO_DB_ALIAS:
            shared.expire(self.alias)

    def init_connection_state(self) -> None:
        """Set the connection's role when it is new, and its time zone when the last user has changed it."""
        super().init_connection_state()
        conn = self.connection
        if conn is None or self.endpoint is None:
            return
        if conn in shared.configured:
            changed = self._configure_timezone(conn)  # compares it with what the server has reported
        else:
            changed = self._configure_connection(conn)
            shared.configured.add(conn)
        if changed and not self.get_autocommit():
            conn.commit()

    def _close(self) -> None:
        endpoint, self.endpoint = self.endpoint, None
        if self.connection is None or endpoint is None:
            super()._close()
            return
        conn, self.connection = self.connection, None
        with self.wrap_database_errors:
            _give_back(conn, endpoint)


def _give_back(conn: Any, endpoint: str) -> None:
    """Release a connection, whatever has become of it: the pool disposes of one that is broken."""
    pool = shared.pool
    if pool is None:
        conn.close()
        return
    try:
        if conn.closed:
            pool.discard(conn, endpoint)
        else:
            pool.release(conn, endpoint)
    except ConnectionNotAcquiredError:  # of this process's parent, or of a pool that was closed meanwhile
        pass
